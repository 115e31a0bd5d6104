"""Accuracy, precision, recall, F1, AUC as smooth functions of probabilities or scores.

Each is the exact metric with the indicator of the predicted class replaced by its probability p:

    accuracy   mean_i p_i[label_i]
    precision  Σ t p / Σ p        recall  Σ t p / Σ t        F1  2 Σ t p / Σ (t + p)
    AUC        mean over (positive, negative) pairs of σ((s_positive - s_negative)/τ)

Maximise them (a loss is their negative). Two warnings of the source. The gradient of the accuracy
vanishes for samples that are badly wrong: start with the cross entropy. Precision and F1 are ratios
of sums over the batch, so that their mean over batches is below the value of the full set, far
below it where positives are rare: see :mod:`zoo.smooth.streaming`.

Source: Jianlin Su, "Function smoothing", 2019, https://kexue.fm/archives/6620; gradients:
https://kexue.fm/archives/7708, 9098; multi-label cross entropy: https://kexue.fm/archives/7359,
9064.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo import _checks
from zoo.smooth.derivatives import check_arguments, check_mask, difference
from zoo.smooth.rank import smooth_counts

Average = Literal["binary", "macro", "micro"]


class Counts(NamedTuple):
    """Expected numbers of samples, of one class or of each."""

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
        probabilities: ``[batch, classes]``, or ``[batch]`` of the positive class; taken as they
            are, whether or not they sum to 1.
        labels: ``[batch]`` in 0 … K - 1, of any integer dtype; for ``[batch]`` probabilities 0 or 1
            (or a share).
        where: bool ``[batch]``, which samples count. The others may be anything.
        axis_name: the batch is split over this mapped axis.

    Returns:
        A scalar in the dtype of ``probabilities``, summed in at least float32; 0 without samples.
        NaN if a label of a sample that counts is out of range, or its probability NaN; those of the
        other classes are not read.

    Raises:
        TypeError: if ``probabilities`` is not floating or labels of classes are not integers.
        ValueError: if shapes do not fit, or there are no classes.

    >>> import jax.numpy as jnp
    >>> print(smooth_accuracy(jnp.array([[0.9, 0.1], [0.6, 0.4]]), jnp.array([0, 1])))
    0.65

    Reference: https://kexue.fm/archives/6620.
    """
    probabilities, p = _checks.widened("probabilities", probabilities)
    labels = jnp.asarray(labels)
    mask = _mask(where, labels.shape)
    if labels.ndim == p.ndim:
        t, p = jnp.where(mask, _targets(labels, p), 0), jnp.where(mask, p, 0)
        hits = t * p + (1 - t) * (1 - p)
    else:
        labels, inside = _classes(labels, p)
        hits = jnp.take_along_axis(p, jnp.where(inside, labels, 0)[..., None], axis=-1)[..., 0]
        hits = jnp.where(inside, hits, jnp.nan)
    hits, samples = jnp.sum(jnp.where(mask, hits, 0)), jnp.sum(mask, dtype=p.dtype)
    return ratio(*sum_over_devices((hits, samples), axis_name)).astype(probabilities.dtype)


