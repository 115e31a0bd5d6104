"""Trains language models that write in a class: three ways to say which, compared by numbers."""

from experiments import command_line
from experiments.conditional_text.config import PRESETS
from experiments.conditional_text.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
