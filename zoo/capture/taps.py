"""Taps: read or replace any intermediate value of a function.

    tap(x, name) = x
    capture(f)(x) = f(x), {name: value}
    inject(f, {name: g})(x) = f(x) with g(value) in place of the tapped value

`tap` marks a value and costs nothing: it is JAX's ``checkpoint_name``, an identity that vanishes
when the program is compiled. So names that other libraries gave, and those that `jax.checkpoint`
policies save, can be captured as well. `capture` traces the function, rewrites its program so that
the marked values become outputs, and runs that; the rewritten program is JAX code like any other.
With ``where`` it needs no mark at all.

Source: Jianlin Su, «Keras as you like it: intermediate variables, weight moving average, safe
generators», 2019, article https://kexue.fm/archives/6575, which reads the attention matrix out of a
layer that does not return it.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from zoo.capture.replacements import stack_replacement
from zoo.capture.rewriter import Rewriter
from zoo.capture.sites import Hit, Predicate, Site, find_hits, make_plan, named

T = TypeVar("T")

_READER = Rewriter(replaces=False)


def tap(x: T, name: str) -> T:
    """Marks a value, so that `capture` can return it and `inject` replace it.

    tap(x, name) = x.

    It is ``jax.ad_checkpoint.checkpoint_name``: free when nobody looks, and also a name for
    `jax.checkpoint` policies. Go on with the value it returns: one that nothing depends on can be
    dropped by the transformations of JAX.

    Args:
        x: an array, or a tree of arrays, each of which becomes one hit of the name.
        name: any string without ``#`` and ``*``.

    Returns:
        ``x``.

    Raises:
        TypeError: if the name is not a string; ValueError: if it is empty or has a ``#`` or ``*``.

    >>> import jax.numpy as jnp
    >>> float(tap(jnp.float32(2), "doubled"))
    2.0

    Reference: https://kexue.fm/archives/6575.
    """
    if not isinstance(name, str):
        raise TypeError(f"tap: name must be a string, got {type(name).__name__}")
    if not name or "#" in name or "*" in name:
        raise ValueError(
            f"tap: name must be a string without '#' (numbers of hits) and '*' (patterns), "
            f"and not empty, got {name!r}"
        )
    return checkpoint_name(x, name)


def capture(
    fn: Callable[..., Any],
    names: str | Iterable[str] | None = None,
    *,
    where: Predicate | None = None,
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Returns intermediate values beside the output of a function.

    capture(f)(x) = f(x), {name: value}.

    The function may hold `jit`, `vmap`, `grad`, `scan`, `while_loop`, `cond`, `switch`,
    `checkpoint`, custom derivatives and `shard_map`, nested in any way, and the result may be
    transformed again. A value read inside

    - `scan` comes stacked along a new first axis, one entry a step (also from `map`, and from a
      `fori_loop` of known length);
    - `while_loop` comes from the last iteration; NaN (integers: 0) if there was none;
    - `cond` or `switch` comes as ``Conditional(value, present)``, zeros where the branch was not
      taken;
    - `shard_map` comes with the shards side by side along its first axis (a scalar: as a vector);
      one that does not differ between shards comes as it is;
    - `vmap` or `grad` is a value of the program that these make: a batch axis lies where `vmap`
      put it, both branches of a batched `cond` are run, and a batched `while_loop` goes on until
      all are done. ``vmap(capture(f))`` returns the values of each entry instead.

    Outputs are computed by the same operations as without capture. (Under `jit`, XLA can round a
    product and a sum together as long as nobody else reads the product, so that one more output
    can change a last bit, captured or written by hand.) What is returned can be differentiated,
    through the code that computes it. Outside `jit` the function is traced at each call and
    evaluated step by step, as it would be without capture; jit the result for speed. Changes that
    ``fn`` makes to Python objects are lost, as under `jit`: split an NNX module, return its state.

    Args:
        fn: any function that `jax.jit` could trace. Arrays among its arguments are traced, all
            else is passed on.
        names: which taps; a name, a numbered hit such as ``"h#1"`` or a pattern such as
            ``"layer_*"``, or several of them. None: all taps, or none beside ``where``.
        where: says for each `Equation` of the program, also inside loops and branches, whether
            its result is returned. Those are named by their scope and primitive, such as
            ``"Encoder/attention/div"``.

    Returns:
        A function of the same arguments that returns the output of ``fn`` and the captured values
        in the order of the program. A name with several hits is numbered: ``h#0``, ``h#1``, ….

    Raises:
        TypeError: if an argument has the wrong type; ValueError: when called, if a name or the
            predicate meets nothing (the message lists what there is), or if a name is given twice.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> @jax.jit
    ... def model(x):
    ...     return jnp.sum(tap(jnp.tanh(x), "hidden"))
    >>> output, values = capture(model, "hidden")(jnp.zeros(3))
    >>> print(values)
    {'hidden': Array([0., 0., 0.], dtype=float32)}
    >>> output, values = capture(model, where=lambda e: e.primitive.name == "tanh")(jnp.zeros(3))
    >>> print(values)
    {'tanh': Array([0., 0., 0.], dtype=float32)}

    Reference: https://kexue.fm/archives/6575.
    """
    requests = _requests("capture", names)
    _check_callable("capture", "fn", fn)
    if where is not None:
        _check_callable("capture", "where", where)

    @functools.wraps(fn, updated=())
    def capturing(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        program, arrays, rebuild = _trace(fn, args, kwargs)
        hits = find_hits(program, where)
        chosen = {hit.path: hit for hit in hits if hit.selected}
        _require_match("capture", where, chosen)
        if requests is None and where is None:
            chosen = {hit.path: hit for hit in hits}
        for request in requests or ():
            chosen |= {hit.path: hit for hit in _named("capture", hits, request)}
        wanted = [hit for hit in hits if hit.path in chosen]
        sites = {hit.path: _site("capture", hit) for hit in wanted}
        outputs, read = _READER.run(program, make_plan(program, sites), arrays, {})
        return rebuild(outputs), {hit.name: read[hit.name] for hit in wanted}

    return capturing


def inject(
    fn: Callable[..., Any],
    replacements: Mapping[str, Any],
    *,
    where: Predicate | None = None,
) -> Callable[..., Any]:
    """Replaces intermediate values of a function: ablation, activation patching, steering.

    inject(f, {name: g})(x) = f(x) with g(value) in place of the tapped value.

    Gradients go through the replacement: ``grad(inject(f, …))``. (Not ``inject(grad(f), …)``: the
    backward pass that `grad` has made would not know of it.) Nor does a custom derivative rule
    around a replaced value; it is dropped, and the changed program differentiated as it stands.

    Args:
        fn: any function that `jax.jit` could trace.
        replacements: name -> array, or function of the value that returns one like it. Names are
            those of `capture`; one that stands for several hits replaces them all. An array has
            the shape of the tapped value, or the one that `capture` returns (one entry for each
            step of a `scan`, all shards of a `shard_map`).
        where: as in `capture`; the equations it selects can be replaced by their names.

    Returns:
        A function of the same arguments, with the output of ``fn``.

    Raises:
        TypeError or ValueError: when called, if a name meets nothing (the message lists what there
            is), if two meet the same value, or if a replacement differs in shape or dtype.

    >>> import jax.numpy as jnp
    >>> def model(x):
    ...     return 3 * tap(2 * x, "hidden")
    >>> print(inject(model, {"hidden": jnp.float32(1)})(jnp.float32(5)))
    3.0
    >>> print(inject(model, {"hidden": lambda h: h + 1})(jnp.float32(5)))
    33.0

    Reference: https://kexue.fm/archives/6575.
    """
    _check_callable("inject", "fn", fn)
    if where is not None:
        _check_callable("inject", "where", where)
    if not isinstance(replacements, Mapping):
        raise TypeError(
            "inject: replacements must map names to arrays or functions, "
            f"got {type(replacements).__name__}"
        )
    _requests("inject", replacements)
    replacer = Rewriter(replaces=True)

    @functools.wraps(fn, updated=())
    def injecting(*args: Any, **kwargs: Any) -> Any:
        program, arrays, rebuild = _trace(fn, args, kwargs)
        hits = find_hits(program, where)
        _require_match("inject", where, [hit for hit in hits if hit.selected])
        sites: dict[tuple[int, ...], Site] = {}
        values = {}
        for request, replacement in replacements.items():
            for hit in _named("inject", hits, request):
                if hit.path in sites:
                    raise ValueError(
                        f"inject: replacements must name a value once, got two for {hit.name!r}, "
                        f"one of them by {request!r}"
                    )
                site = _site("inject", hit)
                if callable(replacement):
                    site = site._replace(replacement=replacement)
                else:
                    values[hit.name] = stack_replacement(replacement, hit)
                sites[hit.path] = site
        outputs, _ = replacer.run(program, make_plan(program, sites), arrays, values)
        return rebuild(outputs)

    return injecting


def _trace(
    fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, list[Any], Callable[[Sequence[Any]], Any]]:
    """The program of a call, its inputs, and what puts its outputs into the tree of ``fn``."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    positions = [
        i for i, x in enumerate(leaves) if isinstance(x, (jax.Array, np.ndarray, np.generic))
    ]

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


def _check_callable(function: str, argument: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{function}: {argument} must be callable, got {type(value).__name__}")


def _requests(function: str, names: str | Iterable[str] | None) -> list[str] | None:
    if names is None:
        return None
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        raise TypeError(
            f"{function}: names must be a string or several, got {names!r}; "
            "a predicate is given by where="
        )
    given = list(given)
    if twice := {name for name in given if given.count(name) > 1}:
        raise ValueError(f"{function}: names must be different, got {sorted(twice)} twice")
    return given


def _named(function: str, hits: list[Hit], request: str) -> list[Hit]:
    found = named(hits, request)
    if not found:
        there = ", ".join(repr(hit.name) for hit in hits if not hit.blocked) or "none"
        lost = [f"{hit.name!r} in {hit.blocked}" for hit in hits if hit.blocked]
        beyond = f"; out of reach: {', '.join(lost)}" if lost else ""
        raise ValueError(
            f"{function}: names must be taps that the function reaches, got {request!r}; "
            f"it reaches: {there}{beyond}"
        )
    return found


def _require_match(function: str, where: Predicate | None, found: Any) -> None:
    if where is not None and not found:
        raise ValueError(
            f"{function}: where must select at least one equation, got none; "
            "jax.make_jaxpr(fn)(...) shows the equations there are"
        )


def _site(function: str, hit: Hit) -> Site:
    if hit.blocked:
        raise ValueError(
            f"{function}: {hit.name!r} lies inside {hit.blocked!r}, whose program cannot be "
            "rewritten; name the taps to use, without this one"
        )
    return Site(hit.name, hit.varying)
