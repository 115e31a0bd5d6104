"""Settings of the weight-averaging experiment.

Article: https://kexue.fm/archives/6583: ResNet-20 on CIFAR-10, Adam at a constant rate of 1e-3.

    small    the default: ResNet-8 on the builtin digits at a high rate, so that there is noise to
             average; a minute or two on two CPU cores
    smoke    a narrower one, seconds
    cifar10  ResNet-20 on 10,000 images of CIFAR-10, a few epochs: what two CPU cores can do
    paper    the article's: all of CIFAR-10, decay 0.9999, on an accelerator
"""

import dataclasses

import numpy as np

from zoo.averaging.power import power_law_exponent

from ..command_line import LoopConfig, RunConfig, all_different, at_least


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Labelled images."""

    uri: str = "builtin:digits"
    """builtin:digits (every fifth image is for the test), or file:PATH.npz, or a folder of idx
    files, or tfds:NAME, with splits train and test."""
    shift: int = 0
    """Training images are moved at random by up to so many pixels."""
    mirror: bool = False
    """Half of the training images are mirrored, at random."""
    statistics_images: int = 512
    """Training images from which the statistics of batch normalisation are recomputed."""
    test_images: int | None = None
    """Number of test images; all if not given."""

    def __post_init__(self) -> None:
        at_least(0, self, "shift")
        at_least(1, self, "statistics_images", "test_images")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Size of the residual network: three stages of n blocks, depth 6n + 2."""

    depth: int = 20
    width: int = 16
    """Channels of the first stage; each stage doubles them."""

    def __post_init__(self) -> None:
        at_least(1, self, "width")
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"model.depth must be one of 8, 14, 20, …, got {self.depth}")


@dataclasses.dataclass(frozen=True)
class AveragingConfig:
    """Which averages are kept, and which are made afterwards."""

    decays: tuple[float, ...] = (0.9, 0.98, 0.99)
    stored_stds: tuple[float, ...] = (0.05, 0.1)
    """Relative standard deviations of the power-law averages that are stored at evaluations."""
    post_hoc_stds: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25)
    """Those made of them after the training."""
    post_hoc_checked: float = 0.15
    """The one of them made for each of the last ten evaluations."""

    def __post_init__(self) -> None:
        all_different(self, "decays", "stored_stds", "post_hoc_stds")
        if not all(0 <= decay < 1 for decay in self.decays):
            raise ValueError(f"averaging.decays must be some in [0, 1), got {self.decays}")
        for name in ("stored_stds", "post_hoc_stds", "post_hoc_checked"):
            for std in np.atleast_1d(getattr(self, name)):
                power_law_exponent(std)  # checks its range


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Adam at a constant rate."""

    steps: int = 800
    """A finished run continues if there are more."""
    batch_size: int = 32
    learning_rate: float = 1e-3
    evaluate_every: int = 40
    evaluation_batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "steps", "batch_size", "evaluate_every", "evaluation_batch_size")
        at_least(0, self, "learning_rate")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What comes out depends on these alone."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    averaging: AveragingConfig = AveragingConfig()
    training: TrainingConfig = TrainingConfig()


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """Weight averaging."""


PRESETS = {
    "small": Config(
        data=DataConfig(shift=1),
        model=ModelConfig(depth=8),
        averaging=AveragingConfig(decays=(0.9, 0.98, 0.995)),
        training=TrainingConfig(learning_rate=1e-2),
    ),
    "smoke": Config(
        model=ModelConfig(depth=8, width=8),
        data=DataConfig(shift=1, statistics_images=256),
        averaging=AveragingConfig(decays=(0.9, 0.97), post_hoc_stds=(0.1, 0.15)),
        training=TrainingConfig(steps=200, evaluate_every=10, learning_rate=1e-2),
        loop=LoopConfig(log_every=20, checkpoint_every=50),
    ),
    "cifar10": Config(
        data=DataConfig(uri="file:$ZOO_DATA/cifar10/cifar10_10k_2k.npz", test_images=1000),
        averaging=AveragingConfig(decays=(0.98, 0.99, 0.995)),
        training=TrainingConfig(steps=1200),
        loop=LoopConfig(log_every=20, checkpoint_every=120),
    ),
    "paper": Config(
        data=DataConfig(uri="tfds:cifar10", shift=4, mirror=True, statistics_images=10_000),
        averaging=AveragingConfig(decays=(0.99, 0.999, 0.9999)),
        training=TrainingConfig(steps=200 * 1563, evaluate_every=1563, evaluation_batch_size=1000),
        loop=LoopConfig(checkpoint_every=1563),
    ),
}
