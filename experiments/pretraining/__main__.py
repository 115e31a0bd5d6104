"""Pretrains a Transformer on masked tokens, next tokens or second halves of a text."""

from experiments import command_line
from experiments.pretraining.config import PRESETS
from experiments.pretraining.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
