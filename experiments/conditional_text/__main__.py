"""Trains language models that write in a class: three ways to say which, compared by numbers."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
