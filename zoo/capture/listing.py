"""Lists what `zoo.capture.capture` could return of a function: names, shapes, dtypes, lines."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from zoo.capture.equations import Predicate
from zoo.capture.tracing import check_callable, trace


class Value(NamedTuple):
    """One row of a listing.

    Attributes:
        name: as `capture` takes it, in ``names``, ``paths`` or from ``where``.
        shape: as `capture` returns it.
        dtype: likewise.
        source: file and line.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    source: str


class Listing(tuple[Value, ...]):
    """Rows that print as a table."""

    def __repr__(self) -> str:
        rows = [("name", "shape", "dtype", "source"), *(tuple(map(str, row)) for row in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines)


def list_values(fn: Callable[..., Any], *, where: Predicate | None = None) -> Callable[..., Any]:
    """Lists what `capture` could return of a function.

    Args:
        fn: as for `capture`.
        where: which equations are listed beside the taps and the modules of Flax; ``lambda _:
            True`` for every one.

    Returns:
        A function of the same arguments that returns a tuple of rows ``(name, shape, dtype,
        source)``, which prints as a table. Nothing is computed: arguments may be
        ``jax.ShapeDtypeStruct``.

    Raises:
        TypeError: if an argument is not callable; ValueError: when called, if the predicate
            matches nothing.

    >>> import jax, jax.numpy as jnp
    >>> from zoo.capture import tap
    >>> def model(x):
    ...     return jnp.sum(tap(jnp.tanh(x), "hidden"))
    >>> list_values(model)(jax.ShapeDtypeStruct((2, 3), "float32"))
    name    shape   dtype    source
    hidden  (2, 3)  float32  ...

    Reference: https://kexue.fm/archives/6575.
    """
    check_callable(fn=fn, where=where)

    @functools.wraps(fn, updated=())
    def listing(*args: Any, **kwargs: Any) -> Listing:
        hits = trace(fn, args, kwargs, where, ["**"]).hits
        return Listing(
            Value(hit.name, hit.shape(i), aval.dtype, hit.source)
            for hit in hits
            for i, aval in enumerate(hit.types)
        )

    return listing
