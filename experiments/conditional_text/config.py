"""Settings of class-conditional text generation.

Article: Su Jianlin, "Text generation controlled by Conditional LayerNorm", kexue.fm/archives/7124,
section "sentiment"; it shows samples and no numbers.

    small   the default: nine builtin plays, minutes on two CPU cores
    smoke   seconds, to see that everything works
    rt_polarity  sentences of film reviews, positive and negative; ten minutes on two CPU cores
    paper   the article's settings on its Chinese reviews: BERT-base with conditional norms, on an
            accelerator; --model.pretrained names the folder of the BERT
"""

import dataclasses
from typing import Literal, get_args

from ..command_line import (
    LoopConfig,
    RunConfig,
    all_different,
    at_least,
    in_unit_interval,
    local_path,
)

Variant = Literal["norm", "prefix", "embedding"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Labelled texts and how they are cut into tokens."""

    uri: str = "builtin:shakespeare"
    """builtin:shakespeare, its classes are the plays; file:PATH of rt-polarity's zip archive, of
    the Chinese reviews' zip archive, of a folder with IMDB or with the Stanford Sentiment Treebank,
    of a table (.csv, .tsv, .jsonl, .parquet) with the fields text and label, or of a folder of
    text files, one class a file or subfolder; or hf:NAME."""
    tokens: Literal["words", "whitespace", "characters"] = "words"
    lowercase: bool = True
    max_vocabulary: int = 3000
    """Most frequent tokens kept; the others become <unk>, which is never generated."""
    longest: int = 48
    """Tokens of a piece at most: longer texts are cut, after a full stop where there is one."""
    held_out: int = 2000
    """Pieces of held-out text that are scored, at most."""

    def __post_init__(self) -> None:
        at_least(3, self, "max_vocabulary")
        at_least(4, self, "longest")
        at_least(2, self, "held_out")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A causal Transformer, from scratch or from a pretrained BERT."""

    pretrained: str = ""
    """Folder of a BERT in Hugging Face's format, with its tokenizer.json: the model and its
    tokens, instead of the sizes below and data.tokens."""
    features: int = 96
    num_layers: int = 2
    num_heads: int = 4
    feedforward_features: int = 384
    dropout: float = 0.1
    condition_features: int = 32
    """E, width of the vector of a class."""
    hidden_features: int | None = None
    """Width of the bottleneck of each norm."""
    initial_condition: float = 1.0
    """Standard deviation of the vectors of the classes at the start."""

    def __post_init__(self) -> None:
        at_least(1, self, "num_layers", "num_heads", "features", "feedforward_features")
        at_least(1, self, "condition_features", "hidden_features")
        at_least(0, self, "initial_condition")
        in_unit_interval(self, "dropout")
        if not self.pretrained and self.features % self.num_heads:
            raise ValueError(
                f"model.num_heads must divide model.features = {self.features}, got "
                f"{self.num_heads}"
            )
        if self.pretrained and not local_path(self.pretrained).is_dir():
            raise ValueError(f"model.pretrained must be a folder, got {self.pretrained!r}")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimisation by AdamW with warm-up and cosine decay."""

    epochs: float = 2.0
    batch_size: int = 32
    """Rows over all devices; a row holds several pieces of one class."""
    length: int = 64
    """Tokens per row."""
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    drop_label: float = 0.1
    """Share of rows with the null label, for classifier-free guidance."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters and sums stay float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "batch_size", "length")
        at_least(0, self, "learning_rate", "weight_decay", "gradient_clip")
        if not self.epochs > 0:
            raise ValueError(f"training.epochs must be > 0, got {self.epochs}")
        in_unit_interval(self, "drop_label")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How many samples are drawn, and how."""

    count: int = 1000
    """Samples over all classes."""
    batch_size: int = 250
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 0.9
    guidance: tuple[float, ...] = (1.0, 2.0)
    """Scales of classifier-free guidance; 1 is none."""

    def __post_init__(self) -> None:
        at_least(2, self, "count")  # how much samples are like each other is measured
        at_least(1, self, "batch_size", "top_k")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p must be in (0, 1], got {self.top_p}")
        if not self.temperature > 0:
            raise ValueError(f"sampling.temperature must be > 0, got {self.temperature}")
        all_different(self, "guidance")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What comes out depends on these alone."""

    variants: tuple[Variant, ...] = get_args(Variant)
    """How the class enters: through every norm, as the first token, or added to every embedded
    token."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        all_different(self, "variants")
        if self.model.pretrained and self.variants != ("norm",):
            raise ValueError(
                "variants must be norm alone for a pretrained model: it has no token or segment "
                f"of a class, got {self.variants}"
            )
        if self.data.longest >= self.training.length:
            raise ValueError(
                f"training.length must be more than data.longest, got {self.training.length} and "
                f"{self.data.longest}: a row holds a piece and the token that begins it"
            )


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """Class-conditional text generation."""


PRESETS = {
    "small": Config(),
    "smoke": Config(
        variants=("norm",),
        data=DataConfig(max_vocabulary=200, longest=20),
        model=ModelConfig(
            features=32, num_layers=1, num_heads=2, feedforward_features=64, dropout=0.0
        ),
        training=TrainingConfig(epochs=0.5, batch_size=32, length=32, learning_rate=1e-2),
        sampling=SamplingConfig(count=180, batch_size=180, guidance=(2.0,)),
        loop=LoopConfig(log_every=20, checkpoint_every=100),
    ),
    "rt_polarity": Config(
        data=DataConfig(
            uri="file:$ZOO_DATA/rt_polarity/sentence_polarity.zip",
            tokens="whitespace",
            max_vocabulary=4000,
        ),
        training=TrainingConfig(epochs=5.0),
    ),
    "paper": Config(
        variants=("norm",),
        data=DataConfig(
            uri="file:$ZOO_DATA/zh_sentiment/sentiment.zip",
            tokens="characters",
            lowercase=False,
            max_vocabulary=14000,
            longest=126,
        ),
        model=ModelConfig(
            features=768,
            num_layers=12,
            num_heads=12,
            feedforward_features=3072,
            condition_features=128,
            initial_condition=0.03,
        ),
        training=TrainingConfig(
            epochs=20, batch_size=32, length=128, learning_rate=1e-5, weight_decay=0.0
        ),
        sampling=SamplingConfig(top_k=5, top_p=1.0),
    ),
}
