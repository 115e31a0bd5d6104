"""Labelled texts by URI, cut into pieces of tokens, and pieces packed into rows of one class."""

import io
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments.command_line import local_path
from experiments.conditional_text.config import Config
from zoo.data import (
    build_character_vocabulary,
    build_word_vocabulary,
    open_source,
)
from zoo.extras import require

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
BLOCK = 20  # speeches that follow on each other are held out together
_STOPS = frozenset(".!?;。！？；…~")


class Tokens(NamedTuple):
    """How a text becomes ids and back."""

    size: int
    start: int  # begins a piece
    end: int  # ends it
    banned: tuple[int, ...]  # never written
    names: tuple[str, ...]  # the token of every id
    encode: Callable[[str], np.ndarray]
    decode: Callable[[Any], str]


class Pieces(NamedTuple):
    """The texts of one split in ids."""

    ids: list[np.ndarray]  # without start and end
    labels: np.ndarray  # int32 [N]


class Rows(NamedTuple):
    """Pieces side by side, those of a row all of one class."""

    inputs: np.ndarray  # int32 [R, T]
    targets: np.ndarray  # int32 [R, T]
    pieces: np.ndarray  # int32 [R, T], number of the piece; -1 where there is none
    labels: np.ndarray  # int32 [R]


def read(uri: str) -> dict[str, Labelled]:
    """Texts with the names of their classes, by split.

    Raises:
        ValueError: if there is nothing to read, or not two classes.
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
    classes = {label for _, label in texts["train"]}
    for split in SPLITS:
        found = {label for _, label in texts[split]}
        if len(classes) < 2 or found != classes:
            raise ValueError(
                f"data.uri must give two classes or more, with texts of each in training and held "
                f"out, got {sorted(classes)} and {sorted(found)} from {uri}"
            )
    return texts


def make_tokens(config: Config, texts: Labelled) -> Tokens:
    """The tokens of the training texts, or those of a pretrained model."""
    if config.model.pretrained:
        return _pretrained_tokens(pathlib.Path(config.model.pretrained).expanduser())
    data, lines = config.data, [text for text, _ in texts]
    if data.tokens == "characters":
        vocabulary = build_character_vocabulary(lines)
    else:
        vocabulary = build_word_vocabulary(
            lines, max_size=data.max_vocabulary, lowercase=data.lowercase, split=data.tokens
        )
    return Tokens(
        size=len(vocabulary),
        start=vocabulary.end,
        end=vocabulary.end,
        banned=(vocabulary.unknown,),
        names=vocabulary.tokens,
        encode=lambda text: vocabulary.encode(" ".join(text.split("\n"))),
        decode=vocabulary.decode,
    )


def cut(texts: Labelled, classes: list[str], tokens: Tokens, longest: int) -> Pieces:
    """Pieces of at most ``longest`` tokens, cut behind the last full stop that they reach."""
    stops = [number for number, name in enumerate(tokens.names) if name in _STOPS]
    ids, labels = [], []
    for text, label in texts:
        rest = tokens.encode(text)
        while len(rest):
            ends = np.flatnonzero(np.isin(rest[:longest], stops)) + 1
            whole = len(rest) <= longest
            size = len(rest) if whole else int(ends[-1]) if len(ends) else longest
            ids.append(rest[:size])
            labels.append(classes.index(label))
            rest = rest[size:]
    return Pieces(ids, np.array(labels, np.int32))


def some(pieces: Pieces, count: int) -> Pieces:
    """At most ``count`` pieces, evenly spaced."""
    if len(pieces.ids) <= count:
        return pieces
    chosen = np.linspace(0, len(pieces.ids) - 1, count).round().astype(int)
    return Pieces([pieces.ids[i] for i in chosen], pieces.labels[chosen])


def pack(pieces: Pieces, tokens: Tokens, length: int) -> Rows:
    """Fills rows of ``length``, the longest pieces first, each into the fullest row with room."""
    sizes = np.array([len(ids) + 1 for ids in pieces.ids])
    rows: list[list[int]] = []
    for label in np.unique(pieces.labels):
        open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by room
        members = np.flatnonzero(pieces.labels == label)
        for number in members[np.argsort(-sizes[members], kind="stable")]:
            size = int(sizes[number])
            room = next((r for r in range(size, length) if open_rows[r]), None)
            if room is None:
                rows.append([])
                row, room = len(rows) - 1, length
            else:
                row = open_rows[room].pop()
            rows[row].append(int(number))
            open_rows[room - size].append(row)
    shape = (len(rows), length)
    packed = Rows(
        inputs=np.full(shape, tokens.end, np.int32),
        targets=np.full(shape, tokens.end, np.int32),
        pieces=np.full(shape, -1, np.int32),
        labels=np.array([pieces.labels[row[0]] for row in rows], np.int32),
    )
    for r, row in enumerate(rows):
        column = 0
        for number in row:
            place = slice(column, column + sizes[number])
            packed.inputs[r, place] = [tokens.start, *pieces.ids[number]]
            packed.targets[r, place] = [*pieces.ids[number], tokens.end]
            packed.pieces[r, place] = number
            column = place.stop
    return packed


def _split(texts: Labelled, *, block: int = 1) -> dict[str, Labelled]:
    """Every tenth block of texts is held out."""
    held_out = [(number // block) % 10 == 9 for number in range(len(texts))]
    return {
        split: [text for text, held in zip(texts, held_out, strict=True) if held == wanted]
        for split, wanted in zip(SPLITS, (False, True), strict=True)
    }


def _plays() -> dict[str, Labelled]:
    """Speeches without the names of their speakers; the class is the play."""
    lines = [example["text"] for example in open_source("builtin:shakespeare")]
    plays, speeches = iter(PLAYS.items()), []
    play, following = "", next(plays)
    for speech in "\n".join(lines).split("\n\n"):
        first, _, words = speech.lstrip("\n").partition("\n")
        if following and words.startswith(following[1]):
            play, following = following[0], next(plays, None)
        if words:
            speeches.append((words, play))
        elif not first.endswith(":"):
            raise ValueError(f"expected NAME: and a speech, got {speech!r}")
    return _split(speeches, block=BLOCK)


def _archive(path: pathlib.Path) -> dict[str, Labelled]:
    """Zip archive of rt-polarity (N.pos, N.neg) or of the Chinese reviews (N.SPLIT.data)."""
    with zipfile.ZipFile(path) as archive:
        files = {
            name: list(io.TextIOWrapper(archive.open(name), "utf-8", errors="replace"))
            for name in archive.namelist()
            if name.endswith((".pos", ".neg", ".data"))
        }
    kinds = {ending: [n for n in files if n.endswith(ending)] for ending in (".pos", ".neg")}
    if all(kinds.values()):
        texts = {split: Labelled() for split in SPLITS}
        for ending, name in ((".neg", "negative"), (".pos", "positive")):
            own = [(line.strip(), name) for line in files[kinds[ending][0]]]
            for split, part in _split(own).items():
                texts[split] += part
        return texts
    texts = {split: Labelled() for split in SPLITS}
    for name, lines in sorted(files.items()):
        split = SPLITS[0] if ".train." in name else SPLITS[1]
        for line in lines:
            text, _, label = line.rstrip("\n").rpartition("\t")
            texts[split].append((text, SENTIMENTS[int(label)]))
    if not files:
        raise ValueError(f"expected *.pos and *.neg or *.data in {path}, got none of them")
    return texts


def _imdb(folder: pathlib.Path) -> dict[str, Labelled]:
    texts = {split: Labelled() for split in SPLITS}
    for split, part in zip(SPLITS, ("train", "test"), strict=True):
        for ending, name in (("neg", "negative"), ("pos", "positive")):
            source = open_source(f"file:{folder}/{part}_{ending}.tsv.xz?columns=id,rating,text")
            texts[split] += [
                (source[i]["text"].replace("<br />", " "), name) for i in range(len(source))
            ]
    return texts


def _treebank(folder: pathlib.Path) -> dict[str, Labelled]:
    """SST-2: the sentences whose root is not neutral."""
    texts = {split: Labelled() for split in SPLITS}
    for part, split in (("train", SPLITS[0]), ("dev", SPLITS[1]), ("test", SPLITS[1])):
        for example in open_source(f"file:{folder}/{part}.txt.gz"):
            tree = example["text"]
            if tree and tree[1] != "2":
                words = " ".join(re.findall(r"([^\s()]+)\)", tree))
                texts[split].append((words.lower(), SENTIMENTS[tree[1] > "2"]))
    return texts


def _fields(uri: str) -> dict[str, Labelled]:
    """Any source with the fields text and label."""

    def read(source: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        for example in source:
            if not {"text", "label"} <= example.keys():
                raise ValueError(
                    f"data.uri must have the fields text and label, got {sorted(example)} from "
                    f"{uri}"
                )
            yield str(example["text"]), str(example["label"])

    parts = {
        split: list(read(open_source(uri, split=split))) for split in ("train", "valid", "test")
    }
    return {SPLITS[0]: parts["train"], SPLITS[1]: parts["valid"] + parts["test"]}


def _pretrained_tokens(folder: pathlib.Path) -> Tokens:
    model = require("tokenizers", "data").Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.encode_special_tokens = True
    special = {
        name: model.token_to_id(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    }
    if missing := [name for name, number in special.items() if number is None]:
        raise ValueError(f"model.pretrained must have BERT's special tokens, {missing} are missing")
    return Tokens(
        size=model.get_vocab_size(),
        start=special["[CLS]"],
        end=special["[SEP]"],
        banned=tuple(number for name, number in special.items() if name != "[SEP]"),
        names=tuple(model.id_to_token(number) for number in range(model.get_vocab_size())),
        encode=lambda text: np.array(model.encode(text, add_special_tokens=False).ids, np.int32),
        decode=lambda ids: model.decode([int(number) for number in ids]),
    )
