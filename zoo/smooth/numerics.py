"""What the smooth operators share: checks of arguments, and derivatives written by hand."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike


def widen(x: ArrayLike, name: str) -> tuple[jax.Array, jax.Array]:
    """Checks the dtype; returns ``x`` as an array and its copy in at least float32."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a floating-point array, got {x.dtype}; "
            "convert it first, for example x.astype(jnp.float32)"
        )
    return x, x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_temperature(temperature: ArrayLike, function: str, like: jax.Array) -> jax.Array:
    """The temperature in the dtype of ``like``; a traced one that is not positive becomes NaN."""
    if isinstance(temperature, jax.core.Tracer):
        traced = jnp.asarray(temperature, like.dtype)
        return jnp.where(traced > 0, traced, jnp.nan)
    value = np.asarray(temperature, np.float64)
    if value.ndim or not (value > 0 and np.isfinite(value)):
        raise ValueError(
            f"{function}: temperature must be one positive number, got {temperature}; "
            "for the exact operator see zoo.smooth.harden"
        )
    return jnp.asarray(value, like.dtype)


def check_axis(x: jax.Array, axis: int, function: str) -> int:
    """The axis as a number from 0."""
    axis = operator.index(axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis must be an axis of x, got axis={axis} for {x.shape=}")
    return axis % x.ndim


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
