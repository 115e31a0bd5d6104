"""Checks of arguments, shared by every package; errors say what was expected, got, and to do.

Concrete values are checked in plain Python and raise; a traced value that is out of range becomes
NaN. Python, NumPy and JAX scalars are treated alike.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike


def floating(name: str, x: ArrayLike) -> jax.Array:
    """``x`` as an array; a TypeError unless its dtype is a floating one."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a floating-point array, got {x.dtype}; "
            "convert it first, for example x.astype(jnp.float32)"
        )
    return x


def accumulator(dtype: DTypeLike) -> Any:
    """The dtype that sums of this one are kept in: at least float32."""
    # Floats of 8 bits and less are promoted to nothing by JAX.
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16
    return jnp.promote_types(jnp.float32 if narrow else dtype, jnp.float32)


def widened(name: str, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """``x`` as a floating array, and its copy in at least float32."""
    x = floating(name, x)
    return x, x.astype(accumulator(x.dtype))


def integers(name: str, x: ArrayLike) -> jax.Array:
    """``x`` as integers of at least 32 bits, in which no size of this library wraps around."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be an array of integers, got {x.dtype}; "
            "convert it first, for example x.astype(jnp.int32)"
        )
    # Integers of 4 bits and less are promoted to nothing by JAX.
    narrow = jnp.iinfo(x.dtype).bits < 8
    return x.astype(jnp.promote_types(jnp.int32 if narrow else x.dtype, jnp.int32))


def typed_key(name: str, key: Any) -> jax.Array:
    """``key``; a TypeError unless it is a typed PRNG key."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"{name} must be a typed key such as jax.random.key(0), got {key!r:.80}")
    return key


def axis(name: str, value: int, x: jax.Array) -> int:
    """The axis as a number from 0."""
    value = operator.index(value)
    if not -x.ndim <= value < x.ndim:
        raise ValueError(f"{name} must be an axis of an array with shape {x.shape}, got {value}")
    return value % x.ndim


def number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
    advice: str = "",
) -> Any:
    """One finite number within bounds, as a Python float; a traced one out of them becomes NaN."""
    if isinstance(value, jax.core.Tracer):
        inside = (value > above) & (value >= at_least) & (value < below) & (value <= at_most)
        return jnp.where(inside, value, jnp.nan)
    scalar = np.asarray(value)
    plain = math.nan if scalar.ndim or scalar.dtype.kind in "OSUc" else float(scalar)
    if not (above < plain < below and at_least <= plain <= at_most and math.isfinite(plain)):
        bounds = (("> ", above), ("≥ ", at_least), ("< ", below), ("≤ ", at_most))
        wanted = " and ".join(f"{sign}{bound:g}" for sign, bound in bounds if abs(bound) < math.inf)
        raise ValueError(
            f"{name} must be one finite number{' ' if wanted else ''}{wanted}, got {value!r:.80}"
            f"{'; ' if advice else ''}{advice}"
        )
    return plain


def count(name: str, value: Any, *, at_least: int = 0, at_most: float = math.inf) -> int:
    """One integer within bounds, as a Python int; neither a truth value nor a float is one."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        plain = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r:.80}") from None
    if not at_least <= plain <= at_most:
        wanted = f"at least {at_least}" + (f" and at most {at_most}" if at_most < math.inf else "")
        raise ValueError(f"{name} must be {wanted}, got {plain}")
    return plain


def choice(name: str, value: Any, options: Sequence[Any]) -> None:
    """A ValueError unless ``value`` is one of the options."""
    if value not in options:
        listed = ", ".join(map(repr, options))
        raise ValueError(f"{name} must be one of {listed}; got {value!r:.80}")


def shapes(**arrays: tuple[Any, str]) -> dict[str, int]:
    """Binds letters to sizes and compares every array with its layout.

    Args:
        **arrays: name -> (array, layout). A layout is letters set apart by blanks, such as
            ``"T B I"``; a number stands for itself; a leading ``...`` takes any further axes.

    Returns:
        The size of each letter.

    Raises:
        ValueError: if an array has another rank, or a size that differs from what its letter
            stood for before.

    >>> shapes(xs=(jnp.ones((5, 2, 3)), "T B I"), kernel=(jnp.ones((3, 8)), "I G"))
    {'T': 5, 'B': 2, 'I': 3, 'G': 8}
    """
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}
    for name, (array, layout) in arrays.items():
        letters, shape = layout.split(), jnp.shape(array)
        wanted = f"[{', '.join(letters)}]"
        leading = letters[:1] == ["..."]
        letters = letters[leading:]
        if len(shape) < len(letters) or (len(shape) > len(letters) and not leading):
            raise ValueError(f"{name} must have shape {wanted}, got {list(shape)}")
        for letter, size in zip(letters, shape[len(shape) - len(letters) :], strict=True):
            if letter.isdigit():
                expected, source = int(letter), "here"
            else:
                expected = sizes.setdefault(letter, size)
                source = f"in {origin.setdefault(letter, name)}"
            if size != expected:
                where = "" if letter.isdigit() else f", where {letter} is {expected} {source}"
                raise ValueError(f"{name} must have shape {wanted}{where}; got {list(shape)}")
    return sizes
