"""What embeddings are worth: word similarity, document clustering, nearest neighbours.

Word similarity is Spearman's correlation of cosines with human scores; clusters of k-means (also
with cosines) are compared with known classes by mutual information, its normalised form, the
adjusted Rand index and purity; a document is classified by its three nearest neighbours.

Source: the evaluations of arXiv 1911.01196, section 5. Needs the extra ``data`` (scikit-learn).
"""

import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from zoo import _checks, extras
from zoo.spherical.embeddings import JoseEmbeddings
from zoo.spherical.word2vec import is_number


class WordSimilarity(NamedTuple):
    """Result of :func:`word_similarity`."""

    spearman: float  # NaN with fewer than two pairs, or where all cosines or scores are equal
    pairs: int  # whose words are both in the vocabulary
    coverage: float  # their share of all pairs


def word_similarity(
    embeddings: JoseEmbeddings, pairs: Iterable[tuple[str, str, float]]
) -> WordSimilarity:
    """Spearman's rank correlation of cosines with human scores.

    Args:
        embeddings: the model.
        pairs: two words and a score each; words are lowered.

    Returns:
        The correlation over the pairs whose words are both known, and how many those are.

    >>> from zoo.spherical import train_jose
    >>> model = train_jose(["sun moon sun moon", "ox cow ox cow"] * 9, dimension=4, passes=1)
    >>> word_similarity(model, [("Sun", "moon", 9.0), ("sun", "iron", 1.0)]).coverage
    0.5
    """
    ids = embeddings.vocabulary.ids
    pairs = [(first.lower(), second.lower(), float(score)) for first, second, score in pairs]
    known = [(ids[a], ids[b], score) for a, b, score in pairs if a in ids and b in ids]
    coverage = len(known) / max(len(pairs), 1)
    if len(known) < 2:
        return WordSimilarity(float("nan"), len(known), coverage)
    first, second, scores = map(np.array, zip(*known, strict=True))
    cosines = np.sum(embeddings.words[first] * embeddings.words[second], axis=1)
    if np.ptp(cosines) == 0 or np.ptp(scores) == 0:  # no order
        return WordSimilarity(float("nan"), len(known), coverage)
    spearman = extras.require("scipy.stats", "data").spearmanr(cosines, scores).statistic
    return WordSimilarity(float(spearman), len(known), coverage)


def read_word_pairs(path: str | os.PathLike[str]) -> list[tuple[str, str, float]]:
    r"""Reads WordSim-353, MEN or SimLex-999 as they are distributed.

    Args:
        path: two words and a score per line, separated by commas, tabs or blanks; perhaps a first
            line of names, by which SimLex's column is found.

    Returns:
        Two words and a score each.

    Raises:
        ValueError: if a line has no two words or no finite score, or the file is not UTF-8.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "pairs.csv")
    ...     _ = path.write_text("Word 1,Word 2,Human (mean)\ntiger,cat,7.35\n")
    ...     read_word_pairs(path)
    [('tiger', 'cat', 7.35)]
    """
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} ({error.reason}); convert it"
        ) from error
    lines = [line for line in text.split("\n") if line.strip()]
    separator = next((mark for mark in "\t," if mark in lines[0]), None) if lines else None
    rows = [[field.strip() for field in line.split(separator)] for line in lines]
    named = bool(rows) and len(rows[0]) > 2 and not is_number(rows[0][2])
    column = rows[0].index("SimLex999") if named and "SimLex999" in rows[0] else 2
    pairs = []
    for line, row in list(zip(lines, rows, strict=True))[named:]:
        score = float(row[column]) if len(row) > column and is_number(row[column]) else math.nan
        if not (all(row[:2]) and math.isfinite(score)):
            raise ValueError(f"{path}: expected two words and a score, got {line.strip()!r:.200}")
        pairs.append((row[0], row[1], score))
    return pairs


