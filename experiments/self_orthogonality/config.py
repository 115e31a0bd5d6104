"""Settings of the comparison of penalties on filters.

Source: Zhang, Ma, Wu, Wang, "Self-Orthogonality Module", arXiv 2001.01275, as read by
https://kexue.fm/archives/7169.

    small          the default: the builtin digits, minutes on two CPU cores
    fashion_mnist  6,000 images of Fashion-MNIST, which have to be there
    smoke          seconds, to see that everything works
    paper          CIFAR-10 with the published form of the loss: literal sums, weights 100 and 1,
                   sharpness 10. The network and its schedule are not the paper's.
"""

import dataclasses
from typing import Literal, get_args

from ..command_line import (
    LoopConfig,
    RunConfig,
    all_different,
    at_least,
    in_unit_interval,
)

Method = Literal["none", "weight_decay", "soft", "off_diagonal", "spectral", "self_orthogonality"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Labelled images."""

    uri: str = "builtin:digits"
    """builtin:digits, file:FOLDER of idx files, file:PATH.npz, or tfds:NAME."""
    train_size: int | None = None
    """Images to train on; all there are if None."""
    test_size: int | None = 500
    """Images drawn from the full set to test on; None: the set has a test split of its own."""

    def __post_init__(self) -> None:
        at_least(1, self, "train_size", "test_size")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Two convolutions of stride 2 and a dense layer, before the classes."""

    first_features: int = 16
    """Filters of the first layer: 5 × 5 pixels."""
    second_features: int = 32
    """Filters of the second layer: 3 × 3 positions."""
    dense_features: int = 64

    def __post_init__(self) -> None:
        # Angles and correlations are those of pairs of filters.
        at_least(2, self, "first_features", "second_features", "dense_features")


@dataclasses.dataclass(frozen=True)
class PenaltyConfig:
    """How strong each method is, as a factor of its gradient beside that of the cross-entropy."""

    weight_decay: float = 5e-3
    soft: float = 1e-2
    off_diagonal: float = 1e-2
    spectral: float = 1e-1
    self_orthogonality: float = 1.0
    mean_weight: float = 100.0
    square_weight: float = 1.0
    sharpness: float = 10.0
    reduction: Literal["sum", "mean"] = "mean"
    """sum is the published form, whose size grows with the square of the width."""
    center: bool = False
    """Subtract the mean response before its sign is taken."""
    stop_input_gradient: bool = False
    """Let self-orthogonality move its own filters only, not those of the layers below."""

    def __post_init__(self) -> None:
        at_least(0, self, *(f.name for f in dataclasses.fields(self) if f.type is float))


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Gradient descent with momentum and a cosine decay; every method alike."""

    methods: tuple[Method, ...] = METHODS
    batch_norm: tuple[bool, ...] = (False, True)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    gradient_clip: float = 5.0

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", "batch_size")
        at_least(0, self, "learning_rate", "gradient_clip")
        in_unit_interval(self, "momentum")
        all_different(self, "methods", "batch_norm", "seeds")


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """The loss alone, minimised on Gaussian inputs: which of its two terms does what."""

    num_steps: int = 1500
    """0 leaves it out."""
    entries: int = 64
    filters: int = 32
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(0, self, "num_steps")
        at_least(2, self, "entries", "filters")
        at_least(0, self, "learning_rate")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What comes out depends on these alone."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    training: TrainingConfig = TrainingConfig()
    ablation: AblationConfig = AblationConfig()


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """Penalties on filters."""

    loop: LoopConfig = LoopConfig(log_every=10, checkpoint_every=10_000, keep_checkpoints=1)


PRESETS = {
    "small": Config(),
    "fashion_mnist": Config(
        data=DataConfig(uri="file:$ZOO_DATA/fashion_mnist", train_size=6000, test_size=None),
        training=TrainingConfig(epochs=5),
    ),
    "smoke": Config(
        data=DataConfig(train_size=768),
        model=ModelConfig(first_features=8, second_features=8, dense_features=16),
        training=TrainingConfig(
            methods=("self_orthogonality",), batch_norm=(True,), seeds=(0,), epochs=4
        ),
        ablation=AblationConfig(num_steps=100, entries=16, filters=8, learning_rate=2e-2),
    ),
    "paper": Config(
        data=DataConfig(uri="tfds:cifar10", test_size=None),
        model=ModelConfig(first_features=64, second_features=128, dense_features=256),
        penalty=PenaltyConfig(reduction="sum"),
        training=TrainingConfig(epochs=100),
    ),
}
