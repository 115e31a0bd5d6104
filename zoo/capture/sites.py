"""Where a program can be read: its taps, and the equations a predicate selects.

JAX traces a function to a jaxpr, a list of equations; `jit`, `scan`, `cond` and others are
equations that hold programs of their own. A *hit* is one place in that tree. Hits of one name are
numbered in program order, ``h#0``, ``h#1``, …; a name with one hit keeps its plain name. A place
inside a loop is one hit, however often the loop runs.

Nothing here runs anything. The result is a *plan*, plain hashable data that says at which equations
`zoo.capture.rewriter` must read or replace a value.
"""

import collections
import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from jax.extend import core
from jax.extend.core import primitives

from zoo.capture.equations import (
    Equation,
    is_scan,
    is_shard_map,
    programs_of,
    shard_axes,
    varying_axes,
)

Path = tuple[int, ...]  # position of an equation, of a program in it, of an equation in that, …
Predicate = Callable[[Equation], bool]


class Hit(NamedTuple):
    """One place where a program can be read.

    Attributes:
        path: where.
        label: the name it was given.
        name: the same with a number, unique in the program.
        selected: the predicate selects it.
        tapped: it is a tap.
        blocked: the primitive that keeps the rewriter from this place, or "".
        types: one abstract value per output of the equation.
        within: the equations around it, outermost first.
        varying: the mesh axes over which its shards can differ.
    """

    path: Path
    label: str
    name: str
    selected: bool
    tapped: bool
    blocked: str
    types: tuple[Any, ...]
    within: tuple[core.JaxprEqn, ...]
    varying: frozenset[Any]

    @property
    def recomputed(self) -> bool:
        """Does it stand in the backward pass of a `jax.checkpoint`?"""
        return any(equation.params.get("differentiated", False) for equation in self.within)

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of what capture returns for this place."""
        return [self._seen_from_outside(aval.shape) for aval in self.types]

    def _seen_from_outside(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        loops = 0
        for equation in reversed(self.within):
            if is_scan(equation):
                shape, loops = (equation.params["length"], *shape), loops + 1
            elif is_shard_map(equation):
                sizes = equation.params["mesh"].shape
                if axes := shard_axes(equation.params, self.varying):
                    local = shape[loops] if loops < len(shape) else 1
                    split = local * math.prod(sizes[axis] for axis in axes)
                    shape = (*shape[:loops], split, *shape[loops + 1 :])
        return shape


class Site(NamedTuple):
    """What to do at one equation."""

    name: str
    varying: frozenset[Any]
    replacement: Callable[[Any], Any] | None = None


class Step(NamedTuple):
    """One equation of a plan, and the plans of the programs inside it."""

    position: int
    site: Site | None
    inner: tuple["Plan", ...]
    loops: int  # 1 if the equation stacks what is read inside it


Plan = tuple[Step, ...]


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


def named(hits: Iterable[Hit], request: str) -> list[Hit]:
    """The hits that a name, a numbered name or a pattern with ``*`` stands for."""
    return [
        hit
        for hit in hits
        if request in (hit.name, hit.label) or fnmatch.fnmatchcase(hit.name, request)
    ]


def make_plan(program: Any, sites: dict[Path, Site], path: Path = ()) -> Plan:
    """The plan that visits the given sites."""
    steps = []
    for position, equation in enumerate(program.eqns):
        here = (*path, position)
        inner = tuple(
            make_plan(held, sites, (*here, i)) for i, held in enumerate(programs_of(equation))
        )
        if here in sites or any(inner):
            steps.append(Step(position, sites.get(here), inner, int(is_scan(equation))))
    return tuple(steps)


def sites_in(plan: Plan, loops: int = 0) -> Iterator[tuple[Site, int]]:
    """The sites of a plan, each with the number of scans around it inside the plan."""
    for step in plan:
        for inner in step.inner:
            yield from sites_in(inner, loops + step.loops)
        if step.site is not None:
            yield step.site, loops


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
        selected = where is not None and bool(where(view))
        tapped = equation.primitive is primitives.name_p
        hit = functools.partial(Hit, path=here, within=within, selected=selected)
        if tapped or selected:
            primitive = equation.primitive.name
            label = (
                equation.params["name"]
                if tapped
                else "/".join(filter(None, (view.scope, primitive)))
            )
            types = tuple(v.aval for v in equation.outvars)
            differs = varying.union(*map(varying_axes, types))
            yield hit(
                label=label, name=label, tapped=tapped, blocked="", types=types, varying=differs
            )
        for label in () if held else _taps_inside(equation):
            blocked = equation.primitive.name
            yield hit(
                label=label, name=label, tapped=True, blocked=blocked, types=(), varying=varying
            )._replace(selected=False)


def _taps_inside(equation: core.JaxprEqn) -> Iterator[str]:
    """The taps inside programs that cannot be rewritten."""
    for program in core.jaxprs_in_params(equation.params):
        for inner in program.eqns:
            if inner.primitive is primitives.name_p:
                yield inner.params["name"]
            yield from _taps_inside(inner)
