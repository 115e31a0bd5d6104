"""Taps: read or replace any intermediate value of a function.

    tap(x, name) = x
    capture(f)(x) = f(x), {name: value}
    inject(f, {name: g})(x) = f(x) with g(value) in place of the tapped value
    capture(f, gradients=True)(x) = f(x), {name: value}, {name: ∂f/∂value}

`tap` is JAX's ``checkpoint_name``, an identity that vanishes when the program is compiled. So names
that other libraries gave, and those that `jax.checkpoint` policies save, can be captured as well.
`capture` traces the function, rewrites its program so that the marked values become outputs, and
runs that. With ``where`` (equations) or ``paths`` (modules of Flax) it needs no mark at all;
`list_values` tells what there is.

Source: Jianlin Su, "Keras as you like it: intermediate variables, weight moving average, safe
generators", 2019, article https://kexue.fm/archives/6575, which reads the attention matrix out of a
layer that does not return it.
"""

import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from zoo.capture.equations import Hit, Path, Predicate, find_hits
from zoo.capture.interpreter import Interpreter, Site, check_replacement
from zoo.capture.modules import as_path, matches, with_module_taps

T = TypeVar("T")

_READER, _ADDER = Interpreter("read"), Interpreter("add")


def tap(x: T, name: str) -> T:
    """Marks a value, so that `capture` can return it and `inject` replace it.

    tap(x, name) = x.

    It is ``jax.ad_checkpoint.checkpoint_name``: it costs nothing if it is not read, and also serves
    `jax.checkpoint` policies. Continue with the value it returns: one that nothing depends on can
    be dropped by the transformations of JAX.

    Args:
        x: an array, or a tree of arrays, each of which becomes one hit of the name.
        name: any string without ``#`` and ``*``.

    Returns:
        ``x``.

    Raises:
        TypeError: if the name is not a string; ValueError: if it is empty or has a ``#`` or ``*``.

    >>> float(tap(jnp.float32(2), "doubled"))
    2.0

    Reference: https://kexue.fm/archives/6575.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    if not name or "#" in name or "*" in name:
        raise ValueError(
            "name must be a string without '#' (numbers of hits) and '*' (patterns), and not "
            f"empty, got {name!r}"
        )
    return checkpoint_name(x, name)


def capture(
    fn: Callable[..., Any],
    names: str | Iterable[str] | None = None,
    *,
    where: Predicate | None = None,
    paths: str | Iterable[str] | None = None,
    gradients: bool = False,
) -> Callable[..., Any]:
    """Returns intermediate values beside the output of a function.

    capture(f)(x) = f(x), {name: value}.

    The function may hold `jit`, `vmap`, `grad`, `scan`, `while_loop`, `cond`, `switch`,
    `checkpoint`, custom derivatives and `shard_map`, nested in any way, and the result may be
    transformed again. A value read inside

    - `scan` is stacked along a new first axis, one entry per step (also from `map`, and from a
      `fori_loop` of known length);
    - `while_loop` is that of the last iteration; NaN (integers: 0) if there was none;
    - `cond` or `switch` is ``Conditional(value, present)``, zeros where the branch was not taken;
    - `shard_map` has the shards side by side along its first axis (a scalar: as a vector), unless
      it is the same on all shards;
    - `vmap` or `grad` is a value of the program that these make: a batch axis lies where `vmap`
      put it, both branches of a batched `cond` are run, and a batched `while_loop` runs for all
      entries until the last is done. ``vmap(capture(f))`` returns the values of each entry instead.

    Outputs are computed by the same operations as without capture, and what is returned can be
    differentiated. Outside `jit` the function is traced at each call; jit the result for speed.
    Changes that ``fn`` makes to Python objects are lost, as under `jit`: split an NNX module,
    return its state.

    Args:
        fn: any function that `jax.jit` could trace. Arrays among its arguments are traced, all
            else is passed on.
        names: which taps; a name, a numbered hit such as ``"h#1"`` or a pattern such as
            ``"layer_*"``, or several of them. None: all taps, or none beside ``where`` and
            ``paths``.
        where: says for each `Equation` of the program, also inside loops and branches, whether
            its result is returned, named by scope and primitive: ``"Encoder/attention/div"``.
        paths: modules of Flax whose results are returned, such as ``"layers.3.attention"`` or
            ``"layers.*.attention"`` (``**``: any depth), named ``"layers/3/attention"``; of layers
            that are stacked and run in a loop, ``"layers.attention"``. A module of NNX is ``fn``
            itself (or its method), or among the arguments; with one of Linen, ``fn`` is any
            function that applies it.
        gradients: also returns those of the output, a scalar, with respect to the values (floating
            ones). Each is what moves the output if the value alone moves, by the rules of
            ``jax.grad``; a value within a loop has one for each step.

    Returns:
        A function of the same arguments that returns the output of ``fn`` and the captured values
        in the order of the program, and their gradients if asked for. A name with several hits is
        numbered: ``h#0``, ``h#1``, ….

    Raises:
        TypeError: if an argument has the wrong type; ValueError: if a name is given twice; when
            called, if a name (the message lists what there is), a path or the predicate matches
            nothing, or if there are gradients of what is no scalar.

    >>> @jax.jit
    ... def model(x):
    ...     return jnp.sum(tap(jnp.tanh(x), "hidden"))
    >>> output, values = capture(model, "hidden")(jnp.zeros(3))
    >>> print(values)
    {'hidden': Array([0., 0., 0.], dtype=float32)}
    >>> output, values = capture(model, where=lambda e: e.primitive.name == "tanh")(jnp.zeros(3))
    >>> print(values)
    {'tanh': Array([0., 0., 0.], dtype=float32)}
    >>> capture(model, gradients=True)(jnp.zeros(3))[2]  # of the output with respect to "hidden"
    {'hidden': Array([1., 1., 1.], dtype=float32)}

    Reference: https://kexue.fm/archives/6575.
    """
    requests = None if names is None else _requests(names)
    modules = _paths(paths)
    _check_callable(fn=fn, where=where)

    @functools.wraps(fn, updated=())
    def capturing(*args: Any, **kwargs: Any) -> Any:
        program, arrays, rebuild, hits = _hits_of(fn, args, kwargs, where, modules)
        everything = requests is None and where is None and not modules
        chosen = {hit.name for hit in hits if hit.selected or everything}
        chosen |= {hit.name for request in requests or () for hit in _named(hits, request)}
        chosen |= {hit.name for hit in hits if matches(hit.label, modules)}
        wanted = [hit for hit in hits if hit.name in chosen]
        plan = tuple((hit.path, _site(hit)) for hit in wanted)
        if not gradients:
            outputs, read = _READER.run(program, plan, arrays, {})
            return rebuild(outputs), {hit.name: read[hit.name] for hit in wanted}

        if [v.aval.shape for v in program.jaxpr.outvars] != [()]:
            shapes = [v.aval.shape for v in program.jaxpr.outvars]
            raise ValueError(f"fn must return one scalar to have gradients of, got shapes {shapes}")

        def shifted(shifts: dict[str, Any]) -> tuple[jax.Array, Any]:
            outputs, read = _ADDER.run(program, plan, arrays, shifts)
            return outputs[0], (outputs, read)

        no_shifts = {hit.name: _zeros(hit) for hit in wanted if _is_floating(hit)}
        of_values, (outputs, read) = jax.grad(shifted, has_aux=True)(no_shifts)
        values = {hit.name: read[hit.name] for hit in wanted}
        of_values = {name: of_values[name] for name in values if name in of_values}
        single = {name: x[0] if len(x) == 1 else tuple(x) for name, x in of_values.items()}
        return rebuild(outputs), values, single

    return capturing


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

    >>> def model(x):
    ...     return jnp.sum(tap(jnp.tanh(x), "hidden"))
    >>> list_values(model)(jax.ShapeDtypeStruct((2, 3), "float32"))
    name    shape   dtype    source
    hidden  (2, 3)  float32  ...

    Reference: https://kexue.fm/archives/6575.
    """
    _check_callable(fn=fn, where=where)

    @functools.wraps(fn, updated=())
    def listing(*args: Any, **kwargs: Any) -> Listing:
        *_, hits = _hits_of(fn, args, kwargs, where, ["**"])
        return Listing(
            Value(hit.name, hit.shape(i), aval.dtype, hit.source)
            for hit in hits
            for i, aval in enumerate(hit.types)
        )

    return listing