def smooth_precision(
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    average: Average = "binary",
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Smooth precision, Σ t p / Σ p.

    Args, Raises: as for :func:`smooth_f1`.

    Returns:
        A scalar in the dtype of ``probabilities``; 0 where nothing is predicted.

    >>> import jax.numpy as jnp
    >>> print(smooth_precision(jnp.array([0.5, 0.25, 0.25]), jnp.array([1, 1, 0])))
    0.75
    """
    counts = expected_counts(probabilities, labels, average, where, axis_name)
    precision = ratio(counts.true_positive, counts.predicted)
    return jnp.mean(precision).astype(jnp.result_type(probabilities))


def smooth_recall(
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    average: Average = "binary",
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Smooth recall, Σ t p / Σ t.

    Args, Raises: as for :func:`smooth_f1`.

    Returns:
        A scalar in the dtype of ``probabilities``; 0 where nothing is positive.

    >>> import jax.numpy as jnp
    >>> print(smooth_recall(jnp.array([0.5, 0.25, 0.25]), jnp.array([1, 1, 0])))
    0.375
    """
    counts = expected_counts(probabilities, labels, average, where, axis_name)
    recall = ratio(counts.true_positive, counts.actual)
    return jnp.mean(recall).astype(jnp.result_type(probabilities))


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
        labels: for ``"binary"`` ``[batch]``, 0 or 1 (or a share between them); else ``[batch]`` in
            0 … K - 1, of any integer dtype, or ``[batch, classes]`` of 0 and 1 (or shares).
        average: ``"macro"``, the mean over all K classes, or ``"micro"``, sums over all of them.
        where: bool ``[batch]``, which samples count. The others may be anything.
        axis_name: the batch is split over this mapped axis.

    Returns:
        A scalar in the dtype of ``probabilities``, summed in at least float32. 0/0, a class
        neither there nor predicted, counts as 0 with gradient 0. NaN if a label of a sample that
        counts is out of range, or one of its probabilities is NaN.

    Raises:
        TypeError: if ``probabilities`` is not floating or labels of classes are not integers.
        ValueError: if ``average`` is unknown, shapes do not fit, or there are no classes.

    >>> import jax.numpy as jnp
    >>> p, t = jnp.array([0.9, 0.8, 0.3, 0.2, 0.6]), jnp.array([1, 1, 1, 0, 0])
    >>> print(smooth_f1(p, t).round(4))
    0.6897

    Reference: https://kexue.fm/archives/6620.
    """
    counts = expected_counts(probabilities, labels, average, where, axis_name)
    return jnp.mean(f1_of(counts)).astype(jnp.result_type(probabilities))


def smooth_auc(
    scores: jax.Array,
    labels: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Smooth area under the ROC curve, the mean of σ((s_i - s_j)/τ) over positive i, negative j.

    O(N log N) time for N scores, not one step per pair.

    Args:
        scores: ``[batch]``, any real numbers, such as logits; ±inf count as the largest and the
            smallest number.
        labels: ``[batch]``, 0 or 1 (or a share).
        temperature: τ > 0, in the units of the scores.
        where: bool ``[batch]``, which samples count. The others may be anything.
        axis_name: the batch is split over this mapped axis; every device gets all the scores.

    Returns:
        A scalar in the dtype of ``scores``, computed in at least float32; 1/2 if there is no pair,
        NaN if a label of a sample that counts is out of range, or its score is NaN.

    Raises:
        TypeError: if ``scores`` is not floating.
        ValueError: if shapes do not fit or ``temperature`` is not positive, or below 1e-34 in
            float32 (a traced one gives NaN).

    >>> import jax.numpy as jnp
    >>> scores, labels = jnp.array([3.0, 1.0, 2.0]), jnp.array([1, 0, 0])
    >>> print(smooth_auc(scores, labels, temperature=0.5).round(4))
    0.9314

    Reference: Lian Yan, Robert Dodier, Michael Mozer, Richard Wolniewicz, "Optimizing classifier
    performance via an approximation to the Wilcoxon-Mann-Whitney statistic", ICML 2003.
    """
    scores, s, temperature = check_arguments(scores, temperature, name="scores")
    _checks.shapes(scores=(scores, "batch"))
    targets, mask = _targets(labels, s), _mask(where, s.shape)
    s, positive, negative = (jnp.where(mask, part, 0) for part in (s, targets, 1 - targets))
    if axis_name is not None:
        s, positive, negative = (
            lax.all_gather(part, axis_name, axis=0, tiled=True) for part in (s, positive, negative)
        )
    pairs = jnp.sum(positive) * jnp.sum(negative)
    won = jnp.sum(negative * smooth_counts(s, positive, temperature))
    auc = jnp.where((pairs == 0) & ~jnp.isnan(won), 0.5, ratio(won, pairs))
    # The same on every device; this says so.
    auc = auc if axis_name is None else lax.pmean(auc, axis_name)
    return auc.astype(scores.dtype)


def multilabel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of several labels per sample: log(1 + Σ (1 - t) e^s) + log(1 + Σ t e^{-s}).

    The smooth version of max(0, s of all absent labels) + max(0, -s of all present ones): it pulls
    every true label above 0 and every other one below, balanced however many there are.

    Args:
        logits: ``[..., classes]``; predict those above 0. An infinite one on the wrong side gives
            inf, on the right side nothing.
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
    logits, s = _checks.widened("logits", logits)
    t = _targets(labels, s)
    return (_log_one_plus_sum(1 - t, s) + _log_one_plus_sum(t, -s)).astype(logits.dtype)


def expected_counts(
    probabilities: jax.Array,
    labels: jax.Array,
    average: str,
    where: jax.Array | None,
    axis_name: str | None,
) -> Counts:
    """Σ t p, Σ p and Σ t over the samples: [] for binary and micro, [K] for macro."""
    _, p = _checks.widened("probabilities", probabilities)
    _checks.choice("average", average, get_args(Average))
    _checks.shapes(probabilities=(p, "batch" if average == "binary" else "batch classes"))
    if average != "binary":
        _check_classes(p)
    labels = jnp.asarray(labels)
    if labels.ndim == p.ndim:
        t = _targets(labels, p)
    else:
        labels, inside = _classes(labels, p)
        t = jnp.where(inside[:, None], labels[:, None] == jnp.arange(p.shape[-1])[None], jnp.nan)
    mask = _mask(where, p.shape[:1])
    mask = mask if average == "binary" else mask[:, None]
    t, p = jnp.where(mask, t, 0).astype(p.dtype), jnp.where(mask, p, 0)
    axis = 0 if average == "macro" else None
    return sum_over_devices(Counts(*(jnp.sum(part, axis) for part in (t * p, p, t))), axis_name)


def f1_of(counts: Counts) -> jax.Array:
    """2 Σ t p / Σ (t + p), of each class."""
    return ratio(2 * counts.true_positive, counts.predicted + counts.actual)


def ratio(part: jax.Array, total: jax.Array) -> jax.Array:
    """part/total, 0 with gradient 0 for 0/0, NaN for NaN/0."""
    empty = (total == 0) & ~jnp.isnan(part)
    return _quotient(jnp.where(empty, 0, part), jnp.where(empty, 1, total))


@jax.custom_jvp
def _quotient(part: jax.Array, total: jax.Array) -> jax.Array:
    return part / total


@_quotient.defjvp
def _quotient_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # Not over the square of the total, which may underflow.
    quotient = _quotient(*primals)
    return quotient, (tangents[0] - quotient * tangents[1]) / primals[1]


def _log_one_plus_sum(weights: jax.Array, x: jax.Array) -> jax.Array:
    """log(1 + Σ_i w_i e^{x_i})."""
    weights = lax.stop_gradient(weights)
    x = jnp.where(weights == 0, 0, x)  # what is masked must not set the scale
    peak = lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True, initial=0))
    total = jnp.sum(weights * jnp.exp(difference(x, peak)), axis=-1, keepdims=True)
    total = jnp.exp(-peak) + total
    return (peak + jnp.log(total))[..., 0]


