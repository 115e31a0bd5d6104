"""Runs a program while reading and replacing values inside it.

The program is evaluated equation by equation. An equation without a site is evaluated as it stands;
one that holds a program with sites is replaced by the same control flow around the rewritten
program, with one more output per site:

    jit, remat      one more output
    scan            one more stacked output
    while           carried; the value of the last iteration (batched: of all entries together)
    cond, switch    a pair (value, present): zeros and False from the branches not taken
    custom_jvp/vjp  the rule stays for the outputs; what is read is differentiated as ordinary code
    shard_map       the shards side by side along the value's first axis

A replaced value makes a custom derivative rule wrong: there the rule is dropped and the changed
program differentiated as it stands. An array that is added to a value, for its gradient, is 0: the
rule stays. All of it is JAX code again, to be transformed once more.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core, source_info_util
from jax.extend.core import primitives
from jax.sharding import PartitionSpec, Sharding

from zoo.capture.equations import (
    PROGRAMS,
    Path,
    is_scan,
    is_shard_map,
    programs_of,
    shard_axes,
    varying_axes,
)


class Conditional(NamedTuple):
    """A value from inside a branch, and whether it is there.

    Attributes:
        value: zeros where the branch was not taken.
        present: bool, with the shape of the loops around the branch.
    """

    value: Any
    present: jax.Array


class Site(NamedTuple):
    """What to do at one equation: read it, replace it by a function or an array, add an array."""

    name: str
    varying: frozenset[Any]
    replacement: Callable[[Any], Any] | None = None


Plan = tuple[tuple[Path, Site], ...]  # hashable: what was compiled for a plan is remembered
Plans = tuple[Plan, ...]  # one per program that an equation holds
Params = dict[str, Any]
Inputs = Sequence[Any]
Values = dict[str, Any]
REMEMBERED = 4096  # programs, as many as jit remembers calls of
Result = tuple[Sequence[Any], Values]  # outputs, and what was read at the sites


class Interpreter:
    """Evaluates programs under a plan; its sites are all read, all replaced, or read and added to.

    Loops, branches and jitted programs are compiled once and remembered, so that a second call
    outside `jit` compiles nothing; that memory lives as long as this object. What is remembered is
    found by what determines it: the program and where it is read, whatever the names; and where
    functions replace values, the changed program itself, as functions can read what changes.
    """

    def __init__(self, action: Literal["read", "replace", "add"]):
        self._reads, self._changes = action != "replace", action != "read"
        self._adds = action == "add"
        self._compiled = functools.lru_cache(REMEMBERED)(self._compile)
        self._compiled_changed = functools.lru_cache(REMEMBERED)(self._compile_changed)

    def run(self, program: Any, plan: Plan, inputs: Inputs, values: Values) -> Result:
        """Evaluates ``program``.

        Args:
            program: a jaxpr, closed or without constants.
            plan: its sites.
            inputs: one value per input.
            values: arrays that replace sites, or are added, by name; stacked as capture returns
                them.

        Returns:
            The outputs, and the values read, by name.
        """
        visited = {path[0] for path, _ in plan}
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
                if index in visited:
                    here = _inside(plan, index)
                    outputs, found = self._visit(equation, here, operands, values)
                    read |= found
                else:
                    outputs = _evaluate(equation, operands)
            environment |= dict(zip(equation.outvars, outputs, strict=True))
            for variable in (*filter(_is_variable, equation.invars), *equation.outvars):
                if last.get(variable, -1) <= index:  # free its memory
                    environment.pop(variable, None)
        return [look_up(atom) for atom in program.outvars], read

    def _visit(
        self, equation: core.JaxprEqn, plan: Plan, operands: list[Any], values: Values
    ) -> Result:
        """Evaluates an equation with sites: itself, or equations in the programs it holds."""
        site = dict(plan).get(())
        plans = tuple(_inside(plan, index) for index in range(len(programs_of(equation))))
        read: Values = {}
        if site is not None and self._changes and equation.primitive is primitives.name_p:
            # The replacement carries the name, so that an outer capture finds it.
            (output,) = _evaluate(equation, self._changed(equation, site, operands, values))
            return [output], {site.name: output} if self._reads else {}
        if any(plans):
            names = {site.name for plan in plans for _, site in plan}
            inner_values = {name: value for name, value in values.items() if name in names}
            outputs, read = self._enter(equation, plans, operands, inner_values)
        else:
            outputs = _evaluate(equation, operands)
        if site is not None and self._changes:
            outputs = self._changed(equation, site, outputs, values)
        if site is not None and self._reads:
            read |= {site.name: outputs[0] if len(outputs) == 1 else tuple(outputs)}
        return outputs, read

    def _enter(
        self, equation: core.JaxprEqn, plans: Plans, inputs: Inputs, values: Values
    ) -> Result:
        """Evaluates an equation that holds programs with sites."""
        primitive, params = equation.primitive, equation.params
        if primitive in self._rules():
            if any(site.replacement is not None for plan in plans for _, site in plan):
                return self._change(equation, plans, inputs, values)
            names = [site.name for plan in plans for _, site in plan]
            local = {name: str(number) for number, name in enumerate(dict.fromkeys(names))}
            plans = tuple(
                tuple((path, site._replace(name=local[site.name])) for path, site in plan)
                for plan in plans
            )
            values = {local[name]: value for name, value in values.items()}
            outputs, read = self._compiled(primitive, tuple(params.items()), plans)(values, *inputs)
            return outputs, {name: read[number] for name, number in local.items() if number in read}
        if primitive is primitives.remat_p:
            return self._remat(params, plans, inputs, values)
        if is_shard_map(equation):
            return self._shard_map(params, plans, inputs, values)
        (program,), (plan,) = programs_of(equation), plans
        custom = (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p)
        if primitive in custom and self._reads:
            return self._keep_rule(equation, program, plan, inputs, values)
        return self.run(program, plan, inputs, values)

    def _rules(self) -> dict[core.Primitive, Callable[..., Result]]:
        """What is compiled and remembered."""
        return {
            primitives.jit_p: self._jit,
            primitives.scan_p: self._scan,
            primitives.while_p: self._while,
            primitives.cond_p: self._cond,
        }

    def _compile(
        self, primitive: core.Primitive, items: tuple[Any, ...], plans: Plans
    ) -> Callable[..., Result]:
        params, rule = dict(items), self._rules()[primitive]
        is_jit = primitive is primitives.jit_p

        def rewritten(values: Values, *inputs: Any) -> Result:
            return rule(params, plans, inputs, values)

        rewritten.__name__ = rewritten.__qualname__ = params["name"] if is_jit else primitive.name
        return jax.jit(rewritten, **(_jit_options(params) if is_jit else {}))

    def _change(
        self, equation: core.JaxprEqn, plans: Plans, inputs: Inputs, values: Values
    ) -> Result:
        """Evaluates an equation with functions at some sites, which are traced at every call."""
        rule, params = self._rules()[equation.primitive], equation.params

        def rewritten(values: Values, inputs: Inputs) -> Sequence[Any]:
            return list(rule(params, plans, inputs, values)[0])

        traced = jax.make_jaxpr(rewritten)(values, list(inputs))
        changed = _Changed(equation, traced.jaxpr)
        return self._compiled_changed(changed)((traced.consts, values), *inputs)

    def _compile_changed(self, changed: "_Changed") -> Callable[..., Result]:
        def evaluate(given: tuple[list[Any], Values], *inputs: Any) -> Result:
            constants, values = given
            program = core.ClosedJaxpr(changed.program, constants)
            return self.run(program, (), [*jax.tree.leaves(values), *inputs], {})

        evaluate.__name__ = evaluate.__qualname__ = changed.name
        return jax.jit(evaluate, **changed.options)

    def _jit(self, params: Params, plans: Plans, inputs: Inputs, values: Values) -> Result:
        return self.run(params["jaxpr"], plans[0], inputs, values)

    def _remat(self, params: Params, plans: Plans, inputs: Inputs, values: Values) -> Result:
        call = functools.partial(self.run, params["jaxpr"], plans[0])
        if params["differentiated"] and params["prevent_cse"]:
            # The compiler must not merge this recomputation with the forward pass.
            inputs = lax.optimization_barrier(inputs)
        options = {key: params[key] for key in ("prevent_cse", "policy")}
        return jax.checkpoint(call, **options)(inputs, values)

    def _keep_rule(
        self, equation: core.JaxprEqn, program: Any, plan: Plan, inputs: Inputs, values: Values
    ) -> Result:
        @jax.custom_jvp
        def call(values: Values, *inputs: Any) -> Result:
            return self.run(program, plan, inputs, values)

        @call.defjvp
        def rule(primals: tuple, tangents: tuple) -> tuple[Result, Result]:
            (values, *inputs), (d_values, *d_inputs) = primals, tangents
            outputs, d_outputs = jax.jvp(lambda *x: _evaluate(equation, x), inputs, d_inputs)
            (_, read), (_, d_read) = jax.jvp(call.fun, primals, tangents)
            if values:  # what was added inside has its ordinary derivative
                _, (added, _) = jax.jvp(lambda v: call.fun(v, *inputs), (values,), (d_values,))
                d_outputs = [
                    a if a.dtype == jax.dtypes.float0 else a + b
                    for a, b in zip(d_outputs, added, strict=True)
                ]
            return (outputs, read), (d_outputs, d_read)

        return call(values, *inputs)

    def _changed(
        self, equation: core.JaxprEqn, site: Site, old: Sequence[Any], values: Values
    ) -> list[jax.Array]:
        """The outputs with what is given in place of them, or added."""
        if not self._adds:
            return _replace(equation, site, old, values)
        if site.name not in values:
            return list(old)
        added = _replace(equation, site, old, values)
        return [x + delta for x, delta in zip(old, added, strict=True)]

    def _scan(self, params: Params, plans: Plans, inputs: Inputs, values: Values) -> Result:
        constants, carry, xs = _scan_parts(params, inputs)

        def step(carry: Any, x: tuple[list[Any], Values]) -> tuple[Any, Any]:
            slices, here = x
            outputs, read = self.run(params["jaxpr"], plans[0], [*constants, *carry, *slices], here)
            return outputs[: len(carry)], (outputs[len(carry) :], read)

        options = {key: params[key] for key in ("length", "reverse", "unroll")}
        carry, (ys, read) = lax.scan(step, carry, (xs, values), **options)
        return [*carry, *ys], read

    def _while(self, params: Params, plans: Plans, inputs: Inputs, values: Values) -> Result:
        ends = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        condition_constants, body_constants = inputs[: ends[0]], inputs[ends[0] : ends[1]]
        start = list(inputs[ends[1] :])

        def condition(carry: Sequence[Any]) -> tuple[Any, Values]:
            operands = [*condition_constants, *carry]
            (continues,), read = self.run(params["cond_jaxpr"], plans[0], operands, values)
            return continues, read

        def body(carry: Sequence[Any]) -> Result:
            return self.run(params["body_jaxpr"], plans[1], [*body_constants, *carry], values)

        def step(state: tuple) -> tuple:
            carry, read = body(state[0])
            goes_on = state[2]
            if goes_on.ndim:  # of a batch: entries that are done keep their carry
                carry = [
                    jnp.where(lax.expand_dims(goes_on, range(goes_on.ndim, new.ndim)), new, old)
                    for new, old in zip(carry, state[0], strict=True)
                ]
            return carry, read, *condition(carry)

        never = _blank(_types(lambda: body(start)[1]), np.nan)
        state = (start, never, *condition(start))
        carry, read, _, read_by_condition = lax.while_loop(
            lambda state: jnp.any(state[2]), step, state
        )
        return carry, read | read_by_condition

    def _cond(self, params: Params, plans: Plans, inputs: Inputs, values: Values) -> Result:
        index, *operands = inputs

        def taken(position: int) -> Result:
            program, plan = params["branches"][position], plans[position]
            outputs, read = self.run(program, plan, operands, values)
            return outputs, {name: _conditional(value) for name, value in read.items()}

        types: Values = {}
        for position, plan in enumerate(plans if self._reads else ()):
            if plan:
                types |= _types(lambda i=position: taken(i)[1])  # type: ignore[misc]

        def branch(position: int) -> Result:
            outputs, read = taken(position)
            return outputs, _blank(types, 0) | read

        return lax.switch(index, [functools.partial(branch, i) for i in range(len(plans))])

    def _shard_map(self, params: Params, plans: Plans, inputs: Inputs, values: Values) -> Result:
        specs, loops = {}, {}
        for path, site in plans[0]:
            axes, depth = shard_axes(params, site.varying), _scans_around(params["jaxpr"], path)
            specs[site.name] = PartitionSpec(*[None] * depth, axes) if axes else PartitionSpec()
            loops[site.name] = depth if axes else -1

        def local(inputs: tuple[Any, ...], values: Values) -> Result:
            outputs, read = self.run(params["jaxpr"], plans[0], inputs, values)
            for name, value in read.items():
                # A scalar of a shard gets the axis along which shards are laid side by side.
                read[name] = jax.tree.map(
                    lambda x, axis=loops[name]: jnp.expand_dims(x, axis) if x.ndim == axis else x,
                    value,
                )
            return tuple(outputs), read

        mapped = jax.shard_map(
            local,
            mesh=params["mesh"],
            in_specs=(tuple(params["in_specs"]), {name: specs[name] for name in values}),
            out_specs=(tuple(params["out_specs"]), specs if self._reads else {}),
            axis_names=params["newly_manual_axes"],
            check_vma=params["check_vma"],
        )
        return mapped(tuple(inputs), values)


def check_replacement(
    name: str, given: Any, types: Sequence[Any], shapes: Sequence[Sequence[tuple[int, ...]]]
) -> list[jax.Array]:
    """The arrays of a replacement: one per output of the equation, each with an allowed shape."""
    leaves = [given] if len(types) == 1 else given
    if not isinstance(leaves, (tuple, list)) or len(leaves) != len(types):
        raise TypeError(
            f"the replacement of {name!r} must be a tuple of {len(types)} arrays, one per output "
            f"of its equation, got {type(given).__name__}"
        )
    if odd := [leaf for leaf in leaves if not (np.isscalar(leaf) or hasattr(leaf, "dtype"))]:
        raise TypeError(
            f"the replacement of {name!r} must be an array, or a function that returns one, got "
            f"{type(odd[0]).__name__}"
        )
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    for x, aval, allowed in zip(arrays, types, shapes, strict=True):
        if x.shape not in allowed:
            raise ValueError(
                f"the replacement of {name!r} must have shape {' or '.join(map(str, allowed))}, "
                f"got {x.shape}; to fill with one number, give a function such as jnp.zeros_like"
            )
        if x.dtype != aval.dtype:
            raise TypeError(
                f"the replacement of {name!r} must have dtype {aval.dtype}, got {x.dtype}; "
                "convert it with .astype"
            )
    return arrays


def _replace(
    equation: core.JaxprEqn, site: Site, old: Sequence[Any], values: Values
) -> list[jax.Array]:
    types: list[Any] = [v.aval for v in equation.outvars]
    if site.replacement is None:  # a shard's scalar comes as a vector of one
        new = [x.reshape(aval.shape) for x, aval in zip(values[site.name], types, strict=True)]
    else:
        given = site.replacement(old[0] if len(old) == 1 else tuple(old))
        new = check_replacement(site.name, given, types, [[aval.shape] for aval in types])
    return [_conform(x, aval) for x, aval in zip(new, types, strict=True)]


class _Changed:
    """An equation around a changed program, equal to another one if they compute the same."""

    def __init__(self, equation: core.JaxprEqn, program: Any):
        is_jit = equation.primitive is primitives.jit_p
        self.program = program
        self.name = equation.params["name"] if is_jit else equation.primitive.name
        self.options = _jit_options(equation.params) if is_jit else {}
        held = PROGRAMS[equation.primitive]
        around = {name: value for name, value in equation.params.items() if name not in held}
        self._content = _content(program), _content(around)

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Changed) and self._content == other._content


def _content(part: Any) -> Any:
    """What a program or one of its parameters says, to be compared with that of another trace.

    Variables count by their order. What cannot be compared stands for itself alone.
    """
    if isinstance(part, core.ClosedJaxpr) and not part.consts:
        part = part.jaxpr
    if isinstance(part, core.Jaxpr):
        numbers: dict[Any, int] = {}

        def atom(x: Any) -> Any:
            if _is_variable(x):
                return numbers.setdefault(x, len(numbers)), x.aval
            return _content(np.asarray(x.val)), x.aval

        def atoms(xs: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(map(atom, xs))

        return (
            atoms([*part.constvars, *part.invars]),
            *(
                (e.primitive, atoms(e.invars), atoms(e.outvars), _content(e.params), e.ctx)
                for e in part.eqns
            ),
            atoms(part.outvars),
        )
    if isinstance(part, (tuple, list)):
        return tuple(map(_content, part))
    if isinstance(part, dict):
        return tuple((name, _content(value)) for name, value in part.items())
    if isinstance(part, np.ndarray):
        return part.dtype, part.shape, part.tobytes()
    return part if isinstance(part, Hashable) else _Alone(part)


class _Alone(NamedTuple):
    """Something without a hash, equal to itself."""

    part: Any

    def __hash__(self) -> int:
        return id(self.part)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alone) and self.part is other.part


def _inside(plan: Plan, index: int) -> Plan:
    """The sites below one index, seen from there."""
    return tuple((path[1:], site) for path, site in plan if path[:1] == (index,))


def _scans_around(program: Any, path: Path) -> int:
    """The number of scans around a place."""
    if len(path) == 1:
        return 0
    equation = program.eqns[path[0]]
    return is_scan(equation) + _scans_around(programs_of(equation)[path[1]], path[2:])


def _evaluate(equation: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The outputs of an equation as it stands."""
    params = equation.primitive.get_bind_params(equation.params)
    outputs = equation.primitive.bind(*operands, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def _scan_parts(params: Params, inputs: Inputs) -> tuple[list[Any], ...]:
    """Constants, carry and slices among the inputs of a `scan`."""
    if "ft_in" in params:  # jax 0.12
        constants, carry, xs = params["ft_in"].update(inputs).unpack()
        return list(constants), list(carry), list(xs)
    ends = params["num_consts"], params["num_consts"] + params["num_carry"]
    return list(inputs[: ends[0]]), list(inputs[ends[0] : ends[1]]), list(inputs[ends[1] :])


def _jit_options(params: Params) -> dict[str, Any]:
    """What `jit` was given, for a function (values, *inputs) -> (outputs, values)."""
    options: dict[str, Any] = {"keep_unused": params["keep_unused"]}
    donated = [i + 1 for i, donates in enumerate(params["donated_invars"]) if donates]
    places = {
        side: [s if isinstance(s, Sharding) else None for s in params[f"{side}_shardings"]]
        for side in ("in", "out")
    }
    if donated:
        options["donate_argnums"] = donated
    if any(places["in"]):
        options["in_shardings"] = (None, *places["in"])
    if any(places["out"]):
        options["out_shardings"] = (places["out"], None)
    if params["compiler_options_kvs"]:
        options["compiler_options"] = dict(params["compiler_options_kvs"])
    return options


def _conform(x: jax.Array, aval: Any) -> jax.Array:
    """Gives a value the rest of a type: it varies over mesh axes, or is sharded over them."""
    missing = tuple(varying_axes(aval) - varying_axes(jax.typeof(x)))
    if missing:
        x = lax.pcast(x, missing, to="varying")
    if any(aval.sharding.spec) and jax.typeof(x).sharding.spec != aval.sharding.spec:
        x = jax.sharding.reshard(x, aval.sharding.spec)  # a mesh with explicit axes
    return x


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


def _conditional(value: Any) -> Conditional:
    return value if isinstance(value, Conditional) else Conditional(value, jnp.asarray(True))


def _types(function: Callable[[], Any]) -> Any:
    """The abstract values a function would return, in its tree."""
    program, shapes = jax.make_jaxpr(function, return_shape=True)()
    return jax.tree.unflatten(jax.tree.structure(shapes), [v.aval for v in program.jaxpr.outvars])


def _blank(types: Any, fill: float) -> Any:
    """Arrays of the given types, filled where the dtype has the number, otherwise zero."""

    def blank(aval: Any) -> jax.Array:
        inexact = jnp.issubdtype(aval.dtype, jnp.inexact)
        return _conform(lax.full(aval.shape, fill if inexact else 0, aval.dtype), aval)

    return jax.tree.map(blank, types)
