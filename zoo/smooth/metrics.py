"""Accuracy, precision, recall, F1, AUC as smooth functions of probabilities or scores.

Each is the exact metric with the indicator of the predicted class replaced by its probability:

    accuracy   mean_i p_i[label_i]
    precision  Σ t p / Σ p        recall  Σ t p / Σ t        F1  2 Σ t p / Σ (t + p)
    AUC        mean over (positive, negative) pairs of σ((s_positive - s_negative)/τ)

Maximise them (a loss is their negative). Two warnings of the source. The gradient of the accuracy
vanishes for samples that are badly wrong: start with the cross entropy. Precision and F1 are ratios
of sums over the batch, so that their mean over batches is below the value of the whole set, far
below it where few rows are positive: see :func:`zoo.smooth.streaming_f1`.

Source: Jianlin Su, «Function smoothing», 2019, https://kexue.fm/archives/6620; gradients:
https://kexue.fm/archives/7708, 9098; multi-label cross entropy: https://kexue.fm/archives/7359,
9064.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo.smooth.numerics import check_temperature, widen
from zoo.smooth.rank import smooth_counts

Average = Literal["binary", "macro", "micro"]
AVERAGES = ("binary", "macro", "micro")


class Counts(NamedTuple):
    """Expected numbers of rows, of one class or of each."""

    true_positive: jax.Array  # [] or [K], Σ t p
    predicted: jax.Array  # [] or [K], Σ p
    actual: jax.Array  # [] or [K], Σ t


def smooth_accuracy(
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Expected share of right answers when classes are drawn from the probabilities.

    Args:
        probabilities: ``[batch, classes]``, or ``[batch]`` of the positive class. They are taken as
            they are: that a row sums to 1 is not checked.
        labels: int ``[batch]`` in 0 … K - 1; for one probability a row 0 or 1 (or a share).
        where: bool ``[batch]``, which rows count.
        axis_name: the batch is split over this mapped axis.

    Returns:
        A scalar in the dtype of ``probabilities``, summed in at least float32; 0 without any row,
        NaN if a label of a row that counts is out of range.

    Raises:
        TypeError: if ``probabilities`` is not floating or labels of classes are not integers.
        ValueError: if shapes do not fit.

    >>> import jax.numpy as jnp
    >>> print(smooth_accuracy(jnp.array([[0.9, 0.1], [0.6, 0.4]]), jnp.array([0, 1])))
    0.65

    Reference: https://kexue.fm/archives/6620.
    """
    probabilities, wide = widen(probabilities, "smooth_accuracy: probabilities")
    labels = jnp.asarray(labels)
    if labels.ndim == probabilities.ndim:
        targets = _check_targets("smooth_accuracy", wide, labels)
        mask = _mask("smooth_accuracy", where, labels.shape)
        targets, wide = jnp.where(mask, targets, 0), jnp.where(mask, wide, 0)
        hits = targets * wide + (1 - targets) * (1 - wide)
    else:
        _check_classes("smooth_accuracy", wide, labels)
        mask = _mask("smooth_accuracy", where, labels.shape)
        inside = (labels >= 0) & (labels < wide.shape[-1])
        hits = jnp.take_along_axis(wide, jnp.where(inside, labels, 0)[..., None], axis=-1)[..., 0]
        hits = jnp.where(inside, hits, jnp.nan)
    total = _sum_over_devices(jnp.sum(jnp.where(mask, hits, 0)), axis_name)
    rows = _sum_over_devices(jnp.sum(mask, dtype=wide.dtype), axis_name)
    return _ratio(total, rows).astype(probabilities.dtype)


