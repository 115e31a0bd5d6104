"""The program of a call, and the places in it that can be read."""

import fnmatch
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zoo.capture.equations import Hit, Predicate, find_hits
from zoo.capture.modules import as_path, matches, with_module_taps


class Traced(NamedTuple):
    """A call that has been traced.

    Attributes:
        program: its closed jaxpr.
        arrays: the inputs of the program.
        rebuild: puts the outputs into the tree of the function.
        hits: all places that can be read.
    """

    program: Any
    arrays: list[Any]
    rebuild: Callable[[Sequence[Any]], Any]
    hits: list[Hit]


def trace(
    fn: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    where: Predicate | None,
    modules: Sequence[str],
) -> Traced:
    """Traces ``fn(*args, **kwargs)`` with taps at its modules; arrays in the arguments are inputs.

    Raises:
        ValueError: if the predicate selects nothing, or a pattern of ``modules`` no module; ``**``
            may.
    """
    reached: list[str] = []
    tapped = with_module_taps(fn, tuple(modules), reached) if modules else fn
    leaves, structure = jax.tree.flatten((args, kwargs))
    kinds = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, kinds)]

    # A new function each time: JAX remembers programs by function, and fn may read what changes.
    def of_arrays(arrays: list[Any]) -> Any:
        full = list(leaves)
        for i, array in zip(positions, arrays, strict=True):
            full[i] = array
        args, kwargs = jax.tree.unflatten(structure, full)
        return tapped(*args, **kwargs)

    arrays = [leaves[i] for i in positions]
    program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(arrays)
    rebuild = functools.partial(jax.tree.unflatten, jax.tree.structure(shapes))
    hits = find_hits(program, where)
    if where is not None and not any(hit.selected for hit in hits):
        raise ValueError(
            "where must select at least one equation, got none; jax.make_jaxpr(fn)(...) shows the "
            "equations there are"
        )
    for path in modules:
        if path != "**" and not any(matches(hit.label, [path]) for hit in hits):
            raise ValueError(
                f"paths must be of modules that are called, got {path!r}; called are: "
                f"{', '.join(dict.fromkeys(reached)) or 'none'}. A module of NNX must be fn itself "
                "or among its arguments"
            )
    return Traced(program, arrays, rebuild, hits)


def named(hits: list[Hit], request: str) -> list[Hit]:
    """The hits that a name, a numbered name or a pattern with ``*`` stands for."""
    match = functools.partial(fnmatch.fnmatchcase, pat=request)
    found = [
        hit
        for hit in hits
        if request in (hit.name, hit.label) or match(hit.name) or match(hit.label)
    ]
    if not found:
        there = ", ".join(repr(hit.name) for hit in hits if not hit.blocked) or "none"
        lost = ", ".join(f"{hit.name!r} in {hit.blocked}" for hit in hits if hit.blocked)
        raise ValueError(
            f"names must be taps that the function reaches, got {request!r}; it reaches: {there}"
            f"{f'; out of reach: {lost}' if lost else ''}"
        )
    return found


def paths_of(paths: str | Iterable[str] | None) -> list[str]:
    """The patterns of modules, as paths are written."""
    return [] if paths is None else list(map(as_path, requests_of(paths, "paths")))


def requests_of(names: str | Iterable[str], argument: str = "names") -> list[str]:
    """One name or several, each once."""
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        raise TypeError(
            f"{argument} must be a string or several, got {names!r}; a predicate is given by where="
        )
    given = list(given)
    if twice := {name for name in given if given.count(name) > 1}:
        raise ValueError(f"{argument} must be different, got {sorted(twice)} twice")
    return given


def check_callable(**arguments: Any) -> None:
    """A TypeError unless all can be called; ``where`` may be None."""
    for name, value in arguments.items():
        if not callable(value) and not (value is None and name == "where"):
            raise TypeError(f"{name} must be callable, got {type(value).__name__}")
