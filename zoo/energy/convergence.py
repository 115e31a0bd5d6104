"""Have the chains mixed, and how many independent samples are they worth?

Every chain is split into halves, M of n samples. For a series y of them, with W the mean variance
of the halves and c_t their mean autocovariance at lag t:

    V = (n-1)/n·W + variance of the M means,   R̂ = √(V/W)
    ρ_t = 1 - (W - c_t)/V,   P_k = ρ_2k + ρ_2k+1,   K the first k whose P_k is not positive
    effective samples M·n/τ,   τ = -1 + 2·Σ_{k<K} min(P_0 … P_k) + max(ρ_2K, 0)

What y is makes the number: the samples themselves; their normal scores
Φ⁻¹((rank - 3/8)/(M·n + 1/4)), for which no moments need exist; the scores of |x - median|, which
show another scale; and the indicators of the tails, x ≤ its quantile of 5 % or 95 %.

Source: Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and
localization: an improved R̂ for assessing convergence of MCMC", 2021, arXiv 1903.08008; Geyer,
"Practical Markov chain Monte Carlo", 1992. The numbers are those of ArviZ.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from zoo._checks import widened

TAILS = (0.05, 0.95)


class ChainAgreement(NamedTuple):
    """What tells whether chains have mixed, for every component.

    Attributes:
        r_hat: ``[...]``, at least float32, the larger of those of the normal scores and of the
            folded ones; 1 if mixed, 1.01 is a common limit.
        effective_samples: ``[...]``, how many independent samples the mean is worth; like the next
            two at most N·log10 N of N samples, which antithetic chains reach.
        bulk_samples: ``[...]``, the same for the normal scores; 100 a chain is a common limit.
        tail_samples: ``[...]``, the same for the lower or upper tail, whichever is worth less.
    """

    r_hat: jax.Array
    effective_samples: jax.Array
    bulk_samples: jax.Array
    tail_samples: jax.Array


def chain_agreement(positions: jax.Array) -> ChainAgreement:
    """Rank-normalised R̂ and the effective sample sizes of mean, bulk and tails.

    Args:
        positions: ``[S, B, ...]`` floating, as ``sample_chain`` gives them; of an odd S the sample
            in the middle belongs to no half.

    Returns:
        A ``ChainAgreement``. A half that never moved gives R̂ = ∞, or NaN if all of them stayed at
        one place; then, and for samples that are not finite, the sizes are NaN. (ArviZ counts
        constants as independent samples.)

    Raises:
        ValueError: if there are fewer than 4 samples, or no chain.
        TypeError: if the positions are not floating-point.

    Reference: Vehtari et al., 2021.

    >>> x = jax.random.normal(jax.random.key(0), (500, 4))
    >>> r_hat, of_mean, of_bulk, of_tail = chain_agreement(x)
    >>> print(r_hat.round(2), of_mean > 1500, of_bulk > 1500, of_tail > 1500)
    1.0 True True True
    >>> print(chain_agreement(0 * x + 0.1).r_hat)
    nan
    """
    _, x = widened("positions", positions)
    if x.ndim < 2 or len(x) < 4 or not x.shape[1]:
        raise ValueError(f"positions must be [S, B, ...] with S ≥ 4 and B ≥ 1, got {x.shape}")
    return _agreement(x)


@jax.jit
def _agreement(x: jax.Array) -> ChainAgreement:
    halves = _halves(x)
    ordered = jnp.sort(_flat(halves), axis=0)
    below, above = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    # In the order of |x - median|, with its ties, whatever is rounded.
    distance = jnp.maximum(halves - below[None, None], above[None, None] - halves)
    scores = _normal_scores(halves, ordered)
    folded = _normal_scores(distance, jnp.sort(_flat(distance), axis=0))
    all_ordered = jnp.sort(_flat(x), axis=0) if len(x) % 2 else ordered
    quantiles = (_quantile(all_ordered, probability)[None, None] for probability in TAILS)
    tails = [_halves((x <= quantile).astype(x.dtype)) for quantile in quantiles]
    _, exponent = jnp.frexp(jnp.abs(halves).max(axis=(0, 1), keepdims=True))
    bounded = jnp.ldexp(halves, -exponent)  # exactly, and the square of no difference is too large
    sizes = _effective_samples(jnp.stack([bounded, scores, *tails]))
    # Folded samples that are all the same, as those of a fair coin, say nothing.
    r_folded = jnp.where((folded == folded[:1, :1]).all(axis=(0, 1)), 1.0, _r_hat(folded))
    still = (halves == halves[:1]).all(axis=0).any(axis=0)
    apart = (halves != halves[:1, :1]).any(axis=(0, 1))
    r_hat = jnp.where(still, jnp.where(apart, jnp.inf, jnp.nan), _r_hat(scores))
    finite = jnp.isfinite(x).all(axis=(0, 1))
    mean, bulk, tail = sizes[0], sizes[1], jnp.minimum(sizes[2], sizes[3])
    return ChainAgreement(
        jnp.where(finite, jnp.maximum(r_hat, r_folded), jnp.nan),
        *(jnp.where(finite & ~still, size, jnp.nan) for size in (mean, bulk, tail)),
    )


def _halves(x: jax.Array) -> jax.Array:
    """``[S, B, ...]`` to ``[S//2, 2B, ...]``."""
    n = len(x) // 2
    return jnp.concatenate([x[:n], x[-n:]], axis=1)


def _flat(x: jax.Array) -> jax.Array:
    """``[n, M, ...]`` to ``[n·M, ...]``."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _normal_scores(x: jax.Array, ordered: jax.Array) -> jax.Array:
    """Φ⁻¹((rank - 3/8)/(N + 1/4)) among all of a component, ties at their mean rank."""
    count = len(ordered)

    def mean_rank(ordered: jax.Array, values: jax.Array) -> jax.Array:
        first, last = (jnp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
        return (first + last + 1).astype(x.dtype) / 2

    columns = (y.reshape(count, math.prod(x.shape[2:])) for y in (ordered, x))
    rank = jax.vmap(mean_rank, in_axes=1, out_axes=1)(*columns).reshape(x.shape)
    # From the nearer end: no digits are lost in 1 - p.
    share = (jnp.minimum(rank, count + 1 - rank) - 0.375) / (count + 0.25)
    return jnp.sign(2 * rank - count - 1) * -ndtri(share)


def _quantile(ordered: jax.Array, probability: float) -> jax.Array:
    """Linear between the two nearest samples, and exactly one of them where they are equal."""
    share, index = math.modf(probability * (len(ordered) - 1))
    low, high = ordered[int(index)], ordered[min(int(index) + 1, len(ordered) - 1)]
    return low + share * (high - low)


def _moments(y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of ``[n, M, ...]``: the series less their means, W and V."""
    n = len(y)
    moved, first = y - y[:1], y[0]  # of a constant exactly 0
    mean = moved.mean(axis=0)
    within = moved.var(axis=0, ddof=1).mean(axis=0)
    between = (mean + first - first[:1]).var(axis=0, ddof=1)
    return moved - mean[None], within, within * (n - 1) / n + between


def _r_hat(y: jax.Array) -> jax.Array:
    _, within, total = _moments(y)
    return jnp.sqrt(total / within)


@jax.vmap
def _effective_samples(y: jax.Array) -> jax.Array:
    n, size = len(y), y.shape[0] * y.shape[1]
    centered, within, total = _moments(y)
    spectrum = jnp.abs(jnp.fft.rfft(centered, 2 * n, axis=0)) ** 2
    covariance = jnp.fft.irfft(spectrum, 2 * n, axis=0)[:n].mean(axis=1) / n
    correlation = (1 - (within[None] - covariance) / total[None]).at[0].set(1.0)
    count = max((n - 3) // 2, 0)  # pairs that may be summed; the last lags are left out
    even = correlation[: 2 * count + 1 : 2]
    pairs = even[:count] + correlation[1 : 2 * count : 2]
    summed = jax.lax.cummin(pairs) > 0
    after = jnp.take_along_axis(even, summed.sum(axis=0, keepdims=True), axis=0)[0]
    sums = jnp.where(summed, jax.lax.cummin(pairs), 0).sum(axis=0)
    time = jnp.maximum(2 * sums - 1 + jnp.maximum(after, 0), 1 / math.log10(size))
    return jnp.where(total > 0, size / time, size)
