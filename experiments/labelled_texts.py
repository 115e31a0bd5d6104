"""Texts with the names of their classes: what fine-tuning and generation by class read."""

import re

import numpy as np

from zoo.data import folders, open_source

from .command_line import local_path

Labelled = list[tuple[str, str]]  # text, name of its class
HELD_OUT = 10  # one text in so many of each class, where the source has no splits


def read_labelled(
    uri: str, *, text: str = "text", label: str = "label", flag: str = "data.uri", advice: str = ""
) -> tuple[Labelled, Labelled]:
    """Texts to train on and held-out ones.

    ``{split}`` in the URI stands for train and test, and sets of ``tfds:`` and ``hf:`` have their
    own splits; of any other source every class has a tenth held out, drawn with a fixed seed. In a
    folder of text files the class is the subfolder, or the file where there is none, and a text is
    a paragraph, or a line where no line is blank.

    Args:
        uri: as for ``zoo.data.open_source``.
        text: field of the text.
        label: field of the class, anything that has a name.
        flag: names the URI in errors.
        advice: what else one can do about missing fields.

    Raises:
        ValueError: the source has no such fields, less than two classes, or a class without texts
            in one of the splits.
    """
    if "{split}" in uri or uri.startswith(("tfds:", "hf:")):
        train, test = (_rows(uri, split, text, label, flag, advice) for split in ("train", "test"))
    else:
        train, test = _held_out(_files(uri) or _rows(uri, None, text, label, flag, advice))
    names, others = ({name for _, name in rows} for rows in (train, test))
    if len(names) < 2 or not others <= names:
        raise ValueError(
            f"{flag} must give two classes or more, each with several texts, got {sorted(names)} "
            f"to train on and {sorted(others)} held out from {uri}"
        )
    return train, test


def _files(uri: str) -> Labelled:
    """Of a folder or a pattern of text files; nothing of any other source."""
    path = local_path(uri.partition("?")[0])
    if not uri.startswith("file:") or not (path.is_dir() or "*" in path.name):
        return []
    rows = []
    for file in folders.list_files(path, uri):
        if folders.kind_of(file) in (*folders.TABLES, *folders.IMAGES):
            return []
        lines = [example["text"] for example in open_source(f"file:{file}")]
        paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
        name = folders.class_of(folders.root_of(path), file) or file.name.partition(".")[0]
        rows += [(words.strip(), name) for words in (paragraphs if paragraphs[1:] else lines)]
    return [row for row in rows if row[0]]


def _rows(uri: str, split: str | None, text: str, label: str, flag: str, advice: str) -> Labelled:
    source = open_source(uri, split=split)
    if not {text, label} <= source[0].keys():
        raise ValueError(
            f"{flag} must have the fields {text} and {label}, {uri} has {', '.join(source[0])}; "
            f"{advice}where the first line of a table is no header, write ?columns=text,label "
            "behind its path"
        )
    rows = [(example[text], str(example[label])) for example in source]
    for number, (words, name) in enumerate(rows, start=1):
        if not isinstance(words, str) or not words.strip() or not name.strip():
            raise ValueError(
                f"{flag}: example {number} of {uri} has no text or no label, got {(words, name)}"
            )
    return rows


def _held_out(rows: Labelled) -> tuple[Labelled, Labelled]:
    """A tenth of each class, at least one; both parts in the order of the source."""
    names = np.array([name for _, name in rows])
    held_out = np.zeros(len(rows), bool)
    generator = np.random.default_rng(0)
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        held_out[generator.permutation(own)[: max(1, len(own) // HELD_OUT)]] = True
    return (
        [row for row, out in zip(rows, held_out, strict=True) if not out],
        [row for row, out in zip(rows, held_out, strict=True) if out],
    )
