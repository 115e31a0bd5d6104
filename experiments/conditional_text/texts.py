"""Labelled texts by URI, cut into pieces of tokens, and pieces packed into rows of one class."""

import io
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zoo.data import Vocabulary, build_vocabulary, open_source
from zoo.data.archives import read_zip

from ..command_line import local_path
from ..labelled_texts import Labelled, read_labelled
from .config import Config

SPLITS = ("train", "held out")
SENTIMENTS = ("negative", "positive")
Row = tuple[bool, str, str]  # whether it is held out, text, name of its class

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


def read(uri: str) -> dict[str, Labelled]:
    """Texts with the names of their classes, by split.

    Raises:
        ValueError: if there are fewer than two classes, or splits without some of them.
    """
    scheme, _, rest = uri.partition(":")
    path = local_path(rest)
    if uri == "builtin:shakespeare":
        rows = _plays()
    elif scheme == "file" and path.suffix == ".zip":
        rows = _archive(path)
    elif scheme == "file" and (path / "train_pos.tsv.xz").exists():
        rows = _imdb(path)
    elif scheme == "file" and (path / "train.txt.gz").exists():
        rows = _treebank(path)
    else:
        rows = _fields(uri)
    texts: dict[str, Labelled] = {split: [] for split in SPLITS}
    for held_out, text, label in rows:
        texts[SPLITS[held_out]].append((text, label))
    classes, others = ({label for _, label in texts[split]} for split in SPLITS)
    if len(classes) < 2 or others != classes:
        raise ValueError(
            f"data.uri must give two classes or more, with texts of each in training and held "
            f"out, got {sorted(classes)} and {sorted(others)} from {uri}"
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


def pack(pieces: Pieces, vocabulary: Vocabulary, length: int) -> list[dict[str, np.ndarray]]:
    """Packs pieces into rows of one class, the longest first, each into the fullest row with room.

    Returns:
        One example per row: ``inputs`` and ``targets`` int32 [T], ``pieces`` int32 [T] with the
        number of the piece, -1 where there is none, and ``labels`` int32 [].
    """
    sizes = np.array([len(ids) + 1 for ids in pieces.ids])
    rows: list[list[int]] = []
    for label in np.unique(pieces.labels):
        open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by room
        members = np.flatnonzero(pieces.labels == label)
        for number in members[np.argsort(-sizes[members], kind="stable")].tolist():
            size = int(sizes[number])
            room = next((r for r in range(size, length) if open_rows[r]), length)
            if room == length:
                open_rows[room].append(len(rows))
                rows.append([])
            row = open_rows[room].pop()
            rows[row].append(number)
            open_rows[room - size].append(row)
    start, end = start_of(vocabulary), vocabulary.end
    examples = []
    for numbers in rows:
        columns, column = np.full((3, length), [[end], [end], [-1]], np.int32), 0
        for number in numbers:
            ids, size = pieces.ids[number], sizes[number]
            place = slice(column, column + size)
            columns[:, place] = [start, *ids], [*ids, end], [number] * size
            column = place.stop
        example = dict(zip(("inputs", "targets", "pieces"), columns, strict=True))
        examples.append(example | {"labels": pieces.labels[numbers[0]]})
    return examples


def _plays() -> Iterator[Row]:
    """Speeches without the names of their speakers; the class is the play."""
    lines = [example["text"] for example in open_source("builtin:shakespeare")]
    plays, number = iter(PLAYS.items()), 0
    play, following = "", next(plays)
    for speech in "\n".join(lines).split("\n\n"):
        words = speech.lstrip("\n").partition("\n")[2]  # after "NAME:"
        if following and words.startswith(following[1]):
            play, following = following[0], next(plays, None)
        if words:
            yield (number // BLOCK) % 10 == 9, words, play
            number += 1


def _archive(path: pathlib.Path) -> Iterator[Row]:
    """Zip archive of rt-polarity (N.neg, N.pos) or of the Chinese reviews (N.SPLIT.data)."""
    for name, content in read_zip(path, lambda name: name.endswith((".data", ".neg", ".pos"))):
        lines = io.TextIOWrapper(io.BytesIO(content), "utf-8", errors="replace")
        for number, line in enumerate(lines):
            if not name.endswith(".data"):
                yield number % 10 == 9, line.strip(), SENTIMENTS[name.endswith(".pos")]
                continue
            text, _, label = line.rstrip("\n").rpartition("\t")
            if label not in ("0", "1"):
                where = f"{path}/{name}, line {number + 1}"
                raise ValueError(f"{where}: expected TEXT TAB 0 or 1, got the label {label!r:.80}")
            yield ".train." not in name, text, SENTIMENTS[int(label)]


def _imdb(folder: pathlib.Path) -> Iterator[Row]:
    for part in ("train", "test"):
        for ending, name in (("neg", "negative"), ("pos", "positive")):
            uri = f"file:{folder}/{part}_{ending}.tsv.xz?columns=id,rating,text"
            for row in open_source(uri):
                yield part == "test", row["text"].replace("<br />", " "), name


def _treebank(folder: pathlib.Path) -> Iterator[Row]:
    """SST-2: the sentences whose root is not neutral."""
    for part in ("train", "dev", "test"):
        for example in open_source(f"file:{folder}/{part}.txt.gz"):
            tree = example["text"]
            if tree and tree[1] != "2":
                words = " ".join(re.findall(r"([^\s()]+)\)", tree))
                yield part != "train", words.lower(), SENTIMENTS[tree[1] > "2"]


def _fields(uri: str) -> Iterator[Row]:
    """Any source with the fields text and label."""
    for held_out, rows in enumerate(read_labelled(uri)):
        yield from ((bool(held_out), text, label) for text, label in rows)
