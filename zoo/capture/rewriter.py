"""Runs a program while reading and replacing values inside it.

The program is evaluated equation by equation. An equation without a site is bound as it stands; one
that holds a program with sites is replaced by the same control flow around the rewritten program,
with one more output per site:

    jit, remat      one more output
    scan            one more stacked output
    while           carried; the last one counts
    cond, switch    a pair (value, present): zeros and False from the branches not taken
    custom_jvp/vjp  the rule stays for the outputs; what is read is differentiated as ordinary code
    shard_map       the shards side by side along the value's first axis

A replaced value makes a custom derivative rule wrong, so there the rule is dropped and the changed
program is differentiated as it stands. All of it is JAX code again: it can be jitted, vectorised,
differentiated and rewritten once more.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core, source_info_util
from jax.extend.core import primitives
from jax.sharding import PartitionSpec

from zoo.capture.equations import (
    conform,
    evaluate,
    is_shard_map,
    jit_options,
    programs_of,
    scan_parts,
    shard_axes,
)
from zoo.capture.replacements import check_replacement
from zoo.capture.sites import Plan, Site, Step, sites_in

Values = dict[str, Any]
Result = tuple[Sequence[Any], Values]  # outputs, and what the sites gave


class Conditional(NamedTuple):
    """A value from inside a branch: is it there?

    Attributes:
        value: zeros where the branch was not taken.
        present: bool, of the shape of the loops around the branch.
    """

    value: Any
    present: jax.Array


class Rewriter:
    """Evaluates programs under a plan.

    Loops, branches and jitted programs are compiled once per plan and remembered, so that a second
    call outside `jit` compiles nothing; that memory lives as long as this object.
    """

    def __init__(self, *, replaces: bool):
        self._replaces = replaces
        self._compiled = functools.lru_cache(maxsize=256)(self._compile)

    def run(self, program: Any, plan: Plan, inputs: Sequence[Any], values: Values) -> Result:
        """Evaluates ``program``.

        Args:
            program: a jaxpr, closed or without constants.
            plan: its sites.
            inputs: one value per input.
            values: what sites are replaced with, by name, stacked as capture returns it.

        Returns:
            The outputs, and the values read, by name.
        """
        steps = {step.position: step for step in plan}
        last = {v: i for i, e in enumerate(program.eqns) for v in e.invars if _is_variable(v)}
        last |= {v: len(program.eqns) for v in program.outvars if _is_variable(v)}
        environment = dict(zip(program.constvars, getattr(program, "consts", ()), strict=True))
        environment |= dict(zip(program.invars, inputs, strict=True))
        read: Values = {}

        def look_up(atom: Any) -> Any:
            return environment[atom] if _is_variable(atom) else atom.val

        for index, equation in enumerate(program.eqns):
            operands = [look_up(atom) for atom in equation.invars]
            names = source_info_util.current_name_stack() + equation.source_info.name_stack
            with (
                source_info_util.user_context(equation.source_info.traceback, name_stack=names),
                equation.ctx.manager,
            ):
                if index in steps:
                    outputs, found = self._visit(equation, steps[index], operands, values)
                    read |= found
                else:
                    outputs = evaluate(equation, operands)
            environment |= dict(zip(equation.outvars, outputs, strict=True))
            for variable in (*filter(_is_variable, equation.invars), *equation.outvars):
                if last.get(variable, -1) <= index:  # nobody needs its memory any more
                    environment.pop(variable, None)
        return [look_up(atom) for atom in program.outvars], read

    def _visit(
        self, equation: core.JaxprEqn, step: Step, operands: list[Any], values: Values
    ) -> Result:
        site = step.site
        read: Values = {}
        if site is not None and self._replaces and equation.primitive is primitives.name_p:
            # The replacement carries the name, so that others find it there.
            return evaluate(equation, self._replace(equation, site, operands, values)), {}
        if any(step.inner):
            inside = {site.name for plan in step.inner for site, _ in sites_in(plan)}
            values_inside = {name: v for name, v in values.items() if name in inside}
            outputs, read = self._enter(equation, step.inner, operands, values_inside)
        else:
            outputs = evaluate(equation, operands)
        if site is not None and self._replaces:
            outputs = self._replace(equation, site, outputs, values)
        elif site is not None:
            read |= {site.name: outputs[0] if len(outputs) == 1 else tuple(outputs)}
        return outputs, read

    def _replace(
        self, equation: core.JaxprEqn, site: Site, old: Sequence[Any], values: Values
    ) -> list[Any]:
        types: list[Any] = [v.aval for v in equation.outvars]
        if site.replacement is None:  # a shard's scalar comes as a vector of one
            new = [x.reshape(a.shape) for x, a in zip(values[site.name], types, strict=True)]
        else:
            given = old[0] if len(old) == 1 else tuple(old)
            shapes = [[aval.shape] for aval in types]
            new = check_replacement(site.replacement(given), types, shapes, site.name)
        return [conform(x, aval) for x, aval in zip(new, types, strict=True)]

    def _enter(
        self, equation: core.JaxprEqn, plans: Sequence[Plan], inputs: list[Any], values: Values
    ) -> Result:
        """Evaluates an equation that holds programs with sites."""
        primitive = equation.primitive
        if primitive in (
            primitives.jit_p,
            primitives.scan_p,
            primitives.while_p,
            primitives.cond_p,
        ):
            compiled = self._compiled(primitive, tuple(equation.params.items()), tuple(plans))
            return compiled(values, *inputs)
        if primitive is primitives.remat_p:
            return self._remat(equation.params, plans, inputs, values)
        if is_shard_map(equation):
            return self._shard_map(equation.params, plans, inputs, values)
        (program,), (plan,) = programs_of(equation), plans
        rules = (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p)
        if primitive in rules and not self._replaces:
            return self._keep_rule(equation, program, plan, inputs)
        return self.run(program, plan, inputs, values)

    def _compile(
        self, primitive: core.Primitive, params: tuple[tuple[str, Any], ...], plans: tuple[Plan]
    ) -> Callable[..., Result]:
        rules = {
            primitives.scan_p: self._scan,
            primitives.while_p: self._while,
            primitives.cond_p: self._cond,
        }
        settings = dict(params)
        options: dict[str, Any] = {}
        if primitive is primitives.jit_p:
            name = settings["name"]
            options = jit_options(settings)

            def rewritten(values: Values, *inputs: Any) -> Result:
                return self.run(settings["jaxpr"], plans[0], inputs, values)
        else:
            name = primitive.name

            def rewritten(values: Values, *inputs: Any) -> Result:
                return rules[primitive](settings, plans, inputs, values)

        rewritten.__name__ = rewritten.__qualname__ = name
        return jax.jit(rewritten, **options)

    def _remat(
        self, params: dict[str, Any], plans: Sequence[Plan], inputs: list[Any], values: Values
    ) -> Result:
        def call(inputs: list[Any], values: Values) -> Result:
            return self.run(params["jaxpr"], plans[0], inputs, values)

        if params["differentiated"] and params["prevent_cse"]:
            # The compiler must not merge this recomputation with the forward pass.
            inputs = lax.optimization_barrier(inputs)
        checkpoint = jax.checkpoint(
            call, prevent_cse=params["prevent_cse"], policy=params["policy"]
        )
        return checkpoint(inputs, values)

    def _keep_rule(
        self, equation: core.JaxprEqn, program: Any, plan: Plan, inputs: list[Any]
    ) -> Result:
        @jax.custom_jvp
        def call(*inputs: Any) -> Result:
            return self.run(program, plan, inputs, {})

        @call.defjvp
        def rule(primals: tuple, tangents: tuple) -> tuple[Result, Result]:
            outputs, d_outputs = jax.jvp(lambda *x: evaluate(equation, x), primals, tangents)
            read, d_read = jax.jvp(lambda *x: self.run(program, plan, x, {})[1], primals, tangents)
            return (outputs, read), (d_outputs, d_read)

        return call(*inputs)

    def _scan(
        self, params: dict[str, Any], plans: Sequence[Plan], inputs: Sequence[Any], values: Values
    ) -> Result:
        constants, carry, xs = scan_parts(params, inputs)

        def step(carry: Any, x: tuple[list[Any], Values]) -> tuple[Any, Any]:
            slices, here = x
            outputs, read = self.run(params["jaxpr"], plans[0], [*constants, *carry, *slices], here)
            return outputs[: len(carry)], (outputs[len(carry) :], read)

        options = {key: params[key] for key in ("length", "reverse", "unroll")}
        carry, (ys, read) = lax.scan(step, carry, (xs, values), **options)
        return [*carry, *ys], read

    def _while(
        self, params: dict[str, Any], plans: Sequence[Plan], inputs: Sequence[Any], values: Values
    ) -> Result:
        ends = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        condition_constants, body_constants = inputs[: ends[0]], inputs[ends[0] : ends[1]]
        start = list(inputs[ends[1] :])

        def condition(carry: Sequence[Any]) -> tuple[Any, Values]:
            operands = [*condition_constants, *carry]
            (goes_on,), read = self.run(params["cond_jaxpr"], plans[0], operands, values)
            return goes_on, read

        def body(carry: Sequence[Any]) -> Result:
            operands = [*body_constants, *carry]
            return self.run(params["body_jaxpr"], plans[1], operands, values)

        def step(state: tuple) -> tuple:
            carry, read = body(state[0])
            return carry, read, *condition(carry)

        never = _blank(_types(lambda: body(start)[1]), np.nan)
        state = (start, never, *condition(start))
        carry, read, _, read_by_condition = lax.while_loop(lambda state: state[2], step, state)
        return carry, read | read_by_condition

    def _cond(
        self, params: dict[str, Any], plans: Sequence[Plan], inputs: Sequence[Any], values: Values
    ) -> Result:
        index, *operands = inputs

        def taken(position: int) -> Result:
            program, plan = params["branches"][position], plans[position]
            outputs, read = self.run(program, plan, operands, values)
            return outputs, {name: _conditional(value) for name, value in read.items()}

        types: Values = {}
        for position, plan in enumerate(() if self._replaces else plans):
            if plan:
                types |= _types(lambda i=position: taken(i)[1])  # type: ignore[misc]

        def branch(position: int) -> Result:
            outputs, read = taken(position)
            return outputs, _blank(types, 0) | read

        return lax.switch(index, [functools.partial(branch, i) for i in range(len(plans))])

    def _shard_map(
        self, params: dict[str, Any], plans: Sequence[Plan], inputs: list[Any], values: Values
    ) -> Result:
        specs, loops = {}, {}
        for site, depth in sites_in(plans[0]):
            axes = shard_axes(params, site.varying)
            specs[site.name] = PartitionSpec(*[None] * depth, axes) if axes else PartitionSpec()
            loops[site.name] = depth if axes else -1

        def local(inputs: tuple[Any, ...], values: Values) -> Result:
            outputs, read = self.run(params["jaxpr"], plans[0], inputs, values)
            for name, value in read.items():
                read[name] = jax.tree.map(lambda x, axis=loops[name]: _at_least(x, axis), value)
            return tuple(outputs), read

        mapped = jax.shard_map(
            local,
            mesh=params["mesh"],
            in_specs=(tuple(params["in_specs"]), {name: specs[name] for name in values}),
            out_specs=(tuple(params["out_specs"]), {} if self._replaces else specs),
            axis_names=params["newly_manual_axes"],
            check_vma=params["check_vma"],
        )
        return mapped(tuple(inputs), values)


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


def _conditional(value: Any) -> Conditional:
    return value if isinstance(value, Conditional) else Conditional(value, jnp.asarray(True))


def _types(function: Callable[[], Any]) -> Any:
    """The abstract values a function would return, in its tree."""
    program, shapes = jax.make_jaxpr(function, return_shape=True)()
    return jax.tree.unflatten(jax.tree.structure(shapes), [v.aval for v in program.jaxpr.outvars])


def _blank(types: Any, fill: float) -> Any:
    """Arrays of the given types, filled where the dtype knows the number, otherwise zero."""

    def blank(aval: Any) -> jax.Array:
        inexact = jnp.issubdtype(aval.dtype, jnp.inexact)
        return conform(lax.full(aval.shape, fill if inexact else 0, aval.dtype), aval)

    return jax.tree.map(blank, types)


def _at_least(x: jax.Array, axis: int) -> jax.Array:
    """Gives a value of a shard the axis along which shards are laid side by side."""
    return jnp.expand_dims(x, axis) if x.ndim == axis else x
