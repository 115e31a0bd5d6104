"""Settings of pretraining.

Sources: https://kexue.fm/archives/7055 and the pretraining folder of bert4keras; Jacob Devlin et
al., "BERT", arXiv 1810.04805; Yang You et al., "Large Batch Optimization", arXiv 1904.00962.

    small   the default: 4 layers of 128 units on the characters of the builtin plays
    smoke   seconds, to see that everything works
    reviews 2 layers of 128 units on 50,000 film reviews, for fine-tuning on their sentiment
    base    BERT-base, 12 layers of 768 units, batch 256 × 128
    paper   BERT-base as the original trains it: batch 4096 × 512, LAMB at 0.00176, warm-up 3125 of
            125,000 updates; 16 micro-batches of 256 rows
"""

import dataclasses
from typing import Literal

from ..command_line import LoopConfig, RunConfig, at_least, in_unit_interval


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text, its tokens and rows, and where the rows are stored."""

    uri: str = "builtin:shakespeare"
    """builtin:shakespeare, or file:PATH of lines (a blank one ends a document) or of .tsv or .jsonl
    with a field text (one document per row); {split} in PATH stands for train, valid, test."""
    directory: str | None = None
    """Folder of the prepared corpus, for one or many runs; None: corpus/ in the workdir."""
    tokens: Literal["characters", "wordpiece"] = "characters"
    vocab_size: int = 8000
    """Size of the WordPiece vocabulary to train."""
    lowercase: bool = True
    length: int = 128
    """Tokens per row."""
    separate_documents: bool = False
    """Whether attention stops at the documents of a packed row; in the original it does not."""
    shards: int = 4
    """Number of files with training rows."""
    workers: int = 0
    """Processes that write them; 0: this one."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """What to do with damaged records; skip reads the next intact ones in their place."""

    def __post_init__(self) -> None:
        for name, bound in {"length": 16, "vocab_size": 100, "shards": 1, "workers": 0}.items():
            at_least(bound, self, name)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the Transformer; see zoo.transformer.TransformerConfig."""

    features: int = 128
    num_layers: int = 4
    num_heads: int = 4
    feedforward_features: int = 512
    norm_position: Literal["post", "pre"] = "post"
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    dropout: float = 0.0
    initial_scale: float = 0.08
    """Initial standard deviation of the kernels; BERT's 0.02 is for 768 units."""
    scan_layers: bool = True
    remat: Literal["full", "dots"] | None = None
    attention_implementation: Literal["xla", "cudnn"] | None = None

    def __post_init__(self) -> None:
        in_unit_interval(self, "dropout")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted."""

    kind: Literal["masked", "causal", "prefix"] = "masked"
    """masked: BERT; causal: GPT; prefix: UniLM."""
    rate: float = 0.15
    """Share of words that are masked."""
    whole_words: bool = True
    static_copies: int | None = None
    """Number of different masks per row; None: new ones each time. The original stores 10."""
    predictions: int | None = None
    """Most predicted positions per row: logits are computed there alone; None: everywhere."""

    def __post_init__(self) -> None:
        in_unit_interval(self, "rate")
        at_least(1, self, "static_copies", "predictions")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimisation, counted in updates."""

    num_steps: int = 1500
    batch_size: int = 32
    """Rows per update, over all devices and micro-batches."""
    accumulation_steps: int = 1
    """Micro-batches per update."""
    optimizer: Literal["lamb", "adamw"] = "adamw"
    learning_rate: float = 2e-3
    """Peak rate, after the warm-up; it then falls linearly to 0."""
    warmup_steps: int = 200
    """Less than num_steps."""
    weight_decay: float = 0.01
    gradient_clip: float | None = 1.0
    """Largest global norm of the gradient; the original has no clipping."""
    lookahead: bool = False
    """Moves half-way back to slow weights every 5 updates."""
    ema_decay: float | None = None
    """Evaluates a moving average of the parameters with this decay; None: the last ones."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters and sums stay float32."""
    evaluate_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "num_steps", "batch_size", "accumulation_steps", "evaluate_every")
        at_least(0, self, "learning_rate", "weight_decay", "warmup_steps", "gradient_clip")
        if self.warmup_steps >= self.num_steps:
            raise ValueError(
                f"warmup_steps must be less than num_steps={self.num_steps}, got "
                f"{self.warmup_steps}: the rate would not reach its peak; {self.num_steps // 10} "
                "is a tenth"
            )
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"accumulation_steps must divide batch_size={self.batch_size}, got "
                f"{self.accumulation_steps}"
            )
        if self.ema_decay is not None:
            in_unit_interval(self, "ema_decay")


@dataclasses.dataclass(frozen=True)
class Fields:
    """The settings that decide the result."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        predictions, length = self.objective.predictions, self.data.length
        if predictions is not None and predictions > length:
            raise ValueError(
                f"objective.predictions must be at most data.length={length}, got {predictions}"
            )


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """Pretraining of a Transformer."""


_BASE = ModelConfig(
    features=768,
    num_layers=12,
    num_heads=12,
    feedforward_features=3072,
    dropout=0.1,
    initial_scale=0.02,
)

PRESETS = {
    # The loss stays near the unigram entropy until attention finds the neighbours; with LayerNorm
    # before each part and short rows that takes fewer updates.
    "small": Config(data=DataConfig(length=64), model=ModelConfig(norm_position="pre")),
    "smoke": Config(
        data=DataConfig(length=64, shards=2),
        model=ModelConfig(features=64, num_layers=2, num_heads=2, feedforward_features=128),
        training=TrainingConfig(
            num_steps=250, batch_size=16, learning_rate=4e-3, warmup_steps=20, evaluate_every=1000
        ),
        loop=LoopConfig(log_every=50, checkpoint_every=100),
    ),
    "reviews": Config(
        data=DataConfig(
            uri="file:$ZOO_DATA/imdb/train_unsup.tsv.xz?columns=id,rating,text", tokens="wordpiece"
        ),
        model=ModelConfig(num_layers=2, num_heads=2),
        objective=ObjectiveConfig(predictions=32),
        training=TrainingConfig(num_steps=3000, evaluate_every=1000),
    ),
    "base": Config(
        data=DataConfig(tokens="wordpiece", vocab_size=30522, shards=64, workers=8),
        model=_BASE,
        objective=ObjectiveConfig(predictions=24),
        training=TrainingConfig(
            num_steps=100_000,
            batch_size=256,
            learning_rate=1e-4,
            warmup_steps=10_000,
            bfloat16=True,
            evaluate_every=5000,
        ),
        loop=LoopConfig(checkpoint_every=1000),
    ),
    "paper": Config(
        data=DataConfig(tokens="wordpiece", vocab_size=30522, length=512, shards=512, workers=16),
        model=_BASE,
        objective=ObjectiveConfig(static_copies=10),
        training=TrainingConfig(
            num_steps=125_000,
            batch_size=4096,
            accumulation_steps=16,
            optimizer="lamb",
            learning_rate=0.00176,
            warmup_steps=3125,
            gradient_clip=None,
            evaluate_every=5000,
        ),
        loop=LoopConfig(checkpoint_every=500),
    ),
}
