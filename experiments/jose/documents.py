"""Corpora with labels and splits, by URI."""

import collections
import re
from typing import NamedTuple

import numpy as np

from zoo.data import open_source

IMDB_PARTS = ("train_pos", "train_neg", "test_pos", "test_neg", "train_unsup")


class Documents(NamedTuple):
    """Texts and what is known of them."""

    texts: list[str]
    labels: np.ndarray | None  # int [N], -1 unknown
    names: tuple[str, ...]  # of the classes
    test: np.ndarray  # bool [N], held out from the classifier


def read_documents(uri: str) -> Documents:
    """Reads documents.

    Args:
        uri: ``builtin:shakespeare``: passages, with the most talkative speakers as classes;
            ``file:…{part}…`` for the parts of the film reviews; any other ``file:`` as the source
            has it.

    Returns:
        The documents.
    """
    if uri == "builtin:shakespeare":
        return _passages(uri)
    if "{part}" in uri:
        return _reviews(uri)
    examples = list(open_source(uri))
    labelled = "label" in examples[0]
    for number, example in enumerate(examples, start=1):
        if "text" not in example or ("label" in example) is not labelled:
            raise ValueError(
                f"data.uri: every document needs a text, and a label if the first one has one; "
                f"document {number} has {', '.join(example)}"
            )
        if example.get("split", "train") not in ("train", "test"):
            raise ValueError(
                f"data.uri: the split must be train or test, got {example['split']!r} in document "
                f"{number}"
            )
    texts = [str(example["text"]).replace("\n", " ") for example in examples]
    test = np.array([example.get("split") == "test" for example in examples])
    if not labelled:
        return Documents(texts, None, (), test)
    words = sorted({str(example["label"]) for example in examples})
    if not any(re.fullmatch(r"\s*[+-]?\d+\s*", word) for word in words):
        labels = np.array([words.index(str(example["label"])) for example in examples])
        return Documents(texts, labels, tuple(words), test)
    given = np.array([_label(example["label"], n) for n, example in enumerate(examples, start=1)])
    groups = {label: str(e.get("group", label)) for label, e in zip(given, examples, strict=True)}
    classes = [label for label in sorted(groups) if label >= 0]
    # Numbered from 0 without gaps, as the names are looked up.
    labels = np.where(given >= 0, np.searchsorted(classes, given), -1)
    return Documents(texts, labels, tuple(groups[label] for label in classes), test)


def _label(value: object, number: int) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(
            f"data.uri: a label must be an integer, -1 where it is unknown, got {value!r} in "
            f"document {number}"
        ) from None


def _passages(uri: str, classes: int = 20, least: int = 150) -> Documents:
    """Neighbouring speeches, 150 words or more; the class is its main great speaker."""
    blocks = "\n".join(example["text"] for example in open_source(uri)).split("\n\n")
    speeches = [block.strip().split(":\n", 1) for block in blocks if ":\n" in block]
    totals: collections.Counter[str] = collections.Counter()
    passages: list[tuple[list[str], collections.Counter[str]]] = [([], collections.Counter())]
    for speaker, text in speeches:
        words = len(text.split())
        totals[speaker] += words
        if passages[-1][1].total() >= least:
            passages.append(([], collections.Counter()))
        passages[-1][0].append(text.replace("\n", " "))
        passages[-1][1][speaker] += words
    names = tuple(name for name, _ in totals.most_common(classes))
    labels = np.full(len(passages), -1)
    for row, (_, shares) in enumerate(passages):
        known = [name for name, _ in shares.most_common() if name in names]
        labels[row] = names.index(known[0]) if known else -1
    test = np.arange(len(passages)) % 5 == 0
    return Documents([" ".join(texts) for texts, _ in passages], labels, names, test)


def _reviews(uri: str) -> Documents:
    texts, labels, test = [], [], []
    for part in IMDB_PARTS:
        for example in open_source(uri.replace("{part}", part)):
            texts.append(example["text"].replace("<br />", " "))
            labels.append({"pos": 1, "neg": 0}.get(part.partition("_")[2], -1))
            test.append(part.startswith("test"))
    return Documents(texts, np.array(labels), ("negative", "positive"), np.array(test))
