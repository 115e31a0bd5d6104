"""Learns the energy of points in the plane by several kinds of chains, beside the exact density."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
