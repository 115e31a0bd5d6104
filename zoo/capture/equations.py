"""Where a program can be read: its taps, and the equations a predicate selects.

JAX traces a function to a jaxpr, a list of equations; `jit`, `scan`, `cond` and others are
equations that hold programs of their own. A *hit* is one place in that tree. Hits of one name are
numbered in program order, ``h#0``, ``h#1``, …; a name with one hit keeps its plain name. A place
inside a loop is one hit, however often the loop runs.

Nothing here runs anything; `zoo.capture.interpreter` does.
"""

import collections
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax
import jax
from jax.extend import core
from jax.extend.core import primitives

# The parameters of a primitive that hold programs which can be rewritten, in order of execution.
PROGRAMS: dict[core.Primitive, tuple[str, ...]] = {
    primitives.jit_p: ("jaxpr",),
    primitives.closed_call_p: ("call_jaxpr",),
    primitives.call_p: ("call_jaxpr",),
    primitives.remat_p: ("jaxpr",),
    primitives.custom_jvp_call_p: ("call_jaxpr",),
    primitives.custom_vjp_call_p: ("call_jaxpr",),
    primitives.scan_p: ("jaxpr",),
    primitives.while_p: ("cond_jaxpr", "body_jaxpr"),
    primitives.cond_p: ("branches",),
}

FOLDERS = [os.path.dirname(file) for file in (jax.__file__, flax.__file__, __file__)]
HIDDEN = (FOLDERS[0], os.path.join(FOLDERS[1], "linen", "module.py"), FOLDERS[2])  # call the rest

Path = tuple[int, ...]  # index of an equation, of a program in it, of an equation in that, …


class Equation:
    """A jaxpr equation, as a predicate sees it.

    It has every attribute of the equation itself (``primitive``, ``params``, ``invars``,
    ``outvars``, ``source_info``), and a shape, source functions and a scope.
    """

    def __init__(self, equation: core.JaxprEqn, within: Sequence[core.JaxprEqn] = ()):
        self._equation = equation
        self._within = within

    def __getattr__(self, name: str) -> Any:
        return getattr(self._equation, name)

    def __repr__(self) -> str:
        return repr(self._equation)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the first output; None without outputs."""
        outputs = self._equation.outvars
        return getattr(outputs[0].aval, "shape", None) if outputs else None

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions in whose calls the equation was made, by qualified name, innermost first.

        Such as ``("softmax", "MultiHeadAttention.__call__", …)``, with those of JAX among them.
        """
        names: list[str] = []
        # The stack of an equation ends at the jitted function it is in, which may be called from
        # several places; the equations around it know the rest.
        for equation in (self._equation, *reversed(self._within)):
            traceback = equation.source_info.traceback
            names += [frame.function_name for frame in traceback.frames] if traceback else []
        return tuple(dict.fromkeys(names))

    @property
    def scope(self) -> str:
        """The ``jax.named_scope``s around it, joined by ``/``; Linen opens one per module."""
        stack = "/".join(str(e.source_info.name_stack) for e in (*self._within, self._equation))
        # It also names transformations, such as "transpose(jvp(Encoder))/Dense_0".
        return "/".join(filter(None, re.sub(r"\w+\(|\)", "", stack).split("/")))


Predicate = Callable[[Equation], bool]


class Hit(NamedTuple):
    """One place where a program can be read.

    Attributes:
        path: where.
        name: its label, with a number if there are several of the label.
        label: the name of the tap, or scope and primitive.
        tapped: whether it is a tap.
        selected: whether the predicate selects it.
        blocked: the primitive whose program cannot be rewritten, if it lies in one.
        types: one abstract value per output of the equation.
        within: the equations around it, outermost first.
        varying: the mesh axes over which its shards can differ.
        equation: the equation itself.
    """

    path: Path
    name: str
    label: str
    tapped: bool
    selected: bool
    blocked: str
    types: tuple[Any, ...]
    within: tuple[core.JaxprEqn, ...]
    varying: frozenset[Any]
    equation: core.JaxprEqn

    @property
    def recomputed(self) -> bool:
        """Whether it is in the backward pass of a `jax.checkpoint`."""
        return any(equation.params.get("differentiated", False) for equation in self.within)

    @property
    def source(self) -> str:
        """File and line of the innermost call that is neither in JAX nor in this package."""
        for equation in (self.equation, *reversed(self.within)):
            traceback = equation.source_info.traceback
            frames: list[Any] = traceback.frames if traceback else []
            for frame in frames:
                if not frame.file_name.startswith(HIDDEN):
                    name = os.path.relpath(frame.file_name)
                    shorter = min(name, frame.file_name.rpartition("site-packages/")[2], key=len)
                    return f"{shorter}:{frame.line_num}"
        return ""

    def shape(self, output: int) -> tuple[int, ...]:
        """The shape in which capture returns one of its outputs."""
        shape, loops = self.types[output].shape, 0
        for equation in reversed(self.within):
            if is_scan(equation):
                shape, loops = (equation.params["length"], *shape), loops + 1
            elif is_shard_map(equation) and (axes := shard_axes(equation.params, self.varying)):
                local = shape[loops] if loops < len(shape) else 1
                shards = math.prod(equation.params["mesh"].shape[axis] for axis in axes)
                shape = (*shape[:loops], local * shards, *shape[loops + 1 :])
        return shape


