"""Labelled texts by URI, cut into pieces of tokens, and pieces packed into rows of one class."""

import io
import pathlib
import re
import zipfile
from typing import NamedTuple

import numpy as np

from experiments.command_line import local_path
from experiments.conditional_text.config import Config
from zoo.data import Vocabulary, build_vocabulary, open_source

SPLITS = ("train", "held out")
SENTIMENTS = ("negative", "positive")
Labelled = list[tuple[str, str]]  # (text, name of its class)

# The plays in their order, each by its first line.
PLAYS = {
    "Coriolanus": "Before we proceed any further, hear me speak.",
    "Richard III": "Now is the winter of our discontent",
    "Richard II": "Old John of Gaunt, time-honour'd Lancaster,",
    "Romeo and Juliet": "Gregory, o' my word, we'll not carry coals.",
    "Henry VI": "I wonder how the king escaped our hands.",
    "Winter's Tale": "If you shall chance, Camillo, to visit Bohemia, on",
    "Measure for Measure": "Escalus.",
    "Taming of the Shrew": "I'll pheeze you, in faith.",
    "Tempest": "Boatswain!",
}
BLOCK = 20  # consecutive speeches that are held out together
_STOPS = frozenset(".!?;。！？；…~")


class Pieces(NamedTuple):
    """Texts in ids."""

    ids: list[np.ndarray]  # without start and end
    labels: np.ndarray  # int32 [N]


class Rows(NamedTuple):
    """Pieces side by side, those of a row all of one class."""

    inputs: np.ndarray  # int32 [R, T]
    targets: np.ndarray  # int32 [R, T]
    pieces: np.ndarray  # int32 [R, T], number of the piece; -1 where there is none
    labels: np.ndarray  # int32 [R]

    def examples(self) -> list[dict[str, np.ndarray]]:
        """One example per row, for a pipeline."""
        return [dict(zip(self._fields, row, strict=True)) for row in zip(*self, strict=True)]


def read(uri: str) -> dict[str, Labelled]:
    """Texts with the names of their classes, by split.

    Raises:
        ValueError: if there is nothing to read, or fewer than two classes.
    """
    scheme, _, rest = uri.partition(":")
    path = local_path(rest)
    if uri == "builtin:shakespeare":
        texts = _plays()
    elif scheme == "file" and path.suffix == ".zip":
        texts = _archive(path)
    elif scheme == "file" and (path / "train_pos.tsv.xz").exists():
        texts = _imdb(path)
    elif scheme == "file" and (path / "train.txt.gz").exists():
        texts = _treebank(path)
    else:
        texts = _fields(uri)
    classes, held_out = ({label for _, label in texts[split]} for split in SPLITS)
    if len(classes) < 2 or held_out != classes:
        raise ValueError(
            f"data.uri must give two classes or more, with texts of each in training and held "
            f"out, got {sorted(classes)} and {sorted(held_out)} from {uri}"
        )
    return texts


def make_vocabulary(config: Config, texts: Labelled) -> Vocabulary:
    """The vocabulary of the training texts, or that of a pretrained model."""
    if config.model.pretrained:
        return Vocabulary.load(local_path(config.model.pretrained) / "tokenizer.json")
    data = config.data
    return build_vocabulary(
        (text for text, _ in texts),
        split=data.tokens,
        max_size=data.max_vocabulary,
        lowercase=data.lowercase,
    )


def start_of(vocabulary: Vocabulary) -> int:
    """The id that begins a text: BERT's [CLS], or the end token."""
    return vocabulary.ids.get("[CLS]", vocabulary.end)


