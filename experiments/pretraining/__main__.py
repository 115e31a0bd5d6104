"""Pretrains a Transformer on masked tokens, next tokens or second halves of a text."""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
