"""Settings of the logical inference experiment.

Paper: Shen, Tan, Sordoni, Courville, "Ordered Neurons", arXiv 1810.09536, section 5.4.

    small   the default: 64 units, minutes on two CPU cores, on a corpus that is drawn
    smoke   seconds, to see that everything works
    paper   the published corpus, sizes and hyper-parameters, for an accelerator
"""

import dataclasses
from typing import Literal

from ..command_line import LoopConfig, RunConfig, at_least, in_unit_interval


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The pairs of formulas."""

    uri: str = "builtin:logic"
    """builtin:logic, or file:PATH of a folder or tar archive of files train0 … and test0 …"""
    train_operators: int = 6
    """Pairs to train on have at most so many operators in their longer formula."""
    test_operators: int = 12
    """Pairs to test on."""
    pairs_per_count: int = 3000
    """Of the builtin corpus: pairs drawn for each number of operators."""
    seed: int = 0
    """Of the builtin corpus."""

    def __post_init__(self) -> None:
        at_least(1, self, "train_operators")
        at_least(self.train_operators, self, "test_operators")
        at_least(50, self, "pairs_per_count")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of both models; the plain LSTM has as many units."""

    embed_features: int = 16
    features: int = 64
    chunk_size: int = 4
    master_input: Literal["complement", "reverse"] = "complement"
    """The input gate of the ON-LSTM: complement is the paper's, reverse the article's."""
    classifier_features: int = 128
    dropout: float = 0.0
    """Of embeddings and classifier."""

    def __post_init__(self) -> None:
        at_least(1, self, "embed_features", "features", "classifier_features", "chunk_size")
        in_unit_interval(self, "dropout")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimisation, the same for both models."""

    epochs: int = 10
    batch_size: int = 64
    """Pairs of one update, over all devices."""
    schedule: Literal["cosine", "plateau"] = "cosine"
    """cosine: one warm-up, then down to 0; plateau: halved after two epochs without progress."""
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    """Largest global norm of the gradient."""
    evaluation_batch_size: int = 128
    seeds: int = 1
    """Runs of each model, with seeds 0, 1, …; the results are means. More can be added later."""

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", "batch_size", "evaluation_batch_size", "seeds")
        at_least(0, self, "learning_rate", "weight_decay", "gradient_clip")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What comes out depends on these alone."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """Logical inference."""


PRESETS = {
    "small": Config(),
    "smoke": Config(
        data=DataConfig(pairs_per_count=500, train_operators=2, test_operators=4),
        model=ModelConfig(features=32, classifier_features=32),
        training=TrainingConfig(epochs=8, batch_size=32, learning_rate=2e-2),
        loop=LoopConfig(log_every=20, checkpoint_every=100),
    ),
    "paper": Config(
        data=DataConfig(uri="file:$ZOO_DATA/propositional_logic/propositional_logic.tar.xz"),
        model=ModelConfig(
            embed_features=128, features=400, chunk_size=10, classifier_features=400, dropout=0.2
        ),
        training=TrainingConfig(
            epochs=50,
            batch_size=128,
            schedule="plateau",
            learning_rate=1e-3,
            weight_decay=1.2e-6,
            seeds=5,
        ),
    ),
}
