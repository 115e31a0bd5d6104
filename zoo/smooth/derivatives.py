"""What the smooth operators share: their arguments, and derivatives written by hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from zoo import _checks


def check_arguments(
    x: ArrayLike, temperature: ArrayLike, *, name: str = "x"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``x`` as an array, its copy in at least float32, and the temperature in the copy's dtype."""
    x, wide = _checks.widened(name, x)
    advice = "for the exact operator see zoo.smooth.harden"
    temperature = _checks.number("temperature", temperature, above=0, advice=advice)
    return x, wide, jnp.asarray(temperature, wide.dtype)


def magnitude(x: jax.Array, temperature: jax.Array) -> jax.Array:
    """|x|/τ, small enough to be squared."""
    return jnp.minimum(jnp.abs(x) / temperature, jnp.sqrt(jnp.finfo(x.dtype).max) / 4)


def with_slopes(
    value: Callable[[jax.Array, jax.Array], jax.Array],
    in_x: Callable[[jax.Array, jax.Array], jax.Array],
    in_temperature: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A function of ``(x, temperature)`` with its two partial derivatives given.

    The derivatives are themselves differentiated for higher orders.
    """
    function = jax.custom_jvp(value)

    def rule(primals: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
        terms = [
            slope(*primals) * tangent
            for slope, tangent in zip((in_x, in_temperature), tangents, strict=True)
            if not isinstance(tangent, SymbolicZero)
        ]
        output = function(*primals)
        return output, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(output)

    function.defjvp(rule, symbolic_zeros=True)
    return function


@jax.custom_jvp
def logistic(u: jax.Array) -> jax.Array:
    """σ(u) = 1 / (1 + e^{-u}) whose derivative σ(u)·σ(-u) stays exact where σ(u) rounds to 1."""
    return jax.nn.sigmoid(u)


@logistic.defjvp
def _logistic_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (u,), (du,) = primals, tangents
    return logistic(u), logistic(u) * logistic(-u) * du
