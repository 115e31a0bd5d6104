"""Learns the energy of images from chains that sample it, and looks at what it has learned."""

from experiments import command_line
from experiments.energy_model.config import PRESETS
from experiments.energy_model.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
