"""Trains a small ResNet at a constant rate and compares its parameters with their averages."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
