"""Where a program can be read: its taps, and the equations a predicate selects.

JAX traces a function to a jaxpr, a list of equations; `jit`, `scan`, `cond` and others are
equations that hold programs of their own. A *hit* is one place in that tree. Hits of one name are
numbered in program order, ``h#0``, ``h#1``, …; a name with one hit keeps its plain name. A place
inside a loop is one hit, however often the loop runs.

Nothing here runs anything: the result is a *plan*, plain hashable data that says which equations
`zoo.capture.rewriter` must read or replace.
"""

import collections
import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend import core
from jax.extend.core import primitives

# The parameters of a primitive that hold programs the rewriter can enter, in order of execution.
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
SHARD_MAP = "shard_map"  # its primitive is not public


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
        for depth, equation in enumerate((*self._within, self._equation)):
            caller = self._within[depth - 1] if depth else None
            names = [*_functions(equation, caller), *names]
        return tuple(dict.fromkeys(names))

    @property
    def scope(self) -> str:
        """The ``jax.named_scope``s around it, joined by ``/``; Linen opens one a module."""
        # The stack also tells of transformations, such as «transpose(jvp(Encoder))/Dense_0».
        stacks = [str(e.source_info.name_stack) for e in (*self._within, self._equation)]
        return "/".join(filter(None, re.sub(r"\w+\(|\)", "", "/".join(stacks)).split("/")))


