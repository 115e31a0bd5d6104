"""Settings of the smooth-metrics experiment.

Article: https://kexue.fm/archives/6620, which has no experiment of its own.

    small          the default: the builtin digits, one digit against the rest, minutes on two cores
    smoke          seconds
    fashion_mnist  shirts against the rest of Fashion-MNIST
"""

import dataclasses

from ..command_line import all_different, at_least


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Labelled images, one class against the rest."""

    uri: str = "builtin:digits"
    """builtin:digits, or file:PATH of an .npz archive or a folder of idx files, or tfds:NAME."""
    positive_class: int = 8
    positive_share: float = 0.05
    """Positives are dropped until they have this share, in training and test alike."""
    max_examples: int = 10_000
    """Examples drawn for each seed before that."""
    test_share: float = 0.4

    def __post_init__(self) -> None:
        at_least(10, self, "max_examples")
        for name in ("positive_share", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be in (0, 1), got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Adam at a constant rate, all seeds at once."""

    batch_sizes: tuple[int, ...] = (16, 64, 256, 1024)
    num_seeds: int = 8
    """Each has its own split of the data, its own parameters and batches."""
    pretraining_steps: int = 1000
    """Cross entropy first, for all but the accuracy alone."""
    steps: int = 1000
    """Then as many on the objective."""
    learning_rate: float = 3e-3
    hidden_features: int = 0
    """Units of one hidden layer; 0 for a linear model."""
    remembered_examples: int = 4096
    """What the streaming F1 looks back on: decay = 1 - batch size / this, at least 0."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(2, self, "num_seeds")
        at_least(1, self, "pretraining_steps", "steps", "remembered_examples")
        at_least(0, self, "hidden_features", "learning_rate")
        all_different(self, "batch_sizes")
        if min(self.batch_sizes) < 1:
            raise ValueError(f"training.batch_sizes must be positive, got {self.batch_sizes}")


@dataclasses.dataclass(frozen=True)
class BiasConfig:
    """The table of the bias: one simulated scorer, logits offset + separation·label + noise·ε."""

    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 256, 1024)
    rows: int = 1 << 20
    positive_share: float = 0.05
    offset: float = -3.5
    separation: float = 5.25
    noise: float = 2.5

    def __post_init__(self) -> None:
        all_different(self, "batch_sizes")
        at_least(1, self, "rows")
        if not 0 < self.positive_share < 1:
            raise ValueError(f"bias.positive_share must be in (0, 1), got {self.positive_share}")
        if any(size < 1 or self.rows % size for size in self.batch_sizes):
            raise ValueError(
                f"bias.batch_sizes must divide bias.rows = {self.rows}, got {self.batch_sizes}"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """Smooth metrics as objectives."""

    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    bias: BiasConfig = BiasConfig()
    workdir: str = ""
    """Folder of the run; the same command continues it."""


PRESETS = {
    "small": Config(),
    "smoke": Config(
        training=TrainingConfig(
            batch_sizes=(16, 256), num_seeds=4, pretraining_steps=200, steps=200, learning_rate=1e-2
        ),
        bias=BiasConfig(rows=1 << 16),
    ),
    "fashion_mnist": Config(
        data=DataConfig(uri="file:$ZOO_DATA/fashion_mnist", positive_class=6),
        training=TrainingConfig(num_seeds=5, learning_rate=1e-3),
    ),
}
