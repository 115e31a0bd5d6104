"""Functions that close over values which may change, run by programs that are compiled once.

``jax.jit`` keeps what a function closed over when it was first traced: the weights of an energy or
of a decoder, though an optimiser has changed them in place since. Here a program is known by its
equations alone (``Equations``), and the arrays that the function closed over are arguments of the
program. What is traced again is told by ``closed_over``: nothing, as long as the function would
read the same values; everything, where that cannot be told.
"""

import dataclasses
import functools
import itertools
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend import core

# Their functions, classes and modules are what they were when they were imported.
LIBRARIES = {"jax", "jaxlib", "flax", "optax", "numpy", "scipy", "zoo", *sys.stdlib_module_names}
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype, type(Ellipsis))
Function = types.FunctionType

_traced: "weakref.WeakKeyDictionary[Any, tuple[list[Any], Any]]" = weakref.WeakKeyDictionary()


class Equations:
    """A jaxpr without its constants; equal to another that has the same equations."""

    def __init__(self, jaxpr: core.Jaxpr, structure: Any) -> None:
        self._jaxpr, self._structure = jaxpr, structure
        self._key = _Key(jaxpr)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Equations):
            return NotImplemented
        return self is other or (self._structure, self._key) == (other._structure, other._key)

    def __call__(self, constants: list[Any], *arguments: Any) -> Any:
        """What the function gave, had it closed over these constants."""
        run = core.jaxpr_as_fun(core.ClosedJaxpr(self._jaxpr, constants))
        return jax.tree.unflatten(self._structure, run(*jax.tree.leaves(arguments)))


def hoisted(function: Callable[..., Any], *arguments: Any) -> tuple[Equations, list[Any]]:
    """The equations of a function for such arguments, and the arrays it closes over now.

    >>> scale = [2.0 * jax.numpy.ones(1)]
    >>> run = jax.jit(lambda equations, *given: equations(*given), static_argnums=0)
    >>> function, x = lambda x: scale[0] * x, jax.numpy.ones(1)
    >>> first, constants = hoisted(function, x)
    >>> scale[0] = 3.0 * jax.numpy.ones(1)
    >>> second, changed = hoisted(function, x)
    >>> first == second, run(first, constants, x), run(second, changed, x)
    (True, Array([2.], dtype=float32), Array([3.], dtype=float32))
    """
    return _hoisted(function, closed_over(function), arguments)


def _hoisted(
    function: Callable[..., Any], values: list[Any] | None, arguments: tuple[Any, ...]
) -> tuple[Equations, list[Any]]:
    """:func:`hoisted` of a function that reads these values."""
    if values is None:
        trace_anew = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)
        closed, out = trace_anew(*arguments)
        return Equations(closed.jaxpr, jax.tree.structure(out)), closed.consts
    before, trace = _traced.get(function, (None, None))
    if trace is None or before != values:
        reference: Any = weakref.ref(function)  # what is kept for a function ends with it
        trace = jax.jit(lambda *arguments: reference()(*arguments)).trace
        _traced[function] = values, trace
    traced = trace(*arguments)
    return _equations(traced.jaxpr, traced.out_tree), traced.jaxpr.consts