def smooth_precision(
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    average: Average = "binary",
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Smooth precision, Σ t p / Σ p.

    Args:
        probabilities: as for :func:`smooth_f1`.
        labels: as for :func:`smooth_f1`.
        average: as for :func:`smooth_f1`.
        where: bool ``[batch]``, which rows count.
        axis_name: the batch is split over this mapped axis.

    Returns:
        A scalar in the dtype of ``probabilities``; 0 where nothing is predicted.

    Raises:
        TypeError, ValueError: as for :func:`smooth_f1`.

    >>> import jax.numpy as jnp
    >>> print(smooth_precision(jnp.array([0.5, 0.25, 0.25]), jnp.array([1, 1, 0])))
    0.75
    """
    counts = count("smooth_precision", probabilities, labels, average, where, axis_name)
    precision = jnp.mean(_ratio(counts.true_positive, counts.predicted))
    return precision.astype(jnp.asarray(probabilities).dtype)


def smooth_recall(
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    average: Average = "binary",
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Smooth recall, Σ t p / Σ t.

    Args:
        probabilities: as for :func:`smooth_f1`.
        labels: as for :func:`smooth_f1`.
        average: as for :func:`smooth_f1`.
        where: bool ``[batch]``, which rows count.
        axis_name: the batch is split over this mapped axis.

    Returns:
        A scalar in the dtype of ``probabilities``; 0 where nothing is positive.

    Raises:
        TypeError, ValueError: as for :func:`smooth_f1`.

    >>> import jax.numpy as jnp
    >>> print(smooth_recall(jnp.array([0.5, 0.25, 0.25]), jnp.array([1, 1, 0])))
    0.375
    """
    counts = count("smooth_recall", probabilities, labels, average, where, axis_name)
    recall = jnp.mean(_ratio(counts.true_positive, counts.actual))
    return recall.astype(jnp.asarray(probabilities).dtype)


def smooth_f1(
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    average: Average = "binary",
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Smooth F1, 2 Σ t p / Σ (t + p), over the batch.

    Args:
        probabilities: ``[batch]`` of the positive class for ``"binary"``, else
            ``[batch, classes]``; taken as they are, whether or not they sum to 1.
        labels: for ``"binary"`` ``[batch]``, 0 or 1 (or a share between them); else int ``[batch]``
            in 0 … K - 1, or ``[batch, classes]`` of 0 and 1 (or shares).
        average: ``"macro"``, the mean over all K classes, or ``"micro"``, sums over all of them.
        where: bool ``[batch]``, which rows count.
        axis_name: the batch is split over this mapped axis.

    Returns:
        A scalar in the dtype of ``probabilities``, summed in at least float32. 0/0, a class
        neither there nor predicted, counts as 0 with gradient 0. NaN if a label of a row that
        counts is out of range.

    Raises:
        TypeError: if ``probabilities`` is not floating or labels of classes are not integers.
        ValueError: if ``average`` is unknown or shapes do not fit.

    >>> import jax.numpy as jnp
    >>> p, t = jnp.array([0.9, 0.8, 0.3, 0.2, 0.6]), jnp.array([1, 1, 1, 0, 0])
    >>> print(smooth_f1(p, t).round(4))
    0.6897

    Reference: https://kexue.fm/archives/6620.
    """
    counts = count("smooth_f1", probabilities, labels, average, where, axis_name)
    return jnp.mean(f1_of(counts)).astype(jnp.asarray(probabilities).dtype)


def smooth_auc(
    scores: jax.Array,
    labels: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Smooth area under the ROC curve, the mean of σ((s_i - s_j)/τ) over positive i, negative j.

    O(N log N) time for N scores, not one step a pair.

    Args:
        scores: ``[batch]``, any real numbers, such as logits.
        labels: ``[batch]``, 0 or 1 (or a share).
        temperature: τ > 0, in the units of the scores.
        where: bool ``[batch]``, which rows count.
        axis_name: the batch is split over this mapped axis; every device gets all the scores.

    Returns:
        A scalar in the dtype of ``scores``, computed in at least float32; 1/2 if there is no pair,
        NaN if a label of a row that counts is out of range.

    Raises:
        TypeError: if ``scores`` is not floating.
        ValueError: if shapes do not fit or ``temperature`` is not positive (a traced one gives
            NaN).

    >>> import jax.numpy as jnp
    >>> scores, labels = jnp.array([3.0, 1.0, 2.0]), jnp.array([1, 0, 0])
    >>> print(smooth_auc(scores, labels, temperature=0.5).round(4))
    0.9314

    Reference: Lian Yan, Robert Dodier, Michael Mozer, Richard Wolniewicz, «Optimizing classifier
    performance via an approximation to the Wilcoxon-Mann-Whitney statistic», ICML 2003.
    """
    scores, wide = widen(scores, "smooth_auc: scores")
    temperature = check_temperature(temperature, "smooth_auc", wide)
    targets = _check_targets("smooth_auc", wide, jnp.asarray(labels))
    if scores.ndim != 1:
        raise ValueError(f"smooth_auc: scores must be [batch], got {scores.shape=}")
    mask = _mask("smooth_auc", where, targets.shape)
    positive = jnp.where(mask, targets, 0)
    negative = jnp.where(mask, 1 - targets, 0)
    wide = jnp.where(mask, wide, 0)
    if axis_name is not None:
        parts = (wide, positive, negative)
        wide, positive, negative = (
            lax.all_gather(part, axis_name, axis=0, tiled=True) for part in parts
        )
    pairs = jnp.sum(positive) * jnp.sum(negative)
    if wide.shape[0]:
        won = jnp.sum(positive * smooth_counts(wide, negative, temperature))
    else:
        won = jnp.zeros((), wide.dtype)
    auc = jnp.where(pairs == 0, 0.5, _ratio(won, pairs))
    # The same on every device; this says so.
    auc = auc if axis_name is None else lax.pmean(auc, axis_name)
    return auc.astype(scores.dtype)


def multilabel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of many labels a row: log(1 + Σ (1 - t) e^s) + log(1 + Σ t e^{-s}).

    The smooth version of max(0, s of all that are not there) + max(0, -s of all that are): it pulls
    every true label above 0 and every other one below, balanced however many there are.

    Args:
        logits: ``[..., classes]``; predict those above 0.
        labels: ``[..., classes]``, 0 or 1, or soft labels between; no gradient flows into them.

    Returns:
        ``[...]`` in nats, in the dtype of ``logits``, computed in at least float32; NaN if a label
        is out of range.

    Raises:
        TypeError: if ``logits`` is not floating.
        ValueError: if the shapes differ.

    >>> import jax.numpy as jnp
    >>> print(multilabel_cross_entropy(jnp.array([2.0, -1.0, 0.5]), jnp.array([1, 0, 0])).round(4))
    1.2311

    Reference: https://kexue.fm/archives/7359; soft labels: https://kexue.fm/archives/9064.
    """
    logits, wide = widen(logits, "multilabel_cross_entropy: logits")
    labels = jnp.asarray(labels)
    targets = _check_targets("multilabel_cross_entropy", wide, labels)
    absent = _log_one_plus_sum(wide, 1 - targets)
    present = _log_one_plus_sum(-wide, targets)
    return (absent + present).astype(logits.dtype)


def count(
    function: str,
    probabilities: jax.Array,
    labels: jax.Array,
    average: str,
    where: jax.Array | None,
    axis_name: str | None,
) -> Counts:
    """Checks the arguments of a metric and sums over the rows: [] for binary and micro, or [K]."""
    probabilities, wide = widen(probabilities, f"{function}: probabilities")
    labels = jnp.asarray(labels)
    if average not in AVERAGES:
        raise ValueError(
            f"{function}: average must be one of {', '.join(AVERAGES)}, got {average!r}"
        )
    ndim = 1 if average == "binary" else 2
    if wide.ndim != ndim:
        raise ValueError(
            f"{function}: probabilities must be {'[batch]' if ndim == 1 else '[batch, classes]'} "
            f"for average={average!r}, got {probabilities.shape=}"
        )
    if labels.ndim == wide.ndim:
        targets = _check_targets(function, wide, labels)
    else:
        _check_classes(function, wide, labels)
        classes = jnp.arange(wide.shape[-1])[None]
        inside = (labels >= 0) & (labels < wide.shape[-1])
        targets = jnp.where(inside[:, None], labels[:, None] == classes, jnp.nan)
    mask = _mask(function, where, wide.shape[:1])
    mask = mask.reshape(mask.shape + (1,) * (ndim - 1))
    targets = jnp.where(mask, targets, 0).astype(wide.dtype)
    chosen = jnp.where(mask, wide, 0)
    axis = 0 if average == "macro" else None
    sums = (jnp.sum(part, axis=axis) for part in (targets * chosen, chosen, targets))
    return Counts(*(_sum_over_devices(part, axis_name) for part in sums))


def f1_of(counts: Counts) -> jax.Array:
    """2 Σ t p / Σ (t + p), of each class."""
    return _ratio(2 * counts.true_positive, counts.predicted + counts.actual)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part/whole, and 0 with gradient 0 for 0/0."""
    empty = whole == 0
    return jnp.where(empty, 0, part) / jnp.where(empty, 1, whole)


def _log_one_plus_sum(x: jax.Array, weights: jax.Array) -> jax.Array:
    """log(1 + Σ_i w_i e^{x_i})."""
    weights = lax.stop_gradient(weights)
    x = jnp.where(weights == 0, 0, x)  # what is masked must not set the scale
    peak = lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True, initial=0))
    total = jnp.exp(-peak) + jnp.sum(weights * jnp.exp(x - peak), axis=-1, keepdims=True)
    return (peak + jnp.log(total))[..., 0]


def _check_targets(function: str, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Labels of the shape of ``x`` as floats; NaN where they are not in [0, 1]."""
    if labels.shape != x.shape:
        raise ValueError(f"{function}: labels must have the shape {x.shape}, got {labels.shape}")
    targets = labels.astype(x.dtype)
    return jnp.where((targets >= 0) & (targets <= 1), targets, jnp.nan)


def _check_classes(function: str, probabilities: jax.Array, labels: jax.Array) -> None:
    if labels.shape != probabilities.shape[:-1]:
        raise ValueError(
            f"{function}: labels must have the shape {probabilities.shape[:-1]}, one class a row, "
            f"or {probabilities.shape}, got {labels.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{function}: labels of classes must be integers, got {labels.dtype}")


def _mask(function: str, where: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    if where is None:
        return jnp.ones(shape, bool)
    where = jnp.asarray(where)
    if where.shape != shape or where.dtype != bool:
        raise ValueError(
            f"{function}: where must be bool of the shape {shape}, got {where.dtype} {where.shape}"
        )
    return where


def _sum_over_devices(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.psum(x, axis_name)
