"""What may stand in for a value: an array per output of its equation, alike in shape and dtype."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zoo.capture.sites import Hit

Shape = tuple[int, ...]


def check_replacement(
    given: Any, types: Sequence[Any], shapes: Sequence[Sequence[Shape]], name: str
) -> list[jax.Array]:
    """The arrays of a replacement.

    Args:
        given: an array, or a tuple of them for an equation with several outputs.
        types: abstract values of these outputs.
        shapes: the shapes that each array may have.
        name: for messages.

    Raises:
        TypeError or ValueError: if something does not fit.
    """
    leaves = [given] if len(types) == 1 else given
    if not isinstance(leaves, (tuple, list)) or len(leaves) != len(types):
        raise TypeError(
            f"inject: the replacement of {name!r} must be a tuple of {len(types)} arrays, one per "
            f"output of its equation, got {type(given).__name__}"
        )
    return [
        _check(leaf, aval, allowed, name)
        for leaf, aval, allowed in zip(leaves, types, shapes, strict=True)
    ]


def _check(given: Any, aval: Any, allowed: Sequence[Shape], name: str) -> jax.Array:
    if isinstance(given, (tuple, list, dict, str)) or given is None:
        raise TypeError(
            f"inject: the replacement of {name!r} must be an array, or a function that returns "
            f"one, got {type(given).__name__}"
        )
    x = jnp.asarray(given)
    if x.shape not in allowed:
        raise ValueError(
            f"inject: the replacement of {name!r} must have shape "
            f"{' or '.join(map(str, allowed))}, got {x.shape}; to fill with one number, give a "
            "function such as jnp.zeros_like"
        )
    if x.dtype != aval.dtype:
        raise TypeError(
            f"inject: the replacement of {name!r} must have dtype {aval.dtype}, got {x.dtype}; "
            "convert it with .astype"
        )
    return x


def stack_replacement(given: Any, hit: Hit) -> list[jax.Array]:
    """The arrays of a replacement in the shapes that capture returns.

    One value for all steps of the scans around it (of the inner ones, at least) is repeated.
    """
    full = hit.shapes()
    allowed = []
    for shape, aval in zip(full, hit.types, strict=True):
        missing = len(shape) - len(aval.shape)
        allowed.append([shape[i:] for i in range(missing, -1, -1)] if missing > 0 else [shape])
    arrays = check_replacement(given, hit.types, allowed, hit.name)
    return [jnp.broadcast_to(x, shape) for x, shape in zip(arrays, full, strict=True)]
