"""Values by module path: what the modules of Flax return, without taps and without changing them.

    "layers.3.attention" -> model.layers[3].attention(...)

While a function is traced, every module that it is, or has among its arguments, is a marked copy:
the class of each of its modules is a subclass that taps what a call returns, and an attribute holds
the path. Both are part of the structure of the module, so they stay through split, merge, `vmap`
and `scan` of NNX and of JAX. The modules of Linen know their paths, and Linen has an interceptor.
"""

import contextlib
import contextvars
import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

Patterns = tuple[str, ...]
PATH = "_capture_path"  # the attribute of a marked module

# What is compiled while taps are made must not be found by other traces, nor the other way round.
_in_cache = jax.make_user_context(default_value=None)
_wanted: contextvars.ContextVar[tuple[Patterns, list[str]]] = contextvars.ContextVar("wanted")


def as_path(path: str) -> str:
    """The path as patterns, checkpoints and error messages write it.

    >>> as_path("layers.3.attention")
    'layers/3/attention'
    """
    return path.replace(".", "/")


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of them is the path; ``*`` stands for part of one key, ``**`` for any.

    >>> [matches("layers/3/norm", [p]) for p in ("layers/*/norm", "layers/*", "layers/**")]
    [True, False, True]
    """
    escaped = (re.escape(p).replace(r"\*\*", ".*").replace(r"\*", "[^/]*") for p in patterns)
    return any(re.fullmatch(pattern, path) for pattern in escaped)


def with_module_taps(
    fn: Callable[..., Any], patterns: Patterns, reached: list[str]
) -> Callable[..., Any]:
    """``fn`` with a tap at what each module returns whose path matches one of the patterns.

    ``reached`` gets the paths of all modules that are called.
    """

    def tapped(*args: Any, **kwargs: Any) -> Any:
        with _record(patterns, reached):
            call, args, kwargs = jax.tree.map(
                _marked, (fn, args, kwargs), is_leaf=lambda x: isinstance(x, nnx.Module)
            )
            return call(*args, **kwargs)

    return tapped


@contextlib.contextmanager
def _record(patterns: Patterns, reached: list[str]) -> Iterator[None]:
    token = _wanted.set((patterns, reached))
    linen = sys.modules.get("flax.linen")  # not imported: then no module of it is called
    interceptor = contextlib.nullcontext() if linen is None else linen.intercept_methods(_linen)
    try:
        with _in_cache(patterns), interceptor:
            yield
    finally:
        _wanted.reset(token)


def _tapped(path: str, output: Any) -> Any:
    """What a module returned, its arrays tapped where its path is wanted."""
    patterns, reached = _wanted.get(((), []))
    if not path or not patterns:
        return output
    reached.append(path)
    if not matches(path, patterns):
        return output
    return jax.tree.map(
        lambda x: checkpoint_name(x, path) if isinstance(x, jax.Array) else x, output
    )


def _linen(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
    output = call(*args, **kwargs)
    if context.method_name != "__call__":
        return output
    return _tapped("/".join(context.module.path), output)


def _marked(x: Any) -> Any:
    """A marked copy of a module, or of the module of a bound method; others as they are."""
    owner = getattr(x, "__self__", None)
    if isinstance(owner, nnx.Module):
        return getattr(_marked(owner), x.__name__)
    if not isinstance(x, nnx.Module):
        return x
    graph, state = nnx.split(x)
    copy = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))  # variables of this trace
    for path, module in nnx.iter_modules(copy):
        if path and callable(module):
            module.__class__ = _marked_class(type(module))
            setattr(module, PATH, "/".join(map(str, path)))
    return copy


@functools.cache
def _marked_class(kind: type) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _tapped(getattr(self, PATH), kind.__call__(self, *args, **kwargs))

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__call__": call}
    return type(kind)(kind.__name__, (kind,), names)
