"""Settings of JoSE, spherical word and document embeddings.

Paper: Yu Meng et al., "Spherical Text Embedding", arXiv 1911.01196.

    small   the default: passages of the builtin plays, about a minute on two CPU cores
    smoke   seconds, to see that everything works
    20news  the 18,846 posts of 20 Newsgroups, window 10, 10 passes
    imdb    100,000 film reviews, 23 million words, with the three word similarity sets
    paper   as for the paper's word vectors: a text file of Wikipedia, window 10, min count 100
"""

import dataclasses
from typing import Literal

from zoo.spherical.options import JoseOptions

from ..command_line import DistributedConfig, LoopConfig, RunConfig, at_least


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The documents and how they are cut into words."""

    uri: str = "builtin:shakespeare"
    """builtin:shakespeare, whose documents are passages, or file:PATH: .jsonl and .tsv with a
    field text (and label, split: train or test), else a document per line."""
    words: Literal["letters", "whitespace"] = "letters"
    """letters: lower-cased words of a-z; whitespace: as the text has them."""
    min_count: int = 5
    initial: str | None = None
    """Vectors to start from: a model.safetensors of another run, or a file of word2vec, GloVe or
    fastText (binary if its name has .bin)."""
    similarity: str | None = None
    """Folder with wordsim353/, MEN/ and SimLex-999/, if there is one."""

    def __post_init__(self) -> None:
        at_least(1, self, "min_count")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The objective."""

    dimension: int = 100
    objective: Literal["two_hinges", "joint"] = "two_hinges"
    """two_hinges: of the authors' program; joint: of the paper."""
    window: int = 10
    negatives: int = 2
    margin: float = 0.15

    def __post_init__(self) -> None:
        at_least(2, self, "dimension")  # the map has two


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimisation."""

    passes: int = 10
    learning_rate: float = 0.04
    subsample: float = 1e-3
    shuffle: bool = False
    """Documents in a new order each pass, instead of that of the file as in the authors' program;
    a file that is sorted by class has higher scores without."""
    chunk_size: int = 1024
    """Words between two updates."""
    block_size: int = 32
    """Neighbouring words that share negatives."""
    steps: int = 1
    """Steps of a chunk, each with its share of the offsets; 4 learn more in a pass, more slowly."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is scored and shown."""

    runs: int = 10
    """Of k-means, from different starts."""
    inductive: bool = True
    """With splits: also train without the test documents, and embed them afterwards."""
    neighbours_of: tuple[str, ...] = ("king", "love", "death", "sword")
    map_points: int = 2000
    """At most so many documents on the map."""

    def __post_init__(self) -> None:
        at_least(1, self, "runs")
        at_least(5, self, "map_points")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What comes out depends on these alone."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """JoSE."""

    loop: LoopConfig = LoopConfig(log_every=200, checkpoint_every=5000)

    def __post_init__(self) -> None:
        if self.distributed != DistributedConfig():
            raise ValueError("distributed: JoSE runs in one process, on all of its devices")
        self.options()

    def options(self) -> JoseOptions:
        """Those of the model and its training; a ValueError if one is out of its range."""
        sections = dataclasses.asdict(self.model) | dataclasses.asdict(self.training)
        return JoseOptions(**sections).checked()


PRESETS = {
    # A small text needs more passes: after 40 all frequent words are still drawn to one side.
    "small": Config(training=TrainingConfig(passes=80, subsample=1e-4, shuffle=True)),
    "smoke": Config(
        data=DataConfig(min_count=20),
        model=ModelConfig(dimension=32, window=5),
        training=TrainingConfig(passes=10, shuffle=True),
        evaluation=EvaluationConfig(runs=2, map_points=200),
        loop=LoopConfig(log_every=50, checkpoint_every=200),
    ),
    # The authors' rate of 0.04 is the better one for three passes.
    "20news": Config(
        training=TrainingConfig(learning_rate=0.01),
        data=DataConfig(uri="file:$ZOO_DATA/20news_bydate/20news_bydate.jsonl.xz"),
        evaluation=EvaluationConfig(neighbours_of=("god", "hockey", "windows", "space")),
    ),
    # Words are what it is scored by: fewer of the frequent ones, which draw all others to one side.
    "imdb": Config(
        training=TrainingConfig(subsample=1e-4),
        data=DataConfig(
            uri="file:$ZOO_DATA/imdb/{part}.tsv.xz?columns=id,rating,text",
            similarity="$ZOO_DATA/word_similarity",
        ),
        evaluation=EvaluationConfig(neighbours_of=("actor", "boring", "war", "music")),
    ),
    "paper": Config(
        data=DataConfig(uri="file:wiki.txt", words="whitespace", min_count=100),
    ),
}
