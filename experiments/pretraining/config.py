"""Settings of pretraining.

Sources: https://kexue.fm/archives/7055 and the pretraining folder of bert4keras; Jacob Devlin et
al., «BERT», arXiv 1810.04805; Yang You et al., «Large Batch Optimization», arXiv 1904.00962.

    small   the default: 4 layers of 128 units on the characters of the builtin plays
    smoke   seconds, to see that everything works
    reviews 2 layers of 128 units on 50,000 film reviews, to be fine-tuned on their sentiment
    base    BERT-base, 12 layers of 768 units, batch 256 × 128
    paper   BERT-base as the original trains it: batch 4096 × 512, LAMB at 0.00176, warm-up 3125 of
            125,000 updates; 16 micro-batches of 256 rows
"""

import dataclasses
from typing import Literal

from experiments.command_line import (
    DistributedConfig,
    LoopConfig,
    MeshConfig,
    at_least,
    in_unit_interval,
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text, how it is cut into tokens and rows, and where the rows are kept."""

    uri: str = "builtin:shakespeare"
    """builtin:shakespeare, or file:PATH of lines (a blank one ends a document) or of .tsv or .jsonl
    with a field text (a document each); {split} in PATH stands for train, valid, test."""
    directory: str | None = None
    """Folder of the prepared corpus; None: corpus/ in the workdir. It can serve many runs."""
    tokens: Literal["characters", "wordpiece"] = "characters"
    vocab_size: int = 8000
    """Size of the WordPiece vocabulary to train."""
    lowercase: bool = True
    length: int = 128
    """Tokens of a row."""
    separate_documents: bool = False
    """Whether documents packed in one row are hidden from each other; originally they see."""
    shards: int = 4
    """Files the training rows are written to."""
    workers: int = 0
    """Processes that write them; 0: this one."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """What becomes of records that were damaged; skipped ones are counted."""

    def __post_init__(self) -> None:
        at_least(16, "data.length", self.length)
        at_least(1, "data.shards", self.shards)
        at_least(0, "data.workers", self.workers)
        at_least(100, "data.vocab_size", self.vocab_size)


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
    """Standard deviation of the kernels at first; BERT's 0.02 is for 768 units."""
    scan_layers: bool = True
    remat: Literal["full", "dots"] | None = None
    attention_implementation: Literal["xla", "cudnn"] | None = None

    def __post_init__(self) -> None:
        in_unit_interval("model.dropout", self.dropout)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted."""

    kind: Literal["masked", "causal", "prefix"] = "masked"
    """masked: BERT; causal: GPT; prefix: UniLM."""
    rate: float = 0.15
    """Share of words that are masked."""
    whole_words: bool = True
    static_copies: int | None = None
    """How many different masks a row can have; None: new ones each time. The original stores 10."""
    predictions: int | None = None
    """Most predicted positions of a row, so that logits are computed there alone; None: all."""

    def __post_init__(self) -> None:
        in_unit_interval("objective.rate", self.rate)
        for name in ("static_copies", "predictions"):
            if getattr(self, name) is not None:
                at_least(1, f"objective.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimisation; everything is counted in updates."""

    num_steps: int = 1500
    batch_size: int = 32
    """Rows of an update, over all devices and micro-batches."""
    accumulation_steps: int = 1
    """Micro-batches an update is worked through in."""
    optimizer: Literal["lamb", "adamw"] = "adamw"
    learning_rate: float = 2e-3
    """At the end of the warm-up; then it falls to 0 at the last update."""
    warmup_steps: int = 200
    weight_decay: float = 0.01
    gradient_clip: float | None = 1.0
    """Largest global norm of the gradient; the original clips nothing."""
    lookahead: bool = False
    """Goes half-way back to slow weights every 5 updates."""
    ema_decay: float | None = None
    """Of the average of the parameters that is evaluated; None: the parameters themselves."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters and sums stay float32."""
    evaluate_every: int = 500
    evaluation_batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "batch_size",
            "accumulation_steps",
            "warmup_steps",
            "evaluate_every",
            "evaluation_batch_size",
        ):
            at_least(1, f"training.{name}", getattr(self, name))
        for name in ("learning_rate", "weight_decay"):
            at_least(0, f"training.{name}", getattr(self, name))
        if self.ema_decay is not None:
            in_unit_interval("training.ema_decay", self.ema_decay)


@dataclasses.dataclass(frozen=True)
class Config:
    """Pretraining of a Transformer."""

    workdir: str = "runs/pretraining"
    """Folder of the run; the same command continues it."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()


_BASE = ModelConfig(
    features=768,
    num_layers=12,
    num_heads=12,
    feedforward_features=3072,
    dropout=0.1,
    initial_scale=0.02,
)

PRESETS = {
    # At first the loss stays near the unigram entropy, until the model looks at neighbours; with
    # LayerNorm before each part and short rows that takes fewer updates.
    "small": Config(data=DataConfig(length=64), model=ModelConfig(norm_position="pre")),
    "smoke": Config(
        workdir="runs/pretraining_smoke",
        data=DataConfig(length=64, shards=2),
        model=ModelConfig(features=64, num_layers=2, num_heads=2, feedforward_features=128),
        training=TrainingConfig(
            num_steps=250,
            batch_size=16,
            learning_rate=4e-3,
            warmup_steps=20,
            evaluate_every=1000,
        ),
        loop=LoopConfig(log_every=50, checkpoint_every=100),
    ),
    "reviews": Config(
        workdir="runs/pretraining_reviews",
        data=DataConfig(
            uri="file:$ZOO_DATA/imdb/train_unsup.tsv.xz?columns=id,rating,text", tokens="wordpiece"
        ),
        model=ModelConfig(num_layers=2, num_heads=2),
        objective=ObjectiveConfig(predictions=32),
        training=TrainingConfig(num_steps=3000, evaluate_every=1000),
    ),
    "base": Config(
        workdir="runs/pretraining_base",
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
        workdir="runs/pretraining_paper",
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
            evaluation_batch_size=256,
        ),
        loop=LoopConfig(checkpoint_every=500),
    ),
}
