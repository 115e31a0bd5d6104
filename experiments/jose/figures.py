"""Maps of vectors in the plane."""

from typing import Any

import numpy as np

from zoo import extras
from zoo.spherical import JoseEmbeddings

from .documents import Documents

LEAST = 5  # points that t-SNE can place


def check_installed() -> None:
    """An ImportError that says what to install, if what draws and scores is missing."""
    extras.require("matplotlib.figure", "plot")
    extras.require("sklearn", "data")
    extras.require("scipy", "data")


def map_of_words(embeddings: JoseEmbeddings, count: int = 200) -> Any:
    """The most frequent words, each beside its point; None if there are too few."""
    words = embeddings.vocabulary.tokens[:count]
    if len(words) < LEAST:
        return None
    figure, axes, points = _plane(embeddings.words[:count], "The most frequent words")
    axes.scatter(*points.T, s=9, linewidths=0)
    for point, word in zip(points, words, strict=True):
        axes.annotate(word, point, (2, 2), textcoords="offset points", fontsize=7)
    return figure


def map_of_documents(embeddings: JoseEmbeddings, documents: Documents, most: int) -> Any:
    """At most so many documents, colored by class; None if there are too few."""
    known = (documents.labels >= 0) & embeddings.documents.any(axis=1)
    rows = np.flatnonzero(known)
    if len(rows) < LEAST:
        return None
    rows = np.random.default_rng(0).choice(rows, min(most, len(rows)), replace=False)
    title = f"{len(rows):,} documents by class"
    figure, axes, points = _plane(embeddings.documents[rows], title)
    labels = documents.labels[rows]
    for label in np.unique(labels):
        mark = {"s": 9, "marker": "os^v"[label // 10 % 4], "color": f"C{label % 10}"}
        chosen = points[labels == label]
        axes.scatter(*chosen.T, label=documents.names[label], linewidths=0, **mark)
    axes.legend(fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _plane(vectors: np.ndarray, title: str, seed: int = 0) -> tuple[Any, Any, np.ndarray]:
    """A figure, its axes, and the points of t-SNE with cosine distances."""
    figure = extras.require("matplotlib.figure", "plot").Figure((8, 7), layout="constrained")
    manifold = extras.require("sklearn.manifold", "data")
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # On unit vectors the squared distance is 2 - 2 cos.
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    points = manifold.TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(unit)
    axes = figure.subplots()
    axes.set(xticks=[], yticks=[], title=title)
    return figure, axes, points