def banned(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The special tokens that are never generated: all but the end token."""
    return tuple(n for n in map(vocabulary.id_of, vocabulary.special) if n != vocabulary.end)


def cut(texts: Labelled, classes: list[str], vocabulary: Vocabulary, longest: int) -> Pieces:
    """Pieces of at most ``longest`` tokens, cut after the last full stop within that length."""
    stops = [number for number, token in enumerate(vocabulary.tokens) if token in _STOPS]
    encoded = vocabulary.encode_batch(text.replace("\n", " ") for text, _ in texts)
    pieces, labels = [], []
    for rest, (_, label) in zip(encoded, texts, strict=True):
        while len(rest):
            size = len(rest)
            if size > longest:
                ends = np.flatnonzero(np.isin(rest[:longest], stops)) + 1
                size = int(ends[-1]) if len(ends) else longest
            pieces.append(rest[:size])
            labels.append(classes.index(label))
            rest = rest[size:]
    return Pieces(pieces, np.array(labels, np.int32))


def some(pieces: Pieces, count: int) -> Pieces:
    """At most ``count`` pieces, evenly spaced."""
    if len(pieces.ids) <= count:
        return pieces
    chosen = np.linspace(0, len(pieces.ids) - 1, count).round().astype(int)
    return Pieces([pieces.ids[i] for i in chosen], pieces.labels[chosen])


def pack(pieces: Pieces, vocabulary: Vocabulary, length: int) -> Rows:
    """Fills rows of ``length``, the longest pieces first, each into the fullest row with room."""
    sizes = np.array([len(ids) + 1 for ids in pieces.ids])
    rows: list[list[int]] = []
    for label in np.unique(pieces.labels):
        open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by room
        members = np.flatnonzero(pieces.labels == label)
        for number in members[np.argsort(-sizes[members], kind="stable")]:
            size = int(sizes[number])
            room = next((r for r in range(size, length) if open_rows[r]), length)
            if room == length:
                open_rows[room].append(len(rows))
                rows.append([])
            row = open_rows[room].pop()
            rows[row].append(int(number))
            open_rows[room - size].append(row)
    start, end = start_of(vocabulary), vocabulary.end
    inputs = np.full((len(rows), length), end, np.int32)
    packed = Rows(inputs, inputs.copy(), np.full_like(inputs, -1), np.zeros(len(rows), np.int32))
    for r, row in enumerate(rows):
        column = 0
        packed.labels[r] = pieces.labels[row[0]]
        for number in row:
            place = slice(column, column + sizes[number])
            packed.inputs[r, place] = [start, *pieces.ids[number]]
            packed.targets[r, place] = [*pieces.ids[number], end]
            packed.pieces[r, place] = number
            column = place.stop
    return packed


def _split(texts: Labelled, *, block: int = 1) -> dict[str, Labelled]:
    """Every tenth block of texts is held out."""
    split: dict[str, Labelled] = {name: [] for name in SPLITS}
    for number, text in enumerate(texts):
        split[SPLITS[(number // block) % 10 == 9]].append(text)
    return split


def _plays() -> dict[str, Labelled]:
    """Speeches without the names of their speakers; the class is the play."""
    lines = [example["text"] for example in open_source("builtin:shakespeare")]
    plays, speeches = iter(PLAYS.items()), []
    play, following = "", next(plays)
    for speech in "\n".join(lines).split("\n\n"):
        words = speech.lstrip("\n").partition("\n")[2]  # after "NAME:"
        if following and words.startswith(following[1]):
            play, following = following[0], next(plays, None)
        if words:
            speeches.append((words, play))
    return _split(speeches, block=BLOCK)


def _archive(path: pathlib.Path) -> dict[str, Labelled]:
    """Zip archive of rt-polarity (N.neg, N.pos) or of the Chinese reviews (N.SPLIT.data)."""
    with zipfile.ZipFile(path) as archive:
        files = {
            name: list(io.TextIOWrapper(archive.open(name), "utf-8", errors="replace"))
            for name in sorted(archive.namelist())
            if name.endswith((".pos", ".neg", ".data"))
        }
    if not files:
        raise ValueError(f"expected *.pos and *.neg or *.data in {path}, got none of them")
    texts: dict[str, Labelled] = {split: [] for split in SPLITS}
    for name, lines in files.items():
        if name.endswith(".data"):
            rows = [line.rstrip("\n").rpartition("\t") for line in lines]
            own = [(text, SENTIMENTS[int(label)]) for text, _, label in rows]
            texts[SPLITS[".train." not in name]] += own
        else:
            own = [(line.strip(), SENTIMENTS[name.endswith(".pos")]) for line in lines]
            for split, part in _split(own).items():
                texts[split] += part
    return texts


def _imdb(folder: pathlib.Path) -> dict[str, Labelled]:
    texts: dict[str, Labelled] = {split: [] for split in SPLITS}
    for split, part in zip(SPLITS, ("train", "test"), strict=True):
        for ending, name in (("neg", "negative"), ("pos", "positive")):
            source = open_source(f"file:{folder}/{part}_{ending}.tsv.xz?columns=id,rating,text")
            texts[split] += [(row["text"].replace("<br />", " "), name) for row in source]
    return texts


def _treebank(folder: pathlib.Path) -> dict[str, Labelled]:
    """SST-2: the sentences whose root is not neutral."""
    texts: dict[str, Labelled] = {split: [] for split in SPLITS}
    for part, split in (("train", SPLITS[0]), ("dev", SPLITS[1]), ("test", SPLITS[1])):
        for example in open_source(f"file:{folder}/{part}.txt.gz"):
            tree = example["text"]
            if tree and tree[1] != "2":
                words = " ".join(re.findall(r"([^\s()]+)\)", tree))
                texts[split].append((words.lower(), SENTIMENTS[tree[1] > "2"]))
    return texts


def _fields(uri: str) -> dict[str, Labelled]:
    """Any source with the fields text and label."""
    texts: dict[str, Labelled] = {split: [] for split in SPLITS}
    for part, split in (("train", SPLITS[0]), ("valid", SPLITS[1]), ("test", SPLITS[1])):
        for example in open_source(uri, split=part):
            if not {"text", "label"} <= example.keys():
                got = f"{sorted(example)} from {uri}"
                raise ValueError(f"data.uri must have the fields text and label, got {got}")
            texts[split].append((str(example["text"]), str(example["label"])))
    return texts
