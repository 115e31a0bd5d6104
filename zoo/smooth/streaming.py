"""Smooth F1 over a stream of batches: numerator and denominator are averaged, not their ratio.

The F1 of a batch is a ratio of two sums over the batch, and the mean of ratios is not the ratio of
means: with 5 % of positives and batches of 16 it comes out more than a quarter too low, and a batch
without any positive just pushes every probability down. Here the three sums are state, carried from
batch to batch as running totals that forget at a chosen rate:

    S ← decay · S + Σ_batch (t p, p, t)      F1 = 2 S_tp / (S_p + S_t)

The gradient of F1 over the full set is (2/D̄) E[(t - F1/2) ∇p], D̄ = E[t + p]: linear in the samples
once F1 and D̄ are known. With both from the state, a batch of any size estimates it without the
bias; what is left is the lag of the state behind the parameters.

Source: Jianlin Su, "Function smoothing", 2019, https://kexue.fm/archives/6620 (the bias),
https://kexue.fm/archives/7708 (the gradient); the estimator is ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo import _checks
from zoo.smooth.metrics import Average, Counts, expected_counts, f1_of, ratio, sum_over_devices


class F1State(NamedTuple):
    """Running totals in float32; the structure never changes."""

    counts: Counts  # [] or [K] each
    samples: jax.Array  # [], how many the counts are of, forgotten ones left out


def streaming_f1_init(num_classes: int | None = None) -> F1State:
    """The state before the first batch: zeros.

    Args:
        num_classes: K for ``average="macro"``, None for ``"binary"`` and ``"micro"``.

    Raises:
        TypeError, ValueError: if ``num_classes`` is not an integer of at least 1.

    >>> streaming_f1_init(3).counts.predicted.shape
    (3,)
    """
    shape = () if num_classes is None else (_checks.count("num_classes", num_classes, at_least=1),)
    counts = Counts(*(jnp.zeros(shape, jnp.float32) for _ in Counts._fields))
    return F1State(counts, jnp.zeros((), jnp.float32))


def streaming_f1(
    state: F1State,
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    decay: ArrayLike = 0.99,
    average: Average = "binary",
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[F1State, jax.Array]:
    """Smooth F1 of the samples seen so far, with the gradient that all of them would have.

    Args:
        state: from :func:`streaming_f1_init` or the call before.
        probabilities: this and the rest as for :func:`zoo.smooth.smooth_f1`.
        labels: ``[batch]`` or ``[batch, classes]``.
        decay: what a batch leaves of the totals before it, in [0, 1]. 1 gives the exact F1 of all
            batches, for evaluation; 0 the one of the batch; for training about as many batches
            should be remembered, 1/(1 - decay), as hold some dozen positive samples.
        average: ``"binary"``, ``"macro"`` or ``"micro"``.
        where: bool ``[batch]``, which samples count.
        axis_name: the batch is split over this mapped axis.

    Returns:
        The new state, through which no gradient flows, and F1 as a scalar in the dtype of
        ``probabilities``. A NaN, as for :func:`zoo.smooth.smooth_f1`, stays in the totals.

    Raises:
        TypeError: as for :func:`zoo.smooth.smooth_f1`.
        ValueError: as there, if the state is for another number of classes, or ``decay`` is not in
            [0, 1] (a traced one that is not gives NaN).

    >>> import jax.numpy as jnp
    >>> state = streaming_f1_init()
    >>> p, t = jnp.array([0.9, 0.8, 0.3, 0.2, 0.6]), jnp.array([1, 1, 1, 0, 0])
    >>> for rows in (slice(0, 2), slice(2, 5)):
    ...     state, f1 = streaming_f1(state, p[rows], t[rows], decay=1.0)
    >>> print(f1.round(4))
    0.6897
    """
    decay = jnp.asarray(_checks.number("decay", decay, at_least=0, at_most=1), jnp.float32)
    batch = expected_counts(probabilities, labels, average, where, axis_name)
    if batch.actual.shape != state.counts.actual.shape:
        raise ValueError(
            f"state must be for counts of shape {batch.actual.shape}, got one for "
            f"{state.counts.actual.shape}; see streaming_f1_init(num_classes)"
        )
    batch = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), batch)
    counted = len(probabilities) if where is None else jnp.sum(where, dtype=jnp.float32)
    samples = sum_over_devices(jnp.asarray(counted, jnp.float32), axis_name)
    new = jax.tree.map(lambda old, own: decay * old + own, state, F1State(batch, samples))
    new = lax.stop_gradient(new)
    f1 = lax.stop_gradient(f1_of(new.counts))
    # This batch as if it were all samples: its value is only there to carry the gradient.
    share = ratio(samples, new.samples)
    total = (new.counts.predicted + new.counts.actual) * share
    surplus = 2 * batch.true_positive - f1 * (batch.predicted + batch.actual)
    f1 = f1 + ratio(surplus - lax.stop_gradient(surplus), total)
    return new, jnp.mean(f1).astype(jnp.result_type(probabilities))
