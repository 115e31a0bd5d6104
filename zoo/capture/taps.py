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

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from zoo.capture.equations import Hit, Path, Predicate
from zoo.capture.interpreter import Interpreter, Plan, Site, check_replacement
from zoo.capture.modules import as_path, matches
from zoo.capture.tracing import Traced, check_callable, named, paths_of, requests_of, trace

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
    requests = None if names is None else requests_of(names)
    modules = paths_of(paths)
    check_callable(fn=fn, where=where)

    @functools.wraps(fn, updated=())
    def capturing(*args: Any, **kwargs: Any) -> Any:
        traced = trace(fn, args, kwargs, where, modules)
        everything = requests is None and where is None and not modules
        chosen = {hit.name for hit in traced.hits if hit.selected or everything}
        chosen |= {hit.name for request in requests or () for hit in named(traced.hits, request)}
        chosen |= {hit.name for hit in traced.hits if matches(hit.label, modules)}
        wanted = [hit for hit in traced.hits if hit.name in chosen]
        plan = tuple((hit.path, _site(hit)) for hit in wanted)
        if gradients:
            return _with_gradients(traced, wanted, plan)
        outputs, read = _READER.run(traced.program, plan, traced.arrays, {})
        return traced.rebuild(outputs), {hit.name: read[hit.name] for hit in wanted}

    return capturing


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
    check_callable(fn=fn, where=where)
    if not isinstance(replacements, Mapping):
        raise TypeError(
            f"replacements must map names to arrays or functions, got {type(replacements).__name__}"
        )
    requests_of(replacements)
    modules = paths_of(paths)
    replacer = Interpreter("replace")

    @functools.wraps(fn, updated=())
    def injecting(*args: Any, **kwargs: Any) -> Any:
        traced = trace(fn, args, kwargs, where, modules)
        sites: dict[Path, Site] = {}
        values = {}
        for request, replacement in replacements.items():
            path = as_path(request) if matches(as_path(request), modules) else request
            for hit in named(traced.hits, path):
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
        outputs, _ = replacer.run(traced.program, tuple(sites.items()), traced.arrays, values)
        return traced.rebuild(outputs)

    return injecting


def _with_gradients(
    traced: Traced, wanted: list[Hit], plan: Plan
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The output, the values and the gradients: those of arrays of zeros, added to the values."""
    types = [v.aval for v in traced.program.jaxpr.outvars]
    if [t.shape for t in types] != [()] or not jnp.issubdtype(types[0].dtype, jnp.floating):
        found = ", ".join(f"{t.dtype}{list(t.shape)}" for t in types)
        raise ValueError(f"fn must return one floating scalar to have gradients of, got {found}")

    def shifted(shifts: dict[str, Any]) -> tuple[jax.Array, Any]:
        outputs, read = _ADDER.run(traced.program, plan, traced.arrays, shifts)
        return outputs[0], (outputs, read)

    floating = [hit for hit in wanted if _is_floating(hit)]
    found, (outputs, read) = jax.grad(shifted, has_aux=True)(
        {hit.name: _zeros(hit) for hit in floating}
    )
    gradients = {hit.name: found[hit.name] for hit in floating}
    return (
        traced.rebuild(outputs),
        {hit.name: read[hit.name] for hit in wanted},
        {name: x[0] if len(x) == 1 else tuple(x) for name, x in gradients.items()},
    )


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
