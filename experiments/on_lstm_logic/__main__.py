"""Logical inference: an ON-LSTM against a plain LSTM of equal size, by number of operators."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
