"""Ranking metrics as smooth functions of scores: NDCG, reciprocal rank, Spearman's correlation.

Each is the exact metric with smooth ranks r = soft_rank(scores) (1 for the largest score):

    NDCG      Σ_i gain_i / log₂(1 + r_i), divided by its value in the best order
    MRR       Σ_i w_i / (1 + Σ_{j irrelevant} σ((s_j - s_i)/τ)),  w = soft_one_hot(relevant s)
    Spearman  the correlation of r with the exact ranks of the targets

Maximise them: a loss is 1 - metric. All end at the exact metrics as τ falls to 0, where items that
tie have the mean of their ranks, and none exceeds 1: soft ranks are a point of the permutahedron,
on which the discounted gain is convex. O(N log N) time.

Source: Tao Qin, Tie-Yan Liu, Hang Li, "A general approximation framework for direct optimization of
information retrieval measures", Information Retrieval 13, 2010.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo import _checks
from zoo.smooth.argmax import soft_one_hot
from zoo.smooth.derivatives import FAR, check_arguments, check_mask
from zoo.smooth.metrics import ratio
from zoo.smooth.rank import smooth_counts, soft_rank
from zoo.smooth.top_k import soft_top_k

Gain = Literal["exponential", "linear"]


def smooth_ndcg(
    scores: jax.Array,
    relevance: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    k: int | None = None,
    gain: Gain = "exponential",
    where: jax.Array | None = None,
) -> jax.Array:
    """Smooth normalised discounted cumulative gain of every list.

    Args:
        scores: ``[..., items]``, any real numbers; ±inf count as the largest and the smallest.
        relevance: ``[..., items]``, at least 0, of any dtype; no gradient flows into it.
        temperature: τ > 0, in the units of the scores.
        k: only the first k places count, by ``soft_top_k(scores, k, method="threshold")``; more
            than there are items is all of them.
        gain: 2^relevance - 1, or the relevance itself (``"linear"``).
        where: bool ``[..., items]``, which items there are. The others may be anything.

    Returns:
        ``[...]`` in the dtype of the scores, computed in at least float32, in [0, 1]; 0 with
        gradient 0 where nothing is relevant. NaN if a relevance that counts is negative.

    Raises:
        TypeError: if ``scores`` is not floating or ``k`` no integer.
        ValueError: if shapes do not fit, ``gain`` is unknown, ``k`` is below 1, or ``temperature``
            is not positive, or below 1e-34 in float32 (a traced one gives NaN).

    >>> import jax.numpy as jnp
    >>> scores, relevance = jnp.array([3.0, 1.0, 2.0]), jnp.array([1, 3, 0])
    >>> for temperature in (1.0, 0.01):
    ...     print(smooth_ndcg(scores, relevance, temperature=temperature).round(4))
    0.5995
    0.5897

    Reference: Qin, Liu, Li, 2010.
    """
    _checks.choice("gain", gain, get_args(Gain))
    scores, s, temperature, mask = _lists(scores, temperature, where, relevance=relevance)
    gains = jnp.asarray(relevance, s.dtype)
    gains = jnp.where(gains < 0, jnp.nan, jnp.exp2(gains) - 1 if gain == "exponential" else gains)
    gains = lax.stop_gradient(jnp.where(mask, gains, 0))
    places = 1 / jnp.log2(2 + jnp.arange(s.shape[-1], dtype=s.dtype))
    discounts = 1 / jnp.log2(1 + jnp.where(mask, _ranks(s, temperature, mask), 1))
    if k is not None:
        k = min(_checks.count("k", k, at_least=1), s.shape[-1])
        places = jnp.where(jnp.arange(s.shape[-1]) < k, places, 0)
        if k:
            discounts *= soft_top_k(s, k, temperature=temperature, where=mask, method="threshold")
    best = jnp.sum(
        -jnp.sort(-gains, axis=-1) * places.reshape((1,) * (s.ndim - 1) + (-1,)), axis=-1
    )
    return ratio(jnp.sum(gains * discounts, axis=-1), best).astype(scores.dtype)


def smooth_mrr(
    scores: jax.Array,
    relevant: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Smooth reciprocal rank of the first relevant item of every list; its mean is the MRR.

    Args:
        scores: ``[..., items]``, any real numbers.
        relevant: ``[..., items]``, bool or not 0.
        temperature: τ > 0, in the units of the scores.
        where: bool ``[..., items]``, which items there are. The others may be anything.

    Returns:
        ``[...]`` in the dtype of the scores, computed in at least float32, in [0, 1]; 0 with
        gradient 0 where nothing is relevant.

    Raises:
        TypeError, ValueError: as for :func:`smooth_ndcg`.

    >>> import jax.numpy as jnp
    >>> scores, relevant = jnp.array([3.0, 1.0, 2.0]), jnp.array([0, 1, 1])
    >>> for temperature in (1.0, 0.01):
    ...     print(smooth_mrr(scores, relevant, temperature=temperature).round(4))
    0.5653
    0.5000
    """
    scores, s, temperature, mask = _lists(scores, temperature, where, relevant=relevant)
    relevant = mask & (jnp.asarray(relevant) != 0)
    above = smooth_counts(jnp.where(mask, s, 0), (mask & ~relevant).astype(s.dtype), temperature)
    weights = soft_one_hot(jnp.where(relevant, s, -jnp.inf), temperature=temperature)
    return jnp.sum(weights / (1 + above), axis=-1).astype(scores.dtype)


