"""Inclusion probabilities of the random k-subset with P(S) ∝ exp Σ_{i∈S} x_i, in O(nk).

    P(i ∈ S) = ∂ log Z_k / ∂x_i,   Z_k = Σ_{|S|=k} exp Σ_{i∈S} x_i

Z_k is the coefficient of t^k in Π_i (1 + e^{x_i} t). The article's recursion for it subtracts,
and takes logarithms of what rounding leaves. Here everything is positive, and nothing overflows:

1. The law of S is that of independent coins p_i = σ(x_i - λ) given that k of them fall on heads,
   for every λ. With Σ p_i = k, k is the most probable number of heads, P(k) ≥ 1/(n + 1), so that
   Π_i (1 - p_i + p_i t) can be multiplied out without logarithms: what underflows is negligible.
2. The product is a tree of pairs, cut off above t^k: n/k products of degree k on the first level
   that reaches k, half as many on the next: O(nk) operations and log n levels instead of n steps.
3. P(i ∈ S) = p_i ∂ log P(k) / ∂p_i with p_i and 1 - p_i as independent variables: the way back
   through the tree, positive as well.

Source: Jianlin Su, «Smooth top-k», 2024, https://kexue.fm/archives/10373 (GradTopK); the law given
its number of heads: Sean X. Chen, Jun S. Liu, «Statistical applications of the Poisson-binomial
and conditional Bernoulli distributions», Statistica Sinica 7, 1997.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from zoo.smooth.numerics import logistic
from zoo.smooth.thresholds import LOGISTIC, threshold


@functools.partial(jax.jit, static_argnums=0)
def inclusion_probabilities(k: int, x: jax.Array, largest: jax.Array) -> jax.Array:
    """P(i ∈ S) for ``x`` [..., items]; 1 ≤ k < n; see ``threshold`` for ``largest``."""
    # Any λ is right, so none of its derivative is needed.
    u = x - lax.stop_gradient(threshold(LOGISTIC, k, x, largest))[..., None]
    heads, tails = logistic(u), logistic(-u)
    degree = min(k, x.shape[-1] - k)
    counted, others = (heads, tails) if degree == k else (tails, heads)

    def total_log_probability(counted: jax.Array, others: jax.Array) -> jax.Array:
        return jnp.sum(jnp.log(_coefficient(counted, others, degree)))

    by_counted, by_others = jax.grad(total_log_probability, argnums=(0, 1))(counted, others)
    into, out_of = counted * by_counted, others * by_others
    # They add up to 1 but for rounding.
    chosen = into if degree == k else out_of
    return chosen / (into + out_of)


def _coefficient(first: jax.Array, zeroth: jax.Array, degree: int) -> jax.Array:
    """The coefficient of t^degree in Π_i (zeroth_i + first_i t), [..., items] -> [...]."""
    factors = jnp.stack([zeroth, first], axis=-1)
    while factors.shape[-2] > 1:
        if factors.shape[-2] % 2:
            one = jnp.zeros_like(factors[..., :1, :]).at[..., 0].set(1)
            factors = jnp.concatenate([factors, one], axis=-2)
        left, right = factors[..., 0::2, :], factors[..., 1::2, :]
        if factors.shape[-2] == 2:
            return _last_coefficient(left[..., 0, :], right[..., 0, :], degree)
        factors = _product(left, right, min(2 * left.shape[-1] - 1, degree + 1))
    return factors[..., 0, degree]


def _last_coefficient(left: jax.Array, right: jax.Array, degree: int) -> jax.Array:
    lowest = degree - (right.shape[-1] - 1)
    return jnp.sum(left[..., lowest : degree + 1] * right[..., ::-1], axis=-1)


@jax.checkpoint
def _multiply_rows(left: jax.Array, right: jax.Array) -> jax.Array:
    """All coefficients of the product, [..., L] twice -> [..., 2L - 1]."""
    length = left.shape[-1]
    # Rows of 2L entries read as rows of 2L - 1: row i is shifted to the right by i.
    zeros = [(0, 0)] * (right.ndim - 1)
    rows = jnp.broadcast_to(
        jnp.pad(right, [*zeros, (0, length)])[..., None, :],
        (*right.shape[:-1], length, 2 * length),
    ).reshape(*right.shape[:-1], 2 * length * length)
    shifted = rows[..., : length * (2 * length - 1)]
    shifted = shifted.reshape(*right.shape[:-1], length, 2 * length - 1)
    return jnp.sum(left[..., None] * shifted, axis=-2)


def _product(left: jax.Array, right: jax.Array, length: int) -> jax.Array:
    return _multiply_rows(left, right)[..., :length]
