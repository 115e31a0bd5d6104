"""Settings of the smooth-metrics experiment.

Article: https://kexue.fm/archives/6620, which has no experiment of its own.

    small          the default: the builtin digits, one digit against the rest, minutes on two cores
    smoke          seconds
    fashion_mnist  shirts against the rest of Fashion-MNIST
    rare           MNIST, one 8 among a hundred others
    noisy          the same, and three tenths of the labelled 8 are none
"""

import dataclasses

from ..command_line import all_different, at_least, in_unit_interval


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
    validation_share: float = 0.2
    """What settings and thresholds are chosen on."""
    label_noise: float = 0.0
    """Share of the positives of training and validation that are labelled negative, and as many
    negatives positive."""

    def __post_init__(self) -> None:
        at_least(10, self, "max_examples")
        for name in ("positive_share", "test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be in (0, 1), got {getattr(self, name)}")
        in_unit_interval(self, "label_noise")
        if self.test_share + self.validation_share >= 1:
            raise ValueError(
                f"data.validation_share must leave samples for training, got "
                f"{self.validation_share} beside data.test_share = {self.test_share}"
            )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """AdamW at a constant rate, all seeds and settings at once."""

    batch_sizes: tuple[int, ...] = (16, 64, 256, 1024)
    num_seeds: int = 8
    """Each has its own split of the data, its own parameters and batches."""
    pretraining_steps: int = 1000
    """Cross entropy first, for all but the accuracy alone."""
    steps: int = 1000
    """Then as many on the objective."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """For each objective and seed the best on the validation samples, as the two below."""
    weight_decays: tuple[float, ...] = (0.0, 0.1, 1.0)
    positive_weights: tuple[float, ...] = (3.0, 10.0, 30.0)
    """Of the positives in the weighted cross entropy."""
    hidden_features: int = 0
    """Units of one hidden layer; 0 for a linear model."""
    remembered_examples: int = 4096
    """What the streaming F1 looks back on: decay = 1 - batch size / this, at least 0."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(2, self, "num_seeds")
        at_least(1, self, "pretraining_steps", "steps", "remembered_examples")
        at_least(0, self, "hidden_features")
        all_different(self, "batch_sizes")
        for name in ("learning_rates", "weight_decays", "positive_weights"):
            all_different(self, name)
            if min(getattr(self, name)) < 0:
                raise ValueError(f"training.{name} must not be negative, got {getattr(self, name)}")
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


_MNIST = DataConfig(uri="file:$ZOO_DATA/mnist", positive_share=1 / 101, max_examples=60_000)
_RARE = TrainingConfig(batch_sizes=(256,), learning_rates=(1e-3, 1e-2))

PRESETS = {
    "small": Config(),
    "smoke": Config(
        training=TrainingConfig(
            batch_sizes=(16, 256),
            num_seeds=4,
            pretraining_steps=200,
            steps=200,
            learning_rates=(1e-2,),
            weight_decays=(0.0,),
            positive_weights=(3.0,),
        ),
        bias=BiasConfig(rows=1 << 16),
    ),
    "fashion_mnist": Config(
        data=DataConfig(uri="file:$ZOO_DATA/fashion_mnist", positive_class=6),
        training=TrainingConfig(num_seeds=5),
    ),
    "rare": Config(data=_MNIST, training=_RARE),
    "noisy": Config(data=dataclasses.replace(_MNIST, label_noise=0.3), training=_RARE),
}
