"""Trains an ON-LSTM language model and shows the trees it found. Never told about grammar."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