def find_hits(program: Any, where: Predicate | None) -> list[Hit]:
    """All taps of a program and the equations that ``where`` selects, in program order."""
    hits = list(_walk(program, where))
    first = {hit.label for hit in hits if hit.tapped and not hit.recomputed}
    # A backward pass under jax.checkpoint computes a tapped value again: the same value, one hit.
    hits = [h for h in hits if not (h.tapped and h.recomputed and h.label in first)]
    count = collections.Counter(hit.label for hit in hits)
    number = {label: itertools.count() for label in count}
    return [
        h._replace(name=f"{h.label}#{next(number[h.label])}") if count[h.label] > 1 else h
        for h in hits
    ]


def _walk(
    program: Any,
    where: Predicate | None,
    path: Path = (),
    within: tuple[core.JaxprEqn, ...] = (),
    varying: frozenset[Any] = frozenset(),
) -> Iterator[Hit]:
    for position, equation in enumerate(program.eqns):
        here = (*path, position)
        held = programs_of(equation)
        around = varying
        if equation.primitive in (primitives.cond_p, primitives.while_p):
            # What a branch or a loop gives can differ between shards if its predicate does.
            around = varying.union(*(varying_axes(v.aval) for v in equation.invars))
        for i, inner in enumerate(held):
            yield from _walk(inner, where, (*here, i), (*within, equation), around)

        view = Equation(equation, within)
        primitive = equation.primitive.name
        tapped = equation.primitive is primitives.name_p
        selected = where is not None and bool(where(view))
        if tapped or selected:
            scope = "/".join(filter(None, (view.scope, primitive)))
            label = equation.params["name"] if tapped else scope
            types = tuple(v.aval for v in equation.outvars)
            differs = varying.union(*map(varying_axes, types))
            yield Hit(here, label, label, tapped, selected, "", types, within, differs, equation)
        for label in () if held else _taps_inside(equation):
            yield Hit(here, label, label, True, False, primitive, (), within, varying, equation)


def _taps_inside(equation: core.JaxprEqn) -> Iterator[str]:
    """The taps inside programs that cannot be rewritten."""
    for program in core.jaxprs_in_params(equation.params):
        for inner in program.eqns:
            if inner.primitive is primitives.name_p:
                yield inner.params["name"]
            yield from _taps_inside(inner)


def is_scan(equation: core.JaxprEqn) -> bool:
    """Whether it is a loop that stacks its results."""
    return equation.primitive is primitives.scan_p


def is_shard_map(equation: core.JaxprEqn) -> bool:
    """Whether it runs its program on shards; the primitive is not public."""
    return equation.primitive.name == "shard_map"


def programs_of(equation: core.JaxprEqn) -> tuple[Any, ...]:
    """The programs inside an equation that can be rewritten."""
    keys = ("jaxpr",) if is_shard_map(equation) else PROGRAMS.get(equation.primitive, ())
    held = [equation.params[key] for key in keys]
    return tuple(held[0]) if keys == ("branches",) else tuple(held)


def shard_axes(params: dict[str, Any], varying: frozenset[Any]) -> tuple[Any, ...]:
    """The mesh axes over which the shards of a value inside a `shard_map` must be told apart."""
    manual = params["newly_manual_axes"]
    known = varying if params["check_vma"] else manual  # unchecked: it may vary over all of them
    return tuple(axis for axis in params["mesh"].axis_names if axis in manual & known)


def varying_axes(aval: Any) -> frozenset[Any]:
    """The mesh axes over which a value inside a `shard_map` can differ."""
    return getattr(getattr(aval, "mat", None), "varying", frozenset())
