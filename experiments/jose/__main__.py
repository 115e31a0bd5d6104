"""Trains JoSE on a corpus; shows neighbours, a map, and scores."""

from experiments import command_line
from experiments.jose.config import PRESETS
from experiments.jose.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