class Hit(NamedTuple):
    """One place where a program can be read.

    Attributes:
        path: alternately an equation's position and the position of a program inside it.
        name: unique in the program.
        label: the name before it was numbered.
        tapped: named by a tap, not only selected by a predicate.
        selected: selected by the predicate.
        recomputed: inside a `jax.checkpoint` that runs a second time, in a backward pass.
        blocked: the primitive that keeps the rewriter from this place, or "".
        types: one abstract value per output of the equation.
        levels: the loops and `shard_map`s around it, outermost first.
        varying: the mesh axes over which its shards can differ.
    """

    path: tuple[int, ...]
    name: str
    label: str
    tapped: bool
    selected: bool
    recomputed: bool
    blocked: str
    types: tuple[Any, ...]
    levels: tuple[core.JaxprEqn, ...]
    varying: frozenset[Any]

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of what capture returns for this place."""
        return [self._outside(aval.shape) for aval in self.types]

    def _outside(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        loops = 0
        for level in reversed(self.levels):
            if level.primitive is primitives.scan_p:
                shape, loops = (level.params["length"], *shape), loops + 1
            else:
                axes = shard_axes(level.params, self.varying)
                count = math.prod(level.params["mesh"].shape[axis] for axis in axes)
                local = shape[loops] if loops < len(shape) else 1
                if axes:
                    shape = (*shape[:loops], count * local, *shape[loops + 1 :])
        return shape


class Site(NamedTuple):
    """What to do at one equation."""

    name: str
    varying: frozenset[Any]
    replacement: Callable[[Any], Any] | None = None


class Step(NamedTuple):
    """One equation of a plan and the plans of the programs inside it; a plan is a tuple of them."""

    index: int
    site: Site | None
    inner: tuple[tuple["Step", ...], ...]
    is_scan: bool


Plan = tuple[Step, ...]


def programs_of(equation: core.JaxprEqn) -> tuple[Any, ...]:
    """The programs inside an equation that can be entered."""
    keys = PROGRAMS.get(equation.primitive, ())
    if equation.primitive.name == SHARD_MAP:
        keys = ("jaxpr",)
    held = [equation.params[key] for key in keys]
    return tuple(held[0]) if keys == ("branches",) else tuple(held)


def shard_axes(params: dict[str, Any], varying: frozenset[Any]) -> tuple[Any, ...]:
    """The mesh axes over which the shards of a value inside a `shard_map` must be told apart."""
    manual = params["newly_manual_axes"]
    known = varying if params["check_vma"] else manual  # unchecked: nobody knows
    return tuple(axis for axis in params["mesh"].axis_names if axis in manual & known)


def varying_axes(aval: Any) -> frozenset[Any]:
    """The mesh axes over which a value inside a `shard_map` differs."""
    kind = getattr(aval, "mat", aval)  # jax 0.10: the type of manual axes; before: on the value
    return getattr(kind, "varying", None) or getattr(kind, "vma", None) or frozenset()


def find_hits(program: Any, where: Callable[[Equation], bool] | None) -> list[Hit]:
    """All taps of a program, and the equations that ``where`` selects, in program order."""
    hits = list(_walk(program, where, (), (), frozenset()))
    first = {hit.label for hit in hits if hit.tapped and not hit.recomputed}
    # Under jax.checkpoint the backward pass computes a tapped value again: the same value, one hit.
    hits = [h for h in hits if not (h.recomputed and h.tapped and h.label in first)]
    many = collections.Counter(hit.label for hit in hits)
    number = {label: itertools.count() for label in many}
    return [
        hit if many[hit.label] == 1 else hit._replace(name=f"{hit.label}#{next(number[hit.label])}")
        for hit in hits
    ]


def named(hits: Iterable[Hit], request: str) -> list[Hit]:
    """The hits a name, a numbered name or a pattern with ``*`` stands for."""
    return [
        hit
        for hit in hits
        if request in (hit.name, hit.label) or fnmatch.fnmatchcase(hit.name, request)
    ]


def make_plan(program: Any, sites: dict[tuple[int, ...], Site], path: tuple[int, ...] = ()) -> Plan:
    """The plan that visits the given sites, by the paths of their hits."""
    steps = []
    for index, equation in enumerate(program.eqns):
        here = (*path, index)
        inner = tuple(
            make_plan(held, sites, (*here, position))
            for position, held in enumerate(programs_of(equation))
        )
        if here in sites or any(inner):
            is_scan = equation.primitive is primitives.scan_p
            steps.append(Step(index, sites.get(here), inner, is_scan))
    return tuple(steps)


def sites_in(plan: Plan, loops: int = 0) -> Iterator[tuple[Site, int]]:
    """The sites of a plan, each with the number of scans around it inside the plan."""
    for step in plan:
        for inner in step.inner:
            yield from sites_in(inner, loops + step.is_scan)
        if step.site is not None:
            yield step.site, loops


def _walk(
    program: Any,
    where: Callable[[Equation], bool] | None,
    path: tuple[int, ...],
    within: tuple[core.JaxprEqn, ...],
    varying: frozenset[Any],
) -> Iterator[Hit]:
    for index, equation in enumerate(program.eqns):
        here = (*path, index)
        held = programs_of(equation)
        # What a branch or a loop does can differ between shards if its predicate does.
        if equation.primitive in (primitives.cond_p, primitives.while_p):
            around = varying.union(*(varying_axes(v.aval) for v in equation.invars))
        else:
            around = varying
        for position, inner in enumerate(held):
            yield from _walk(inner, where, (*here, position), (*within, equation), around)
        tapped = equation.primitive is primitives.name_p
        view = Equation(equation, within)
        selected = where is not None and bool(where(view))
        common = {
            "path": here,
            "recomputed": any(e.params.get("differentiated", False) for e in within),
            "levels": tuple(
                e
                for e in within
                if e.primitive is primitives.scan_p or e.primitive.name == SHARD_MAP
            ),
        }
        if tapped or selected:
            scope = "/".join(filter(None, (view.scope, equation.primitive.name)))
            label = equation.params["name"] if tapped else scope
            types = tuple(v.aval for v in equation.outvars)
            yield Hit(
                **common,
                name=label,
                label=label,
                tapped=tapped,
                selected=selected,
                blocked="",
                types=types,
                varying=varying.union(*map(varying_axes, types)),
            )
        if not held:
            for label in _taps_inside(equation):
                yield Hit(
                    **common,
                    name=label,
                    label=label,
                    tapped=True,
                    selected=False,
                    blocked=equation.primitive.name,
                    types=(),
                    varying=varying,
                )


def _taps_inside(equation: core.JaxprEqn) -> Iterator[str]:
    for program in core.jaxprs_in_params(equation.params):
        for inner in program.eqns:
            if inner.primitive is primitives.name_p:
                yield inner.params["name"]
            yield from _taps_inside(inner)


def _functions(equation: core.JaxprEqn, caller: core.JaxprEqn | None) -> list[str]:
    """Names of the functions on the equation's call stack, innermost first."""
    traceback = equation.source_info.traceback
    names = [frame.function_name for frame in traceback.frames] if traceback else []
    if caller is not None and caller.primitive is primitives.jit_p:
        # A jitted function is traced once: what lies above it on the stack is its first caller,
        # which may be another one than this.
        ends = [i for i, n in enumerate(names) if n.split(".")[-1] == caller.params["name"]]
        names = names[: ends[-1] + 1] if ends else names
    return names