def run_current(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """``function(*arguments, **options)``, compiled, with the arrays that it closes over now.

    What is compiled is kept for equal equations. Options are part of the program; functions among
    them may close over arrays too.

    >>> def scaled(scale):
    ...     return lambda x, power: scale[0] * x**power
    >>> scale, x = [jax.numpy.ones(1)], 3 * jax.numpy.ones(1)
    >>> function = scaled(scale)
    >>> before = run_current(function, x, power=2)
    >>> scale[0] = 2 * jax.numpy.ones(1)
    >>> before, run_current(function, x, power=2)
    (Array([9.], dtype=float32), Array([18.], dtype=float32))
    """
    bound = _bound(function, **options)
    values = closed_over(bound)
    if values is not None and not any(isinstance(value, _Same) and value.array for value in values):
        return _run_constant(_Current(bound, values), *arguments)
    equations, constants = _hoisted(bound, values, arguments)
    return _run(equations, constants, *arguments)


@functools.lru_cache(maxsize=256)
def _bound(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The same object for the same function and options, for which a trace is remembered."""
    return functools.partial(function, **options)


class _Current:
    """A function that closes over no arrays, equal to itself as long as it would read the same."""

    def __init__(self, function: Callable[..., Any], values: list[Any]) -> None:
        self.function, self.values = function, values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Current):
            return NotImplemented
        return self.function is other.function and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.function)


@functools.partial(jax.jit, static_argnums=0)
def _run_constant(current: _Current, *arguments: Any) -> Any:
    return current.function(*arguments)


@functools.partial(jax.jit, static_argnums=0)
def _run(equations: Equations, constants: list[Any], *arguments: Any) -> Any:
    return equations(constants, *arguments)


def closed_over(function: Callable[..., Any]) -> list[Any] | None:
    """What a function reads beside its arguments, to be compared by ==; None if unknown.

    Followed are closures, defaults, global names, partials, methods with their objects, pytrees and
    NNX modules. Arrays are compared by identity. What may change without a trace, such as a NumPy
    array or an iterator, is unknown, and so is a tracer.
    """
    try:
        weakref.ref(function), hash(function)
        return [*_read(function, set())]
    except (_UnknownError, TypeError):
        return None


class _UnknownError(Exception):
    """A value of which it cannot be told whether it has changed."""


class _Same:
    """Equal to another of the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.array = isinstance(value, jax.Array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _read(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, PLAIN):
        yield type(value), repr(value)  # tells 0.0 from -0.0 and 1 from True
    elif isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        yield _Same(value)
    elif id(value) in seen:
        yield "seen"
    else:
        seen.add(id(value))
        yield from _read_parts(value, seen)


def _read_parts(value: Any, seen: set[int]) -> Iterator[Any]:
    parts: list[Any]
    if isinstance(value, Function):
        yield value.__code__
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = [*cells, value.__defaults__, value.__kwdefaults__]
        if not _in_library(value.__module__):
            names = (name for name in _names(value.__code__) if name in value.__globals__)
            parts += [value.__globals__[name] for name in names]
    elif isinstance(value, types.ModuleType | types.BuiltinFunctionType | type):
        module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        yield _Same(value)
        if _in_library(module):
            return
        if not isinstance(value, type):
            raise _UnknownError
        parts = [vars(value)[name] for name in vars(value) if _is_own(name, vars(value)[name])]
        parts += value.__bases__
    elif isinstance(value, types.MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, property | staticmethod | classmethod):
        parts = [getattr(value, name, None) for name in ("fget", "__func__")]
    elif isinstance(value, nnx.Module | nnx.Variable):
        graph, state = nnx.split(value)
        yield graph
        kinds = {type(node) for _, node in nnx.iter_graph(value)}
        parts = [*jax.tree.leaves(state), *sorted(kinds, key=lambda kind: kind.__qualname__)]
    elif callable(inner := getattr(value, "__wrapped__", None)):
        yield _Same(value)  # jitted: JAX itself keeps what it closes over
        own = isinstance(inner, Function) and not _in_library(inner.__module__)
        parts = [inner] if own else []
    elif isinstance(value, jax.tree_util.PyTreeDef):
        yield value
        return
    elif dataclasses.is_dataclass(value) and _in_library(type(value).__module__):
        yield _Same(type(value))
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif not jax.tree_util.all_leaves([value]):
        parts, structure = jax.tree.flatten(value, is_leaf=lambda leaf: leaf is not value)
        yield structure
    elif _is_plain_object(value):
        parts = [vars(value), type(value)]
    else:
        raise _UnknownError
    for part in parts:
        yield from _read(part, seen)


def _in_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARIES


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names, and those of attributes, of a function and the functions within."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_own(name: str, value: Any) -> bool:
    """Whether an attribute of a class is what its author wrote: methods and constants."""
    if isinstance(value, Function):
        return True
    return not name.startswith(("__", "_abc_")) and type(value).__module__ != "flax.typing"


def _is_plain_object(value: Any) -> bool:
    """Whether attributes are all an object has: no slots, nothing written in C."""
    kinds = type(value).__mro__[:-1]
    return (
        hasattr(value, "__dict__")
        and all("__dict__" in vars(kind) or "__slots__" not in vars(kind) for kind in kinds)
        and not _in_library(type(value).__module__)
    )


@functools.lru_cache(maxsize=256)
def _equations(closed: core.ClosedJaxpr, structure: Any) -> Equations:
    return Equations(closed.jaxpr, structure)


class _Key(tuple[Any, ...]):
    """All of a jaxpr that determines its program, with its hash."""

    _hash: int

    def __new__(cls, jaxpr: core.Jaxpr) -> "_Key":
        numbers: dict[Any, int] = {}

        def named(variable: Any) -> Any:
            if isinstance(variable, core.Literal):
                value = variable.val
                return variable.aval, type(value), repr(value)
            return numbers.setdefault(variable, len(numbers)), variable.aval

        inputs = [named(v) for v in itertools.chain(jaxpr.constvars, jaxpr.invars)]
        equations = [
            (
                equation.primitive,
                tuple((name, _plain(value)) for name, value in sorted(equation.params.items())),
                *(named(v) for v in itertools.chain(equation.invars, equation.outvars)),
            )
            for equation in jaxpr.eqns
        ]
        ends = [named(v) for v in jaxpr.outvars]
        key = super().__new__(cls, (len(jaxpr.constvars), *inputs, *equations, *ends))
        key._hash = tuple.__hash__(key)
        return key

    def __hash__(self) -> int:
        return self._hash


def _plain(value: Any) -> Any:
    """A parameter of an equation, to be hashed and compared."""
    if isinstance(value, core.ClosedJaxpr):
        return _Key(value.jaxpr), tuple(map(_Same, value.consts))
    if isinstance(value, core.Jaxpr):
        return _Key(value)
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_plain, value))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value
