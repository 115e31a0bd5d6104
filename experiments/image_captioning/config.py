"""Settings of the captioner.

Article: https://kexue.fm/archives/7124, section on image captions.

    small     the default: scikit-learn's digits with captions from templates. A smoke test of two
              minutes, no measurement of captions
    smoke     the same in seconds
    flickr8k  Flickr8k at 64 pixels and EfficientNet-Lite0, a quarter of an hour on two CPU cores
    paper     the article's shape (a 12-layer Transformer), for an accelerator
"""

import dataclasses

from ..command_line import (
    LoopConfig,
    RunConfig,
    all_different,
    at_least,
    in_unit_interval,
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Pictures, captions, and how both are read."""

    uri: str = "builtin:digits"
    """builtin:digits with captions from templates, or file:FOLDER of Flickr8k (see README)."""
    encoder: str = ""
    """file:PATH of the weights of EfficientNet-Lite0; empty: the pixels are the vector."""
    train_encoder: bool = False
    """Train the encoder too, from those weights; else it is frozen and runs once per picture."""
    image_size: int = 224
    """Pixels to which pictures are enlarged for the encoder."""
    min_count: int = 3
    """Rarer words become <unk>, which is never generated."""
    max_words: int = 16
    """Longer captions are cut for training; references never are."""

    def __post_init__(self) -> None:
        if self.encoder and not self.encoder.startswith("file:"):
            raise ValueError(f"data.encoder must be file:PATH or empty, got {self.encoder!r}")
        if self.train_encoder and not self.encoder:
            raise ValueError("data.train_encoder needs the weights to begin with in data.encoder")
        at_least(32, self, "image_size")
        at_least(1, self, "min_count", "max_words")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and dropout of the Transformer."""

    features: int = 64
    num_layers: int = 2
    num_heads: int = 4
    feedforward_features: int = 256
    hidden_features: int = 64
    """Bottleneck between the image vector and each LayerNorm."""
    dropout: float = 0.1
    image_dropout: float = 0.0
    """Share of the image vector's entries set to 0 in training."""

    def __post_init__(self) -> None:
        at_least(1, self, "features", "num_layers", "num_heads", "feedforward_features")
        at_least(1, self, "hidden_features")
        in_unit_interval(self, "dropout", "image_dropout")
        if self.features % self.num_heads:
            raise ValueError(
                f"model.num_heads must divide model.features = {self.features}, got "
                f"{self.num_heads}"
            )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimisation."""

    epochs: int = 6
    batch_size: int = 64
    """Captions of a step, over all devices."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    gradient_clip: float = 1.0
    bfloat16: bool = False
    """Compute in bfloat16; parameters and sums stay float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", "batch_size")
        at_least(0, self, "learning_rate", "weight_decay", "gradient_clip")
        in_unit_interval(self, "label_smoothing")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How captions are generated."""

    beam_size: int = 3
    length_penalties: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Tried on the held-out pictures; the best BLEU-4 there is used for the test."""
    batch_size: int = 100
    """Pictures captioned at once."""

    def __post_init__(self) -> None:
        at_least(1, self, "beam_size", "batch_size")
        all_different(self, "length_penalties")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What comes out depends on these alone."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """Image captions."""


FLICKR8K = DataConfig(
    uri="file:$ZOO_DATA/flickr8k",
    encoder="file:$ZOO_DATA/efficientnet_lite0/efficientnet_lite0_fp16conv.npz",
    min_count=5,
    max_words=14,
)

PRESETS = {
    "small": Config(),
    "smoke": Config(
        data=DataConfig(max_words=8),
        model=ModelConfig(num_layers=1),
        training=TrainingConfig(epochs=1, learning_rate=4e-3),
        search=SearchConfig(length_penalties=(1.0,)),
        loop=LoopConfig(log_every=20, checkpoint_every=100),
    ),
    "flickr8k": Config(
        data=FLICKR8K,
        model=ModelConfig(
            features=192,
            num_layers=2,
            num_heads=6,
            feedforward_features=768,
            hidden_features=128,
            dropout=0.2,
            image_dropout=0.25,
        ),
        training=TrainingConfig(
            epochs=6, batch_size=64, learning_rate=1.5e-3, weight_decay=0.05, label_smoothing=0.1
        ),
        loop=LoopConfig(checkpoint_every=400),
    ),
    "paper": Config(
        data=dataclasses.replace(FLICKR8K, train_encoder=True),
        model=ModelConfig(
            features=768,
            num_layers=12,
            num_heads=12,
            feedforward_features=3072,
            hidden_features=128,
            image_dropout=0.1,
        ),
        training=TrainingConfig(epochs=20, batch_size=32, learning_rate=1e-4, bfloat16=True),
        loop=LoopConfig(checkpoint_every=1000),
    ),
}
