"""What the smooth operators share: arguments, differences in units of τ, derivatives by hand.

Entries that take no part (masked, -inf) or lie so far away that e^{-u} is 0 get a difference of FAR
units that nothing moves: they have no derivative of any order, in x or in τ.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from zoo import _checks

FAR = 1e4  # e^{-FAR/2} is 0 in every dtype


def check_arguments(
    x: ArrayLike, temperature: ArrayLike, *, name: str = "x"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``x`` as an array, its copy in at least float32, and the temperature in the copy's dtype."""
    x, wide = _checks.widened(name, x)
    limits = jnp.finfo(wide.dtype)
    temperature = _checks.number(
        "temperature",
        temperature,
        above=0,
        at_least=FAR * float(limits.tiny),  # FAR/τ is a number: derivatives in τ need it
        at_most=float(limits.max),
        advice="for the exact operator see zoo.smooth.straight_through",
    )
    return x, wide, jnp.asarray(temperature, wide.dtype)


def fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """Whether an array of the one shape broadcasts to the other."""
    try:
        return jnp.broadcast_shapes(shape, into) == into
    except ValueError:
        return False


def check_mask(where: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """A mask as an array; a ValueError unless it is bool and broadcasts to the shape."""
    where = jnp.asarray(where)
    if where.dtype != bool or not fits(where.shape, shape):
        raise ValueError(
            f"where must be bool and broadcast to the shape {shape}, got {where.dtype} "
            f"{where.shape}; numbers become a mask by where != 0"
        )
    return where


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


def clipped_quotient(limit: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """x/τ within ±limit, constant outside: finite with all its derivatives, NaN for NaN only."""

    def edge(x: jax.Array, temperature: jax.Array) -> jax.Array:
        return jnp.minimum(limit * temperature, jnp.finfo(x.dtype).max)

    def value(x: jax.Array, temperature: jax.Array) -> jax.Array:
        # Clipped first, so that plain differentiation is right too: forward over reverse mode
        # through lax.scan forgets the rules below.
        at = edge(x, temperature)
        return jnp.clip(x, -at, at) / temperature

    def slope(x: jax.Array, temperature: jax.Array, inside: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(x) >= edge(x, temperature), 0, inside)

    quotient = with_slopes(
        value,
        in_x=lambda x, t: slope(x, t, 1 / t),
        # Not -x/τ²: the square of τ may underflow.
        in_temperature=lambda x, t: slope(x, t, -quotient(x, t) / t),
    )
    return quotient


scaled = clipped_quotient(FAR)


@jax.custom_jvp
def difference(x: jax.Array, pivot: jax.Array) -> jax.Array:
    """The difference, with inf - inf = 0; the pivot is a constant."""
    return jnp.where((x == pivot) & jnp.isinf(x), 0, x - pivot)


@difference.defjvp
def _difference_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return difference(*primals), tangents[0]


def below_peak(
    x: jax.Array, temperature: jax.Array, *, axis: Any, where: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(x - peak)/τ and the peak, the largest entry; what takes no part is FAR below it."""
    if where is not None:
        x = jnp.where(where, x, -jnp.inf)
    peak = lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True, initial=-jnp.inf))
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    # The difference comes first: x/τ itself may overflow.
    return scaled(difference(x, peak), temperature), peak


@jax.custom_jvp
def logistic(u: jax.Array) -> jax.Array:
    """σ(u) = 1 / (1 + e^{-u}) whose derivative stays exact where σ(u) rounds to 1."""
    return jax.nn.sigmoid(u)


@jax.custom_jvp
def _logistic_by_tail(u: jax.Array) -> jax.Array:
    """The same beside its slope, with which it shares one exponential."""
    tail = jax.nn.sigmoid(-jnp.abs(u))
    return jnp.where(u < 0, tail, 1 - tail)


@jax.custom_jvp
def logistic_slope(u: jax.Array) -> jax.Array:
    """σ(u)·σ(-u) from the smaller of the two."""
    tail = jax.nn.sigmoid(-jnp.abs(u))
    return tail * (1 - tail)


@logistic.defjvp
@_logistic_by_tail.defjvp
def _logistic_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return _logistic_by_tail(*primals), logistic_slope(*primals) * tangents[0]


@logistic_slope.defjvp
def _logistic_slope_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (u,), (du,) = primals, tangents
    slope = logistic_slope(u)
    return slope, slope * (1 - 2 * _logistic_by_tail(u)) * du