def _targets(labels: jax.Array, x: jax.Array) -> jax.Array:
    """Labels of the shape of ``x`` as floats; NaN where they are not in [0, 1]."""
    if jnp.shape(labels) != x.shape:
        raise ValueError(f"labels must have the shape {x.shape}, got {jnp.shape(labels)}")
    targets = jnp.asarray(labels, x.dtype)
    return jnp.where((targets >= 0) & (targets <= 1), targets, jnp.nan)


def _classes(labels: jax.Array, probabilities: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Labels as integers, one class per sample, and which of them are in range."""
    labels = _checks.integers("labels", labels)
    _check_classes(probabilities)
    if labels.shape != (samples := probabilities.shape[:-1]):
        raise ValueError(
            f"labels must have the shape {samples}, one class per sample, or "
            f"{probabilities.shape}, got {labels.shape}"
        )
    return labels, (labels >= 0) & (labels < probabilities.shape[-1])


def _check_classes(probabilities: jax.Array) -> None:
    if probabilities.shape[-1] == 0:
        raise ValueError(f"probabilities must have at least one class, got {probabilities.shape}")


def _mask(where: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    if where is None:
        return jnp.ones(shape, bool)
    where = check_mask(where, shape)
    if where.shape != shape:
        raise ValueError(f"where must be bool of the shape {shape}, got {where.shape}")
    return where


def sum_over_devices(sums: Any, axis_name: str | None) -> Any:
    """The sums of the complete batch, which may be split over a mapped axis."""
    return sums if axis_name is None else lax.psum(sums, axis_name)
