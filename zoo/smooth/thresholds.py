"""The threshold λ(x) that makes Σ_i f(x_i - λ) = k, with its implicit derivative.

    dλ = Σ_j w_j dx_j,   w = f'(x - λ) / Σ_j f'(x_j - λ)

f rises from 0 to 1. The derivative needs λ and f' only, whatever found λ, and its own derivatives
follow by differentiating the rule.

Here x is shifted so that its k-th largest entry is 0 (λ moves with it). With r the number of
entries ≥ 0 beyond k (ties), the condition is E = D for the expected number of entries let in from
below, E = r + Σ_{x<0} f(x - λ), and kept out from above, D = Σ_{x≥0} f(λ - x): two sums of positive
numbers, so that no digits cancel in Σ f - k. Where ties are so many (r ≥ k) that λ lies above them,
E ≈ r would drown the rest: there they count as below, E = Σ_{x≤0} f(x - λ), and
D = -r' + Σ_{x>0} f(λ - x) with r' = #(x > 0) - k < 0. log E - log D is nearly linear in λ, with a
slope in [-2, 0), and Newton's method needs a handful of steps from any start.

Source: Jianlin Su, "Smooth top-k", 2024, https://kexue.fm/archives/10373 (ThreTopK). Its sorting
solution for the Laplace form finds no λ when every entry lies above λ; this one does not sort.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import _cpu
from zoo.smooth.derivatives import logistic

# Entries a gap of more than this below the k largest are as good as infinitely far: e^{-35} on
# either side of λ. The smallest sums, e^{-70}/n, are far from the end of float32.
LARGEST_GAP = 70.0
MAX_STEPS = 40
CAP = 80.0  # e^CAP is more than any number of items, and a float32


class Form(NamedTuple):
    """A rising function from 0 to 1 with f(-u) = 1 - f(u), or 1 from 0 on."""

    cdf: Callable[[jax.Array], jax.Array]  # f, exact also where it is nearly 0
    log_slope: Callable[[jax.Array], jax.Array]  # log f' up to a constant
    solve: Callable[["Form", int, jax.Array, jax.Array], jax.Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def threshold(form: Form, k: int, x: jax.Array, largest: jax.Array) -> jax.Array:
    """λ for ``x`` [items, ...] whose ``largest`` k entries are given, the k-th being 0."""
    return form.solve(form, k, x, largest)


@threshold.defjvp
def _threshold_jvp(
    form: Form, k: int, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    solution = threshold(form, k, *primals)
    weights = jax.nn.softmax(form.log_slope(primals[0] - solution[None]), axis=0)
    return solution, jnp.sum(weights * tangents[0], axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _newton(form: Form, k: int, x: jax.Array, largest: jax.Array) -> jax.Array:
    """λ by Newton's method, kept inside a bracket that shrinks at every step."""
    tied = jnp.sum(x >= 0, axis=0) - k
    many_ties = tied >= k
    first_inside = jnp.where(many_ties, jnp.finfo(x.dtype).tiny, 0)
    surplus = jnp.where(many_ties, jnp.sum(x > 0, axis=0) - k, tied).astype(x.dtype)
    next_largest = jnp.where(tied > 0, 0, jnp.max(jnp.where(x < 0, x, -jnp.inf), axis=0))
    # Closing a wide gap moves λ by half of what it was closed by.
    closed = jnp.maximum(-LARGEST_GAP - next_largest, 0)
    # At one end k + 1 entries are at least k/(k + 1), at the other n - k + 1 at most 1/(n - k + 1).
    low = next_largest + closed - math.log(k)
    high = jnp.full_like(low, math.log(len(x) - k))
    x = jnp.where(x < 0, x + closed[None], x)
    tolerance = jnp.finfo(x.dtype).eps ** 0.6  # the error after it is about its square

    def unsettled(carry: tuple) -> jax.Array:
        _, _, _, moved, steps = carry
        return (steps < MAX_STEPS) & jnp.any(moved > tolerance)

    def step(carry: tuple) -> tuple:
        solution, low, high, _, steps = carry
        # Each entry on the wrong side of λ with its probability f(u) and the slope of that.
        inside, u = x >= first_inside[None], x - solution[None]
        u = jnp.where(inside, -u, u)
        wrong, slope = jax.jvp(form.cdf, (u,), (jnp.ones_like(u),))
        kept_out = jnp.sum(jnp.where(inside, wrong, 0), axis=0) + jnp.maximum(-surplus, 0)
        let_in = jnp.sum(jnp.where(inside, 0, wrong), axis=0) + jnp.maximum(surplus, 0)
        falls = (
            jnp.sum(jnp.where(inside, slope, 0), axis=0) / kept_out
            + jnp.sum(jnp.where(inside, 0, slope), axis=0) / let_in
        )
        excess = jnp.log(let_in) - jnp.log(kept_out)
        low = jnp.where(excess > 0, solution, low)
        high = jnp.where(excess > 0, high, solution)
        proposal = solution + excess / falls
        within = (proposal >= low) & (proposal <= high)
        proposal = jnp.where(within, proposal, (low + high) / 2)
        return proposal, low, high, jnp.abs(proposal - solution), steps + 1

    start = (low + high) / 2
    found = lax.while_loop(unsettled, step, (start, low, high, jnp.full_like(low, jnp.inf), 0))[0]
    return found - closed / 2


@functools.partial(jax.jit, static_argnums=(0, 1))
def _closed_form(form: Form, k: int, x: jax.Array, largest: jax.Array) -> jax.Array:
    """λ for f = min(1, e^u), from the k largest and the sum of the rest.

    With the m largest at 1, λ_m = log(Σ_{i>m} e^{x_i}) - log(k - m). Taking 1 or e^u where the
    other one is smaller overrates Σ f, so that every λ_m ≥ λ, and λ = min_m λ_m over m < k. The
    last is at most log n: where an entry beyond CAP is in the sum, λ_m is not the least.
    """
    ties = (jnp.sum(x >= 0, axis=0) - k).astype(x.dtype)
    rest = ties + jnp.sum(jnp.where(x < 0, jnp.exp(jnp.minimum(x, 0)), 0), axis=0)
    terms = jnp.exp(jnp.minimum(largest, CAP))
    terms = terms.at[-1].add(rest)
    sums = _cpu.running("sum", terms, axis=0, reverse=True)
    remaining = jnp.arange(k, 0, -1, dtype=x.dtype)
    return jnp.min(jnp.log(sums / jnp.expand_dims(remaining, range(1, x.ndim))), axis=0)


@jax.custom_jvp
def _laplace(u: jax.Array) -> jax.Array:
    tail = jnp.exp(-jnp.abs(u)) / 2
    return jnp.where(u < 0, tail, 1 - tail)


@_laplace.defjvp
def _laplace_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (u,), (du,) = primals, tangents
    return _laplace(u), jnp.exp(-jnp.abs(u)) / 2 * du


LOGISTIC = Form(logistic, lambda u: -jnp.abs(u) - 2 * jnp.log1p(jnp.exp(-jnp.abs(u))), _newton)
LAPLACE = Form(_laplace, lambda u: -jnp.abs(u), _newton)
CLIPPED = Form(
    lambda u: jnp.exp(jnp.minimum(u, 0)), lambda u: jnp.where(u > 0, -jnp.inf, u), _closed_form
)