def smooth_spearman(
    scores: jax.Array,
    targets: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Smooth rank correlation of every row of scores with the order of its targets.

    Args:
        scores: ``[..., items]``, any real numbers.
        targets: ``[..., items]``, any real numbers; only their order counts, exactly, and no
            gradient flows into them.
        temperature: τ > 0, in the units of the scores.
        where: bool ``[..., items]``, which items there are. The others may be anything.

    Returns:
        ``[...]`` in the dtype of the scores, computed in at least float32, in [-1, 1]; 0 with
        gradient 0 where all scores or all targets tie.

    Raises:
        TypeError, ValueError: as for :func:`smooth_ndcg`.

    >>> import jax.numpy as jnp
    >>> scores, targets = jnp.array([3.0, 1.0, 2.0, 0.0]), jnp.array([40.0, 10.0, 20.0, 15.0])
    >>> for temperature in (1.0, 0.01):
    ...     print(smooth_spearman(scores, targets, temperature=temperature).round(4))
    0.8085
    0.8000
    """
    scores, s, temperature, mask = _lists(scores, temperature, where, targets=targets)
    targets = lax.stop_gradient(jnp.asarray(targets, s.dtype))
    count = jnp.sum(mask, axis=-1, keepdims=True, dtype=s.dtype)

    def centred(x: jax.Array, temperature: ArrayLike) -> jax.Array:
        return jnp.where(mask, _ranks(x, temperature, mask) - (count + 1) / 2, 0)

    exact = 2 * FAR * jnp.finfo(s.dtype).tiny  # the smallest temperature there is
    a, b = centred(s, temperature), centred(targets, exact)
    variances = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    spread = jnp.sqrt(jnp.where(variances > 0, variances, 1))
    correlation = ratio(jnp.sum(a * b, axis=-1), jnp.where(variances == 0, 0, spread))
    return jnp.where(jnp.isnan(variances), jnp.nan, correlation).astype(scores.dtype)


def _lists(
    scores: jax.Array, temperature: ArrayLike, where: jax.Array | None, **others: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The scores, a wide copy, the temperature, and the mask in full."""
    scores, s, temperature = check_arguments(scores, temperature, name="scores")
    for name, other in others.items():
        if jnp.shape(other) != s.shape or not s.ndim:
            raise ValueError(
                f"{name} must have the shape of scores, [..., items], here {s.shape}, got "
                f"{jnp.shape(other)}"
            )
    mask = jnp.ones(s.shape, bool) if where is None else check_mask(where, s.shape)
    return scores, s, temperature, jnp.broadcast_to(mask, s.shape)


def _ranks(x: jax.Array, temperature: ArrayLike, mask: jax.Array) -> jax.Array:
    return soft_rank(x, temperature=temperature, where=mask)
