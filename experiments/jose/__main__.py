"""Trains JoSE on a corpus; shows neighbours, a map, and scores."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
