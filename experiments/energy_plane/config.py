"""Settings of the energies on the plane.

small   the default: rings and a Gaussian mixture, five runs of each, five minutes
smoke   a narrow network and few steps, seconds
"""

import dataclasses

from zoo._checks import number

from ..command_line import at_least


@dataclasses.dataclass(frozen=True)
class Config:
    """An energy of points in the plane, beside the exact one."""

    features: int = 64
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    step_size: float = 0.003
    """Of chains at temperature 1, in a plane from -2 to 2 with details of size 0.12."""
    short: int = 10
    """Steps of a short and of a persistent chain."""
    long: int = 150
    """Steps of a long chain."""
    temperatures: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Of the persistent chains whose energies are compared."""
    cells: int = 100
    """Of the grid, along each side."""
    seed: int = 0
    """Of the first run."""
    runs: int = 5
    """Trainings of every kind, of consecutive seeds: tables show their mean and deviation."""
    workdir: str = ""
    """Folder of the tables and pictures."""

    def __post_init__(self) -> None:
        at_least(1, self, "features", "steps", "batch_size", "short", "long", "runs")
        at_least(2, self, "cells")
        for name in ("learning_rate", "step_size"):
            number(name, getattr(self, name), above=0)
        if not self.temperatures:
            raise ValueError("temperatures: expected at least one, got none")
        for temperature in self.temperatures:
            number("temperatures", temperature, above=0)


PRESETS = {
    "small": Config(),
    "smoke": Config(features=16, steps=100, long=20, temperatures=(1.0, 0.5), cells=40, runs=2),
}
