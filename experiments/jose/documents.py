"""Corpora with labels and splits, by URI."""

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
        uri: ``builtin:shakespeare``: speeches, with the play's most talkative speakers as classes;
            ``file:…{part}…`` for the parts of the film reviews; any other ``file:`` as the source
            has it.

    Returns:
        The documents.
    """
    if uri == "builtin:shakespeare":
        return _speeches(uri)
    if "{part}" in uri:
        return _reviews(uri)
    examples = list(open_source(uri))
    texts = [str(example["text"]).replace("\n", " ") for example in examples]
    test = np.array([example.get("split") == "test" for example in examples])
    if "label" not in examples[0]:
        return Documents(texts, None, (), test)
    labels = np.array([int(example["label"]) for example in examples])
    groups = {int(e["label"]): str(e.get("group", e["label"])) for e in examples}
    return Documents(texts, labels, tuple(groups[i] for i in sorted(groups)), test)


def _speeches(uri: str, classes: int = 20) -> Documents:
    """A speech is a speaker's name and the lines to the next blank one."""
    blocks = "\n".join(example["text"] for example in open_source(uri)).split("\n\n")
    pairs = [block.strip().split(":\n", 1) for block in blocks if ":\n" in block]
    speakers = [speaker for speaker, _ in pairs]
    words = np.array([len(text.split()) for _, text in pairs])
    totals = {name: 0 for name in speakers}
    for name, count in zip(speakers, words, strict=True):
        totals[name] += int(count)
    names = tuple(sorted(totals, key=lambda name: -totals[name])[:classes])
    number = {name: row for row, name in enumerate(names)}
    labels = np.array([number.get(name, -1) for name in speakers])
    # A word or two say little of who speaks.
    labels[words < 20] = -1
    test = np.arange(len(pairs)) % 5 == 0
    return Documents([text.replace("\n", " ") for _, text in pairs], labels, names, test)


def _reviews(uri: str) -> Documents:
    texts, labels, test = [], [], []
    for part in IMDB_PARTS:
        for example in open_source(uri.replace("{part}", part)):
            texts.append(example["text"].replace("<br />", " "))
            labels.append({"pos": 1, "neg": 0}.get(part.partition("_")[2], -1))
            test.append(part.startswith("test"))
    return Documents(texts, np.array(labels), ("negative", "positive"), np.array(test))
