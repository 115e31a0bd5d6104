"""What the equations of a jaxpr hold: the one place that knows JAX's own parameters.

Their names are no public interface of JAX and change between its versions; everything else in this
package goes through here.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.extend.core import primitives
from jax.sharding import Sharding

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
        # The stack of an equation ends at the jitted function it stands in, which may be called
        # from several places; the calls around it know the rest.
        for equation in (self._equation, *reversed(self._within)):
            traceback = equation.source_info.traceback
            names += [frame.function_name for frame in traceback.frames] if traceback else []
        return tuple(dict.fromkeys(names))

    @property
    def scope(self) -> str:
        """The ``jax.named_scope``s around it, joined by ``/``; Linen opens one a module."""
        stack = "/".join(str(e.source_info.name_stack) for e in (*self._within, self._equation))
        # It also tells of transformations, such as «transpose(jvp(Encoder))/Dense_0».
        return "/".join(filter(None, re.sub(r"\w+\(|\)", "", stack).split("/")))


def is_scan(equation: core.JaxprEqn) -> bool:
    """Is it a loop that stacks its results?"""
    return equation.primitive is primitives.scan_p


def is_shard_map(equation: core.JaxprEqn) -> bool:
    """Does it run its program on shards? Its primitive is not public."""
    return equation.primitive.name == "shard_map"


def programs_of(equation: core.JaxprEqn) -> tuple[Any, ...]:
    """The programs inside an equation that can be rewritten."""
    keys = ("jaxpr",) if is_shard_map(equation) else PROGRAMS.get(equation.primitive, ())
    held = [equation.params[key] for key in keys]
    return tuple(held[0]) if keys == ("branches",) else tuple(held)


def evaluate(equation: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The outputs of an equation as it stands."""
    params = equation.primitive.get_bind_params(equation.params)
    outputs = equation.primitive.bind(*operands, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def scan_parts(params: dict[str, Any], inputs: Sequence[Any]) -> tuple[list[Any], ...]:
    """Constants, carry and slices among the inputs of a `scan`."""
    if "ft_in" in params:  # jax 0.12
        constants, carry, xs = params["ft_in"].update(inputs).unpack()
        return list(constants), list(carry), list(xs)
    ends = params["num_consts"], params["num_consts"] + params["num_carry"]
    return list(inputs[: ends[0]]), list(inputs[ends[0] : ends[1]]), list(inputs[ends[1] :])


def jit_options(params: dict[str, Any]) -> dict[str, Any]:
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


def shard_axes(params: dict[str, Any], varying: frozenset[Any]) -> tuple[Any, ...]:
    """The mesh axes over which the shards of a value inside a `shard_map` must be told apart."""
    manual = params["newly_manual_axes"]
    known = varying if params["check_vma"] else manual  # unchecked: nobody knows
    return tuple(axis for axis in params["mesh"].axis_names if axis in manual & known)


def varying_axes(aval: Any) -> frozenset[Any]:
    """The mesh axes over which a value inside a `shard_map` can differ."""
    return getattr(getattr(aval, "mat", None), "varying", frozenset())


def conform(x: jax.Array, aval: Any) -> jax.Array:
    """Gives a value the rest of a type: it varies over mesh axes, or is sharded over them."""
    missing = tuple(varying_axes(aval) - varying_axes(jax.typeof(x)))
    if missing:
        x = lax.pcast(x, missing, to="varying")
    if any(aval.sharding.spec) and jax.typeof(x).sharding.spec != aval.sharding.spec:
        x = jax.sharding.reshard(x, aval.sharding.spec)  # a mesh with explicit axes
    return x
