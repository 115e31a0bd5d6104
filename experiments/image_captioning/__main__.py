"""Trains a captioner whose every LayerNorm is conditional on a picture, and scores its captions."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
