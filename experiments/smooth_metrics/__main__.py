"""Trains a detector of a rare class on smooth metrics; measures the bias of F1 over batches."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
