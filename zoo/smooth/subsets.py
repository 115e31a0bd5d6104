"""Inclusion probabilities of the random k-subset with P(S) ∝ exp Σ_{i∈S} x_i, in O(nk).

    P(i ∈ S) = ∂ log Z_k / ∂x_i,   Z_k = Σ_{|S|=k} exp Σ_{i∈S} x_i

Z_k is the coefficient of t^k in Π_i (1 + e^{x_i} t). The article's recursion for it subtracts,
and takes logarithms of what rounding leaves. Here everything is positive, and nothing overflows:

1. The law of S is that of independent coins p_i = σ(x_i - λ) given that k of them fall on heads,
   for every λ. With Σ p_i = k, k is the most probable number of heads, P(k) ≥ 1/(n + 1), so that
   Π_i (1 - p_i + p_i t) can be multiplied out without logarithms: what underflows is negligible.
   For k ≤ 16 Σ p_i may be anything from k/2 on: λ in closed form will do.
2. The product is cut off above t^k. It runs in up to 256 lanes, n/256 steps of one factor a lane,
   and the lanes are multiplied in pairs: O(nk) operations and memory, and not n steps. Of many
   columns, four factors are multiplied at once, and then by one after another.
3. P(i ∈ S) = p_i ∂ log P(k) / ∂p_i with p_i and 1 - p_i as independent variables: the way back
   through the products, positive as well.

Source: Jianlin Su, "Smooth top-k", 2024, https://kexue.fm/archives/10373 (GradTopK); the law given
its number of heads: Sean X. Chen, Jun S. Liu, "Statistical applications of the Poisson-binomial
and conditional Bernoulli distributions", Statistica Sinica 7, 1997.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zoo.smooth.derivatives import logistic
from zoo.smooth.thresholds import CLIPPED, LOGISTIC, threshold

FEW = 16  # coefficients up to this degree are arrays of their own
LANES = 256


@functools.partial(jax.jit, static_argnums=0)
def inclusion_probabilities(k: int, x: jax.Array, largest: jax.Array) -> jax.Array:
    """P(i ∈ S) for ``x`` [items, ...]; 1 ≤ k < n; see ``threshold`` for ``largest``."""
    # Any λ is right, so none of its derivative is needed. With the closed one Σ p_i is in [k/2, k].
    form = CLIPPED if k <= FEW else LOGISTIC
    u = x - lax.stop_gradient(threshold(form, k, x, largest))[None]
    # Without the barrier XLA would compute them anew for every product.
    heads, tails = lax.optimization_barrier((logistic(u), logistic(-u)))
    degree = min(k, len(x) - k)
    counted, others = (heads, tails) if degree == k else (tails, heads)
    by_terms = degree <= FEW and x[0].size >= LANES
    coefficient = _coefficient_by_terms if by_terms else _coefficient

    def total_log_probability(counted: jax.Array, others: jax.Array) -> jax.Array:
        return jnp.sum(jnp.log(coefficient(counted, others, degree)))

    by_counted, by_others = jax.grad(total_log_probability, argnums=(0, 1))(counted, others)
    into, out_of = counted * by_counted, others * by_others
    # They add up to 1 but for rounding.
    chosen = into if degree == k else out_of
    return chosen / (into + out_of)


def _coefficient_by_terms(first: jax.Array, zeroth: jax.Array, degree: int) -> jax.Array:
    """``_coefficient`` of many columns, with an array for each term: no term has to move."""
    missing = [(0, -len(first) % 4)] + [(0, 0)] * (first.ndim - 1)
    factors = [jnp.pad(zeroth, missing, constant_values=1), jnp.pad(first, missing)]

    def product(left: Any, right: Any) -> list[jax.Array]:
        terms: dict[int, jax.Array] = {}
        for i, j in itertools.product(range(len(left)), range(len(right))):
            if i + j <= degree:
                term = left[i] * right[j]
                terms[i + j] = terms[i + j] + term if i + j in terms else term
        return [terms[power] for power in range(len(terms))]

    def multiply(so_far: Any, factor: Any) -> tuple[Any, None]:
        return tuple(product(so_far, factor)), None

    for _ in range(2):  # four factors at once, the rest one after another
        half = len(factors[0]) // 2
        left, right = [c[:half] for c in factors], [c[half:] for c in factors]
        # XLA would merge the levels, and compute the lower one many times.
        factors = lax.optimization_barrier(product(left, right))
    one = jnp.ones_like(first[0])
    start = (one, *[jnp.zeros_like(one)] * degree)
    return lax.scan(multiply, start, factors)[0][degree]


def _coefficient(first: jax.Array, zeroth: jax.Array, degree: int) -> jax.Array:
    """The coefficient of t^degree in Π_i (zeroth_i + first_i t), [items, ...] -> [...]."""
    # The coefficients are the first axis, the factors the second.
    factors = _products_of_lanes(zeroth, first, degree)
    while (count := factors.shape[1]) > 1:
        if count % 2:
            one = jnp.zeros_like(factors[:, :1]).at[0].set(1)
            factors, count = jnp.concatenate([factors, one], axis=1), count + 1
        left, right = factors[:, : count // 2], factors[:, count // 2 :]
        if count == 2:
            lowest = degree - (len(right) - 1)
            return jnp.sum(left[lowest : degree + 1] * right[::-1], axis=0)[0]
        factors = _product(min(2 * len(left) - 1, degree + 1), left, right)
    return factors[degree, 0]


def _products_of_lanes(zeroth: jax.Array, first: jax.Array, degree: int) -> jax.Array:
    """The product over every lane of factors, [items, ...] -> [degree + 1, lanes, ...]."""
    items = len(zeroth)
    lanes = max(1, min(LANES, items // (degree + 1)))
    steps = -(-items // lanes)

    def in_steps(values: jax.Array, fill: float) -> jax.Array:
        padding = [(0, steps * lanes - items)] + [(0, 0)] * (values.ndim - 1)
        values = jnp.pad(values, padding, constant_values=fill)
        return values.reshape(steps, lanes, *values.shape[1:])

    def multiply(product: jax.Array, factor: tuple) -> tuple[jax.Array, None]:
        zeroth, first = factor
        shifted = jnp.concatenate([jnp.zeros_like(product[:1]), product[:-1]])
        return product * zeroth[None] + shifted * first[None], None

    factors = in_steps(zeroth, 1), in_steps(first, 0)
    one = jnp.zeros_like(factors[0][:1])
    one = jnp.concatenate([one + 1, *[one] * degree])
    return lax.scan(multiply, one, factors)[0]


@functools.partial(jax.checkpoint, static_argnums=0)
def _product(length: int, left: jax.Array, right: jax.Array) -> jax.Array:
    """The first coefficients of the products, [L, M, ...] twice -> [length, M, ...]."""
    size, rest = len(left), left.shape[1:]
    # Rows of 2L entries read as rows of 2L - 1: row i is shifted by i.
    rows = jnp.concatenate([right, jnp.zeros_like(right)])
    rows = jnp.broadcast_to(rows, (size, 2 * size, *rest)).reshape(2 * size * size, *rest)
    shifted = rows[: size * (2 * size - 1)].reshape(size, 2 * size - 1, *rest)
    return jnp.sum(left[:, None] * shifted[:, :length], axis=0)