def cluster_documents(
    vectors: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    spherical: bool = False,
    runs: int = 10,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Clusters by k-means, as many clusters as classes, and compares with the classes.

    Args:
        vectors: ``[documents, D]``.
        labels: ``[documents]`` classes 0 … K-1.
        spherical: k-means with cosines: centers are normalised.
        runs: from different starts.
        seed: of the starts.

    Returns:
        Mean and standard deviation over the runs of ``mutual_information`` (nats),
        ``normalized_mutual_information``, ``adjusted_rand`` and ``purity``.

    Raises:
        ValueError: if there is not one label per vector or no vector at all, a vector is not
            finite, or a number is out of its range.

    >>> found = cluster_documents(np.repeat(np.eye(2), 5, axis=0), [0] * 5 + [1] * 5, runs=2)
    >>> found["purity"]
    (1.0, 0.0)
    """
    labels = _one_per_vector("", vectors, labels)
    runs = _checks.count("runs", runs, at_least=1)
    seed = _checks.count("seed", seed, at_most=2**32 - 1 - runs)
    metrics = extras.require("sklearn.metrics", "data")
    classes, rows = len(np.unique(labels)), []
    for run in range(runs):
        if spherical:
            found = _spherical_k_means(vectors, classes, np.random.default_rng([seed, run]))
        else:
            cluster = extras.require("sklearn.cluster", "data")
            means = cluster.KMeans(classes, n_init=1, random_state=seed + run)
            found = means.fit(vectors).labels_
        table = metrics.cluster.contingency_matrix(labels, found)
        scores = {
            "mutual_information": metrics.mutual_info_score(labels, found),
            "normalized_mutual_information": metrics.normalized_mutual_info_score(labels, found),
            "adjusted_rand": metrics.adjusted_rand_score(labels, found),
            "purity": table.max(axis=0).sum() / len(labels),
        }
        rows.append(scores)
    columns = {name: [float(row[name]) for row in rows] for name in rows[0]}
    return {name: (float(np.mean(c)), float(np.std(c))) for name, c in columns.items()}


def classify_documents(
    train_vectors: np.ndarray,
    train_labels: Sequence[int] | np.ndarray,
    test_vectors: np.ndarray,
    test_labels: Sequence[int] | np.ndarray,
    *,
    neighbours: int = 3,
) -> dict[str, float]:
    """Classifies documents by their nearest neighbours.

    Args:
        train_vectors: ``[documents, D]``.
        train_labels: their classes.
        test_vectors: ``[others, D]``.
        test_labels: their classes.
        neighbours: how many vote.

    Returns:
        ``macro_f1`` and ``micro_f1``.

    Raises:
        ValueError: if there is not one label per vector or no vector at all, a vector is not
            finite, or there are fewer vectors than ``neighbours``.

    >>> classify_documents(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 1], neighbours=1)["micro_f1"]
    0.6666666666666666
    """
    train_labels = _one_per_vector("train_", train_vectors, train_labels)
    test_labels = _one_per_vector("test_", test_vectors, test_labels)
    most = len(train_labels)
    neighbours = _checks.count("neighbours", neighbours, at_least=1, at_most=most)
    model = extras.require("sklearn.neighbors", "data").KNeighborsClassifier(neighbours)
    found = model.fit(train_vectors, train_labels).predict(test_vectors)
    score = extras.require("sklearn.metrics", "data").f1_score
    averages = ("macro", "micro")
    return {f"{kind}_f1": float(score(test_labels, found, average=kind)) for kind in averages}


def _one_per_vector(
    prefix: str, vectors: np.ndarray, labels: Sequence[int] | np.ndarray
) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != vectors.shape[:1] or not len(labels):
        raise ValueError(
            f"{prefix}labels must be one per vector, and at least one: {len(vectors)}, got "
            f"{len(labels)}"
        )
    if not np.isfinite(vectors).all():
        raise ValueError(f"{prefix}vectors must be finite, got NaN or infinity")
    return labels


def _spherical_k_means(
    vectors: np.ndarray, count: int, random: np.random.Generator, rounds: int = 100
) -> np.ndarray:
    """The cluster of each vector; scikit-learn has no k-means with cosines."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    # Starts as k-means++: distant points are more likely.
    centers = unit[[random.integers(len(unit))]]
    while len(centers) < count:
        gaps = np.maximum(1 - (unit @ centers.T).max(axis=1), 0).astype(float) + 1e-12
        centers = np.concatenate([centers, unit[[random.choice(len(unit), p=gaps / gaps.sum())]]])
    found = np.full(len(unit), -1)
    for _ in range(rounds):
        before, found = found, np.argmax(unit @ centers.T, axis=1)
        if (before == found).all():
            break
        sums = np.zeros_like(centers)
        np.add.at(sums, found, unit)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centers = np.where(lengths > 0, sums / np.maximum(lengths, 1e-30), centers)
    return found
