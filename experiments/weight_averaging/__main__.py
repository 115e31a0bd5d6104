"""Trains a small ResNet at a constant rate and compares its parameters with their averages."""

from experiments import command_line
from experiments.weight_averaging.config import PRESETS
from experiments.weight_averaging.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
