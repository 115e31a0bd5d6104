"""Settings of the ON-LSTM language model.

Paper: Shen, Tan, Sordoni, Courville, "Ordered Neurons", arXiv 1810.09536, section 5.1.

    small   the default: 2 × 200 units on the builtin plays, minutes on two CPU cores
    smoke   seconds, to see that everything works
    penn_treebank  Penn Treebank in less than an hour on two CPU cores
    paper   the published sizes and hyper-parameters, for Penn Treebank on an accelerator
            (perplexity 56.17 ± 0.12 on its test set)
"""

import dataclasses
from typing import Literal

from ..command_line import LoopConfig, RunConfig, at_least, in_unit_interval


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text and how it is cut into tokens."""

    uri: str = "builtin:shakespeare"
    """builtin:shakespeare, or file:PATH of a text; {split} in PATH stands for train, valid, test.
    A text without splits is cut 90/5/5 by lines."""
    tokens: Literal["words", "whitespace", "characters", "subwords"] = "words"
    """words: words and punctuation marks; whitespace: as the file has them (Penn Treebank)."""
    lowercase: bool = True
    min_count: int = 3
    """Rarer words become <unk>."""
    max_vocabulary: int | None = None
    """Most frequent tokens kept; for subwords the size to train (8,000 if not given)."""

    def __post_init__(self) -> None:
        at_least(1, self, "min_count")
        at_least(3, self, "max_vocabulary")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and dropout of the model."""

    embed_features: int = 200
    hidden_features: int = 200
    num_layers: int = 2
    chunk_size: int = 10
    master_input: Literal["complement", "reverse", "none"] = "complement"
    """The input gate: complement is the paper's, reverse the article's, none a plain LSTM."""
    embedding_dropout: float = 0.1
    input_dropout: float = 0.2
    hidden_dropout: float = 0.2
    output_dropout: float = 0.2
    recurrent_dropout: float = 0.2
    inverted_weight_drop: bool = True
    """Whether recurrent dropout scales while training; False scales in evaluation, as published."""

    def __post_init__(self) -> None:
        at_least(1, self, "embed_features", "hidden_features", "num_layers", "chunk_size")
        names = [field.name for field in dataclasses.fields(self)]
        in_unit_interval(self, *(name for name in names if name.endswith("dropout")))


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimisation by truncated back-propagation through time."""

    epochs: int = 3
    batch_size: int = 16
    """Rows of the text read in parallel, over all devices."""
    num_steps: int = 35
    """Tokens per row between two updates; the recurrent state is carried over."""
    random_lengths: bool = False
    """Windows of random length around num_steps, the rate scaled by it (see windows.py)."""
    optimizer: Literal["adamw", "sgd", "nt_asgd"] = "adamw"
    """adamw: with one warm-up and cosine decay; sgd: constant rate; nt_asgd: sgd whose parameters
    are averaged once validation stagnates, as published."""
    patience: int = 5
    """Validations without a new best before nt_asgd averages; one an epoch."""
    activation_penalty: float = 0.0
    """AR, on the squares of the last layer's states."""
    temporal_penalty: float = 0.0
    """TAR, on the squares of their steps."""
    learning_rate: float = 8e-3
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    """Largest global norm of the gradient."""
    evaluation_batch_size: int = 8
    """Rows of the held-out texts read in parallel; each starts without context."""
    accumulation_steps: int = 1
    bfloat16: bool = False
    """Compute in bfloat16; parameters and sums stay float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", "batch_size", "num_steps", "evaluation_batch_size")
        at_least(1, self, "accumulation_steps", "patience")
        at_least(0, self, "learning_rate", "weight_decay", "gradient_clip")
        at_least(0, self, "activation_penalty", "temporal_penalty")
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"training.accumulation_steps must divide training.batch_size = {self.batch_size}, "
                f"got {self.accumulation_steps}"
            )
        if self.random_lengths and self.optimizer == "adamw":
            raise ValueError("training.random_lengths needs sgd or nt_asgd, got adamw")


@dataclasses.dataclass(frozen=True)
class ParsingConfig:
    """Scoring of the trees against a treebank."""

    treebank: str = ""
    """file:PATH of a folder, zip archive or file in bracket format; nothing is scored if empty."""
    tags: Literal["penn", "collins", "chinese", "universal"] = "penn"
    """Its tag set, which tells words from punctuation."""
    encoding: str = "utf-8"
    pattern: str = "*.mrg"
    """Of the names of its files in a folder or archive."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """What comes out depends on these alone."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    parsing: ParsingConfig = ParsingConfig()


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """ON-LSTM language model."""


PENN_TREEBANK = DataConfig(
    uri="file:$ZOO_DATA/ptb/ptb.{split}.txt", tokens="whitespace", lowercase=False, min_count=1
)
WSJ_SAMPLE = ParsingConfig(treebank="file:$ZOO_DATA/wsj_treebank_sample/treebank.zip")

PRESETS = {
    "small": Config(),
    "smoke": Config(
        data=DataConfig(min_count=20),
        model=ModelConfig(
            embed_features=32,
            hidden_features=32,
            chunk_size=8,
            embedding_dropout=0.0,
            input_dropout=0.0,
            hidden_dropout=0.0,
            output_dropout=0.0,
            recurrent_dropout=0.0,
        ),
        training=TrainingConfig(epochs=1, batch_size=16, learning_rate=1e-2),
        loop=LoopConfig(log_every=20, checkpoint_every=50),
    ),
    "penn_treebank": Config(
        data=PENN_TREEBANK,
        model=ModelConfig(
            embed_features=200,
            hidden_features=400,
            embedding_dropout=0.02,
            input_dropout=0.1,
            hidden_dropout=0.1,
            output_dropout=0.2,
            recurrent_dropout=0.1,
        ),
        training=TrainingConfig(epochs=6, learning_rate=4e-3),
        parsing=WSJ_SAMPLE,
        loop=LoopConfig(checkpoint_every=500),
    ),
    "paper": Config(
        data=PENN_TREEBANK,
        model=ModelConfig(
            embed_features=400,
            hidden_features=1150,
            num_layers=3,
            input_dropout=0.5,
            hidden_dropout=0.3,
            output_dropout=0.45,
            recurrent_dropout=0.45,
            inverted_weight_drop=False,
        ),
        training=TrainingConfig(
            epochs=1000,
            batch_size=20,
            num_steps=70,
            random_lengths=True,
            optimizer="nt_asgd",
            learning_rate=30.0,
            weight_decay=1.2e-6,
            gradient_clip=0.25,
            activation_penalty=2.0,
            temporal_penalty=1.0,
            evaluation_batch_size=10,
        ),
        parsing=WSJ_SAMPLE,
    ),
}
