"""What the experiments with labelled images share: the two splits of a set, and some of many."""

from typing import Any

import numpy as np

from zoo.data import open_source


def open_splits(uri: str) -> tuple[Any, Any]:
    """The sources of training and test; the digits, which have no split, give every fifth."""
    if not uri.startswith("builtin:"):
        train, test = (open_source(uri, split=split) for split in ("train", "test"))
        return train, test
    source = open_source(uri)
    rows = range(len(source))
    return [source[i] for i in rows if i % 5], [source[i] for i in rows if i % 5 == 0]


def head(examples: Any, count: int | None) -> Any:
    """Some examples of a source, evenly out of all of it, as sets may be sorted by class."""
    if count is None or count >= len(examples):
        return examples
    return [examples[int(i)] for i in np.linspace(0, len(examples) - 1, count)]
