"""Learns the energy of images from chains that sample it, and looks at what it has learned."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