def inject(
    fn: Callable[..., Any],
    replacements: Mapping[str, Any],
    *,
    where: Predicate | None = None,
    paths: str | Iterable[str] | None = None,
) -> Callable[..., Any]:
    """Replaces intermediate values of a function: ablation, activation patching, steering.

    inject(f, {name: g})(x) = f(x) with g(value) in place of the tapped value.

    Gradients go through the replacement: ``grad(inject(f, …))``. (Not ``inject(grad(f), …)``: the
    backward pass that `grad` has made would not know of it.) A custom derivative rule around a
    replaced value is dropped, and the changed program differentiated as it stands.

    Args:
        fn: any function that `jax.jit` could trace.
        replacements: name -> array, or function of the value that returns one like it, traced at
            each call, so that it may read what changes. Names are
            those of `capture`; one that stands for several hits replaces them all. An array has
            the shape of the tapped value, or the one that `capture` returns (one entry for each
            step of a `scan`, all shards of a `shard_map`).
        where: as in `capture`; the equations it selects can be replaced by their names.
        paths: as in `capture`; what these modules return can be replaced by its path.

    Returns:
        A function of the same arguments, with the output of ``fn``.

    Raises:
        TypeError or ValueError: when called, if a name matches nothing (the message lists what
            there is), if two match the same value, or if a replacement differs in shape or dtype.

    >>> def model(x):
    ...     return 3 * tap(2 * x, "hidden")
    >>> print(inject(model, {"hidden": jnp.float32(1)})(jnp.float32(5)))
    3.0
    >>> print(inject(model, {"hidden": lambda h: h + 1})(jnp.float32(5)))
    33.0

    Reference: https://kexue.fm/archives/6575.
    """
    _check_callable(fn=fn, where=where)
    if not isinstance(replacements, Mapping):
        raise TypeError(
            f"replacements must map names to arrays or functions, got {type(replacements).__name__}"
        )
    _requests(replacements)
    modules = _paths(paths)
    replacer = Interpreter("replace")

    @functools.wraps(fn, updated=())
    def injecting(*args: Any, **kwargs: Any) -> Any:
        program, arrays, rebuild, hits = _hits_of(fn, args, kwargs, where, modules)
        sites: dict[Path, Site] = {}
        values = {}
        for request, replacement in replacements.items():
            path = as_path(request) if modules else request
            for hit in _named(hits, request if request in {h.label for h in hits} else path):
                if hit.path in sites:
                    raise ValueError(
                        f"replacements must name a value once, got two for {hit.name!r}, one of "
                        f"them by {request!r}"
                    )
                sites[hit.path] = _site(hit)
                if callable(replacement):
                    sites[hit.path] = sites[hit.path]._replace(replacement=replacement)
                else:
                    values[hit.name] = _stacked(replacement, hit)
        outputs, _ = replacer.run(program, tuple(sites.items()), arrays, values)
        return rebuild(outputs)

    return injecting


