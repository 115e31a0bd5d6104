"""Learns the energy of points in the plane by several kinds of chains, beside the exact density."""

from experiments import command_line
from experiments.energy_plane.config import PRESETS
from experiments.energy_plane.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