def _trace(
    fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, list[Any], Callable[[Sequence[Any]], Any]]:
    """The program of a call, its inputs, and what puts its outputs into the tree of ``fn``."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    kinds = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, kinds)]

    # A new function each time: JAX remembers programs by function, and fn may read what changes.
    def of_arrays(arrays: list[Any]) -> Any:
        full = list(leaves)
        for i, array in zip(positions, arrays, strict=True):
            full[i] = array
        args, kwargs = jax.tree.unflatten(structure, full)
        return fn(*args, **kwargs)

    arrays = [leaves[i] for i in positions]
    program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(arrays)
    return program, arrays, functools.partial(jax.tree.unflatten, jax.tree.structure(shapes))


def _hits_of(
    fn: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    where: Predicate | None,
    modules: Sequence[str],
) -> tuple[Any, list[Any], Callable[[Sequence[Any]], Any], list[Hit]]:
    """What `_trace` gives, with taps at the modules, and all places that can be read."""
    reached: list[str] = []
    tapped = with_module_taps(fn, tuple(modules), reached) if modules else fn
    program, arrays, rebuild = _trace(tapped, args, kwargs)
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
    return program, arrays, rebuild, hits


def _named(hits: list[Hit], request: str) -> list[Hit]:
    """The hits that a name, a numbered name or a pattern with ``*`` stands for."""
    match = functools.partial(fnmatch.fnmatchcase, pat=request)
    found = [hit for hit in hits if request == hit.name or match(hit.name) or match(hit.label)]
    if not found:
        there = ", ".join(repr(hit.name) for hit in hits if not hit.blocked) or "none"
        lost = ", ".join(f"{hit.name!r} in {hit.blocked}" for hit in hits if hit.blocked)
        raise ValueError(
            f"names must be taps that the function reaches, got {request!r}; it reaches: {there}"
            f"{f'; out of reach: {lost}' if lost else ''}"
        )
    return found


def _site(hit: Hit) -> Site:
    if hit.blocked:
        raise ValueError(
            f"{hit.name!r} lies inside {hit.blocked!r}, whose program cannot be rewritten; name "
            "the taps to use, without this one"
        )
    return Site(hit.name, hit.varying)


def _stacked(given: Any, hit: Hit) -> list[jax.Array]:
    """The arrays of a replacement in the shapes that capture returns.

    One value for all steps of the scans around it (of the inner ones, at least) is repeated.
    """
    full = [hit.shape(output) for output in range(len(hit.types))]
    allowed = []
    for shape, aval in zip(full, hit.types, strict=True):
        missing = max(0, len(shape) - len(aval.shape))
        allowed.append([shape[i:] for i in range(missing, -1, -1)])
    arrays = check_replacement(hit.name, given, hit.types, allowed)
    return [jnp.broadcast_to(x, shape) for x, shape in zip(arrays, full, strict=True)]


def _zeros(hit: Hit) -> list[jax.Array]:
    return [jnp.zeros(hit.shape(i), aval.dtype) for i, aval in enumerate(hit.types)]


def _is_floating(hit: Hit) -> bool:
    return all(jnp.issubdtype(aval.dtype, jnp.inexact) for aval in hit.types)


def _paths(paths: str | Iterable[str] | None) -> list[str]:
    return [] if paths is None else list(map(as_path, _requests(paths, "paths")))


def _requests(names: str | Iterable[str], argument: str = "names") -> list[str]:
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        raise TypeError(
            f"{argument} must be a string or several, got {names!r}; a predicate is given by where="
        )
    given = list(given)
    if twice := {name for name in given if given.count(name) > 1}:
        raise ValueError(f"{argument} must be different, got {sorted(twice)} twice")
    return given


def _check_callable(**arguments: Any) -> None:
    for name, value in arguments.items():
        if not callable(value) and not (value is None and name == "where"):
            raise TypeError(f"{name} must be callable, got {type(value).__name__}")
