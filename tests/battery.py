"""One table, one battery: every public function is a `Row`, and every row meets the same checks.

A check is a plain function of a row that raises `AssertionError` (or lets the function's own error
through). Sizes are tiny, because compile time dominates; the compiled function of a row is shared
by all checks. Formulas and reference numbers do not belong here: the battery proves that a function
is well behaved under the transformations of JAX, not that it is right.

To add a function, add a `Row` to ``ROWS`` in ``tests/<package>/rows.py``. Three further tables
there are of what takes more than arrays: ``TRANSFORMATIONS`` of Optax, each a `functools.partial`
of what makes one with its numbers; ``TREES``, name -> function of a tree of parameters;
``CLOSURES``, name -> function of a list with one array that returns a call which reads the list.
"""

import collections
import dataclasses
import functools
import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo._paths import path_name

COPIES = 3  # how many argument sets a loop, a vmap or a scan runs over
DEVICES = 8
# Compiling is most of the cost, and these programs run a few times on a few numbers.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}  # a few roundings of each dtype
EXTREMES: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {  # in units of the largest number
    "random signs": lambda shape: np.random.default_rng(1).choice([-1.0, 1.0], shape),
    "one spike": lambda shape: (np.arange(math.prod(shape)) == 1).reshape(shape).astype(float),
    "all largest": np.ones,
    "all smallest": lambda shape: -np.ones(shape),
    "zeros": np.zeros,
}
_COMPILATIONS: collections.Counter[str] = collections.Counter()


@dataclasses.dataclass(frozen=True)
class BadInput:
    """A call that must be refused, and what its message must say (three regular expressions)."""

    label: str
    call: Callable[[], Any]
    error: type[Exception]
    argument: str
    expected: str
    got: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """One public function (with its options bound) and what the checks need to know about it.

    Attributes:
        name: public path, such as ``"zoo.ordered.cumax"``.
        function: takes the arguments by position.
        arguments: ``(generator, batch_shape, dtype) -> tuple`` of array arguments; pytrees and
            PRNG keys are welcome.
        axes: the batch axis of each argument, as a tree prefix; None is shared (parameters, keys).
            All None: there is no batch, and what splits one is not checked.
        out_axes: the batch axis of each output, as a tree prefix; None is reduced over the batch.
        variant: tells two rows of one function apart.
        batch: the batch shape where a check has no wish of its own.
        differentiable: positions of the arguments whose floats have gradients; () for none.
        tolerance: error per dtype, relative to the largest entry of the output.
        gradient_tolerance: relative error of a slope against central differences in float64.
        extreme: largest promised size of an input, as a fraction of its dtype's largest number.
        extreme_arguments: positions made extreme; None: the differentiable ones.
        state: (argument, output) positions of a state that is fed back; output None: all of it.
        wide: which outputs are promised in at least float32, as a tree prefix.
        axis_name: the function reduces over the batch and takes ``axis_name``.
        random: draws random bits, which differ between dtypes.
        pmap: also run under ``jax.pmap``, which wraps jit and shard_map: one row or two a package.
        bad: calls that must be refused.
        mask: positions of the values and of the mask (1 or True: counts) that hides some of them.
        classes: calls the function with 300 classes and the given vector of ids.
        skip: reason per check that this row does not meet.
    """

    name: str
    function: Callable[..., Any]
    arguments: Callable[[np.random.Generator, tuple[int, ...], Any], tuple]
    axes: tuple
    out_axes: Any = 0
    variant: str = ""
    batch: tuple[int, ...] = (2,)
    differentiable: tuple[int, ...] = (0,)
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(TOLERANCE))
    gradient_tolerance: float = 1e-6
    extreme: float = 1.0
    extreme_arguments: tuple[int, ...] | None = None
    state: tuple[int, int | None] | None = None
    wide: Any = False
    axis_name: bool = False
    random: bool = False
    pmap: bool = False
    bad: tuple[BadInput, ...] = ()
    mask: tuple[int, int] | None = None
    classes: Callable[[jax.Array], Any] | None = None
    skip: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}[{self.variant}]" if self.variant else self.name

    @functools.cached_property
    def compiled(self) -> Callable[..., Any]:
        return quick_jit(self.function)

    def make(
        self, seed: int, batch: tuple[int, ...] | None = None, dtype: Any = "float32"
    ) -> tuple:
        generator = np.random.default_rng(seed)
        return self.arguments(generator, self.batch if batch is None else batch, jnp.dtype(dtype))


def jit_equals_eager(row: Row) -> None:
    arguments = row.make(0)
    compiled = jax.jit(row.function)  # as users compile it, with all optimisations
    assert_close(compiled(*arguments), row.function(*arguments), row.tolerance["float32"])


def vmap_equals_loop(row: Row) -> None:
    sets = [row.make(seed) for seed in range(COPIES)]
    stacked, in_axes = stack(row, sets)
    actual = quick_jit(jax.vmap(row.function, in_axes=in_axes))(*stacked)
    assert_close(actual, loop(row, sets), row.tolerance["float32"])


def scan_equals_loop(row: Row) -> None:
    """One step per argument set; a state is fed from step to step."""
    sets = [row.make(seed) for seed in range(COPIES)]
    stacked, in_axes = stack(row, sets)
    moving = [axis is not None for axis in in_axes]
    if row.state is not None:
        moving[row.state[0]] = False

    def step(state: Any, index: jax.Array) -> tuple[Any, Any]:
        arguments = [
            jax.tree.map(lambda leaf: leaf[index], argument) if moves else argument
            for argument, moves in zip(stacked, moving, strict=True)
        ]
        if row.state is not None:
            arguments[row.state[0]] = state
        output = row.function(*arguments)
        return (state if row.state is None else fed_back(row, output)), output

    start = None if row.state is None else sets[0][row.state[0]]
    if row.state is not None:
        stacked = tuple(start if i == row.state[0] else a for i, a in enumerate(stacked))
    _, actual = quick_jit(lambda start: jax.lax.scan(step, start, jnp.arange(COPIES)))(start)
    assert_close(actual, loop(row, sets, feed=True), row.tolerance["float32"])


def compiles_once(row: Row) -> None:
    """New values neither trace a jitted function again nor, without jit, compile anything."""
    traces = []

    def traced(*arguments: Any) -> Any:
        traces.append(1)
        return row.function(*arguments)

    compiled = quick_jit(traced)
    compiled(*row.make(0))
    compiled(*row.make(1))
    assert len(traces) == 1, f"{row} was traced {len(traces)} times for equal shapes"

    row.function(*row.make(0))
    arguments = row.make(1)
    jax.monitoring.register_event_duration_secs_listener(_count_compilation)
    try:
        _COMPILATIONS.clear()
        row.function(*arguments)
    finally:
        jax.monitoring.unregister_event_duration_listener(_count_compilation)
    count = _COMPILATIONS["/jax/core/compile/backend_compile_duration"]
    assert count == 0, (
        f"a second call of {row} outside jit compiled {count} programs again: "
        "jit the loop inside it (a new closure under lax.scan is a new program every time)"
    )


def keeps_dtype(row: Row) -> None:
    """Floats come out in the dtype they came in, close to the float64 answer."""
    for dtype, tolerance in row.tolerance.items():
        arguments = row.make(0, dtype=dtype)
        output = row.compiled(*arguments)
        wide = jax.tree.leaves(jax.tree.broadcast(row.wide, output))
        for leaf, is_wide in zip(jax.tree.leaves(output), wide, strict=True):
            expected = jnp.promote_types(dtype, "float32") if is_wide else dtype
            if is_float(leaf):
                assert leaf.dtype == expected, f"{row}: {dtype} in, {leaf.dtype} out"
        with jax.enable_x64(True):
            exact = row.compiled(*cast(arguments, np.float64))
            for leaf in floats(exact):
                assert leaf.dtype == np.float64, f"{row}: float64 in, {leaf.dtype} out"
            if not row.random:
                assert_close(output, exact, tolerance)


def known_from_shapes(row: Row) -> None:
    arguments = row.make(0)
    described = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), row.function(*arguments))
    found = jax.eval_shape(row.function, *described)
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found)
    assert found == expected, f"{row}: from shapes alone {found}, in the run {expected}"


def gradients_match_differences(row: Row) -> None:
    """Forward and reverse mode against central differences of a weighted sum, in float64.

    A plain sum would hide a wrong gradient wherever the outputs have a fixed total.
    """
    with jax.enable_x64(True):
        arguments = cast(row.make(0, dtype=np.float64), np.float64)
        primals, rebuild = split(row, arguments)
        weights = weights_like(jax.eval_shape(rebuild, *primals), seed=1)

        def weighted_sum(*leaves: jax.Array) -> jax.Array:
            outputs = zip(weights, rebuild(*leaves), strict=True)
            return sum((jnp.vdot(w, y) for w, y in outputs), jnp.zeros(()))

        @quick_jit
        def probe(leaves: Any, direction: Any) -> Any:
            value, forward = jax.jvp(weighted_sum, leaves, direction)
            gradient = jax.grad(weighted_sum, argnums=tuple(range(len(leaves))))(*leaves)
            reverse = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
            return value, forward, reverse

        for seed in range(2, 4):
            direction = tuple(weights_like(primals, seed))
            _, forward, reverse = probe(primals, direction)
            step = 1e-5
            ahead = tuple(x + step * d for x, d in zip(primals, direction, strict=True))
            behind = tuple(x - step * d for x, d in zip(primals, direction, strict=True))
            slope = (probe(ahead, direction)[0] - probe(behind, direction)[0]) / (2 * step)
            for mode, found in (("jvp", forward), ("vjp", reverse)):
                error = abs(found - slope)
                message = f"{row}: {mode} {found:.9g}, central difference {slope:.9g}"
                assert error <= row.gradient_tolerance * (1 + abs(slope)), message


def finite_at_extremes(row: Row) -> None:
    """Values and gradients stay finite for huge, constant and zero inputs.

    bfloat16 has the range of float32; float16 has a much smaller one.
    """
    positions = row.differentiable if row.extreme_arguments is None else row.extreme_arguments
    run = values_and_gradients(row)
    for dtype in (dtype for dtype in row.tolerance if dtype != "bfloat16"):
        arguments = row.make(0, dtype=dtype)
        largest = row.extreme * float(jnp.finfo(dtype).max)
        for label, fill in EXTREMES.items():
            extreme = tuple(
                jax.tree.map(functools.partial(_filled, fill, largest), argument)
                if position in positions
                else argument
                for position, argument in enumerate(arguments)
            )
            for part, leaves in zip(("value", "gradient"), run(extreme), strict=True):
                for leaf in floats(leaves):
                    finite = np.isfinite(np.asarray(leaf, np.float64)).all()
                    assert finite, f"{row}: {part} at {label} in {dtype} is {leaf}"


def shows_nan(row: Row) -> None:
    """A NaN comes out as NaN, never as a plausible number."""
    for position in row.differentiable if row.extreme_arguments is None else row.extreme_arguments:
        arguments = list(row.make(0))
        leaves, structure = jax.tree.flatten(arguments[position])
        spoiled = max(i for i, leaf in enumerate(leaves) if is_float(leaf))
        leaves[spoiled] = leaves[spoiled].at[(0,) * leaves[spoiled].ndim].set(jnp.nan)
        arguments[position] = jax.tree.unflatten(structure, leaves)
        output = floats(row.compiled(*arguments))
        assert any(bool(jnp.isnan(leaf).any()) for leaf in output), (
            f"{row}: NaN in argument {position} gives {output}"
        )


def ignores_masked_entries(row: Row) -> None:
    """What is masked reaches no arithmetic: neither the values nor any first derivative."""
    values, hidden = row.mask
    arguments = list(row.make(0))
    kept = jnp.asarray(arguments[hidden], bool)
    kept = kept.at[(0,) * kept.ndim].set(False)  # at least one entry is masked
    arguments[hidden] = kept.astype(arguments[hidden].dtype)
    kept = kept.reshape(*kept.shape, *[1] * (arguments[values].ndim - kept.ndim))
    run = values_and_gradients(row)

    def with_fill(fill: float) -> Any:
        filled = jnp.where(kept, arguments[values], jnp.asarray(fill, arguments[values].dtype))
        return run(tuple(filled if i == values else a for i, a in enumerate(arguments)))

    expected = with_fill(0.0)
    for fill in (jnp.nan, jnp.inf, -jnp.inf, float(jnp.finfo(arguments[values].dtype).max)):
        assert_close(with_fill(fill), expected, row.tolerance["float32"])


def takes_ids_of_every_dtype(row: Row) -> None:
    """Ids count the same in every integer dtype, also where the number of classes does not fit."""
    for ids in ([0, 5, 100], [0, 5, 127]):
        expected = row.classes(jnp.asarray(ids, jnp.int32))
        for dtype in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.uint32):
            found = row.classes(jnp.asarray(ids, dtype))
            assert_close(floats(found), floats(expected), row.tolerance["float32"])


def takes_scalars_of_every_kind(row: Row) -> None:
    """Hyper-parameters may be Python, NumPy or JAX scalars; what is refused is so in each."""
    function, bound = unwrapped(row.function)
    arguments = row.make(0)
    for name, value in scalars_of(function, bound).items():
        kinds = (np.float32, jnp.float32) if isinstance(value, float) else (np.int64, jnp.int32)
        for number in (value, math.nan if isinstance(value, float) else -1_000_000):
            answers = [
                outcome(functools.partial(function, **bound | {name: kind(number)}), arguments)
                for kind in (type(value), *kinds)
            ]
            assert len(set(answers)) == 1, f"{row}: {name}={number} as three kinds: {answers}"
            assert number == value or answers[0] != "accepted", f"{row}: {name}={number} passes"


def accepts_empty_batch(row: Row) -> None:
    arguments = row.make(0, batch=(0, *row.batch[1:]))
    values, gradients = values_and_gradients(row)(arguments)
    for leaf in floats((values, gradients)):
        assert np.isfinite(np.asarray(leaf, np.float64)).all(), (
            f"{row}: an empty batch gives {leaf}"
        )


def sharded_equals_unsharded(row: Row) -> None:
    """Split over the batch: the same numbers, and the outputs still split over the batch."""
    mesh = data_mesh()
    arguments = row.make(0, batch=(DEVICES, *row.batch[1:]))
    placed = jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
        arguments,
        partition(arguments, row.axes),
    )
    output = row.compiled(*placed)
    assert_close(output, row.compiled(*arguments), row.tolerance["float32"])
    specs = jax.tree.leaves(partition(output, row.out_axes), is_leaf=is_spec)
    for leaf, spec in zip(jax.tree.leaves(output), specs, strict=True):
        kept = leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)
        assert kept, f"{row}: expected an output sharded as {spec}, got {leaf.sharding}"


def shard_map_equals_unsharded(row: Row) -> None:
    arguments = row.make(0, batch=(DEVICES, *row.batch[1:]))
    expected = row.compiled(*arguments)
    function = functools.partial(row.function, axis_name="data") if row.axis_name else row.function
    in_specs = partition(arguments, row.axes)
    out_specs = partition(expected, row.out_axes)
    mapped = jax.shard_map(function, mesh=data_mesh(), in_specs=in_specs, out_specs=out_specs)
    assert_close(quick_jit(mapped)(*arguments), expected, row.tolerance["float32"])


def pmap_equals_loop(row: Row) -> None:
    sets = [row.make(seed) for seed in range(DEVICES)]
    stacked, in_axes = stack(row, sets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = jax.pmap(row.function, in_axes=in_axes)(*stacked)
    assert_close(actual, loop(row, sets), row.tolerance["float32"])


def donation_is_safe(row: Row) -> None:
    """Inputs may be given up; a state is really given up, and its successor can be given up too."""
    expected = row.function(*row.make(0))
    given = row.differentiable if row.state is None else (row.state[0],)
    donating = quick_jit(row.function, donate_argnums=given)
    arguments = row.make(0)
    with warnings.catch_warnings():
        if row.state is None:  # whether an output can reuse the memory is the shapes' affair
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        output = donating(*arguments)
        assert_close(output, expected, row.tolerance["float32"])
        if row.state is not None:
            position, _ = row.state
            for path, leaf in jax.tree_util.tree_leaves_with_path(arguments[position]):
                assert leaf.is_deleted(), f"{row}: state{jax.tree_util.keystr(path)} was copied"
            again = list(row.make(1))
            again[position] = fed_back(row, output)
            jax.block_until_ready(donating(*again))


def state_keeps_structure(row: Row) -> None:
    """A state comes out as it went in: the same tree, shapes, dtypes and weak types."""
    arguments = row.make(0)
    before = jax.tree.map(jax.typeof, arguments[row.state[0]])
    after = jax.eval_shape(lambda *a: fed_back(row, row.function(*a)), *arguments)
    describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype, x.weak_type))
    assert describe(after) == describe(before), f"{row}: {before} became {after}"


def refuses_bad_input(row: Row) -> None:
    for bad in row.bad:
        with pytest.raises(bad.error) as raised:
            bad.call()
        message = str(raised.value)
        for part in ("argument", "expected", "got"):
            found = re.search(getattr(bad, part), message)
            assert found, f"{row}, {bad.label}: the message lacks the {part}: {message}"


CHECKS = (
    jit_equals_eager,
    vmap_equals_loop,
    scan_equals_loop,
    compiles_once,
    keeps_dtype,
    known_from_shapes,
    gradients_match_differences,
    finite_at_extremes,
    shows_nan,
    ignores_masked_entries,
    takes_ids_of_every_dtype,
    takes_scalars_of_every_kind,
    accepts_empty_batch,
    sharded_equals_unsharded,
    shard_map_equals_unsharded,
    pmap_equals_loop,
    donation_is_safe,
    state_keeps_structure,
    refuses_bad_input,
)


# Checks of Optax transformations, of functions of a tree, and of what closes over an array.


def parameters() -> dict[str, Any]:
    """A tree of parameters; every row of a kernel is a direction, as spheres want it."""
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        x = generator.normal(size=shape)
        return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)

    layers = {str(i): {"kernel": draw(2, 3), "bias": draw(3)} for i in range(2)}
    return {"embedding": draw(2, 3), "layers": layers, "norm": {"scale": draw(3)}}


def _listed(make: Callable[[list], Any]) -> Callable[[dict], dict]:
    return lambda tree: tree | {"layers": make(list(tree["layers"].values()))}


CONTAINERS: dict[str, Callable[[dict], Any]] = {  # the paths of the leaves are the same in each
    "dict": dict,
    "lists": _listed(list),
    "tuples": _listed(tuple),
    "FrozenDict": freeze,
    "nnx.State": lambda tree: nnx.State(jax.tree.map(nnx.Param, tree)),
}


def two_steps(
    transformation: optax.GradientTransformation, tree: Any, wrap: Callable = lambda f: f
) -> tuple[Any, Any]:
    """The parameters and the optimiser's state after two updates."""
    state, update = transformation.init(tree), wrap(transformation.update)
    for _ in range(2):
        updates, state = update(jax.tree.map(lambda x: 0.3 - x**2, tree), state, tree)
        tree = optax.apply_updates(tree, updates)
    return tree, state


def takes_any_container(function: Callable[[Any], Any]) -> None:
    """The numbers depend on the paths of the parameters, never on what holds them.

    Of a transformation (a partial of what makes it): the numbers after two updates.
    """
    made = isinstance(function, functools.partial)
    run = functools.partial(two_steps, function()) if made else function
    found = {}
    for name, convert in CONTAINERS.items():
        leaves = jax.tree.leaves_with_path(run(convert(parameters())))
        found[name] = {path_name(path): leaf for path, leaf in leaves}
        assert_close(found[name], found["dict"], TOLERANCE["float32"])


def injects_numbers(make: functools.partial) -> None:
    """Under ``optax.inject_hyperparams`` and jit every number may be traced, but for sizes."""
    options = inspect.signature(make.func).parameters.values()
    sizes = [option.name for option in options if option.annotation is int]
    injected = optax.inject_hyperparams(make.func, static_args=sizes)(**make.keywords)
    found, state = two_steps(injected, parameters(), quick_jit)
    expected = two_steps(make(), parameters())
    assert_close((found, state.inner_state), expected, 10 * TOLERANCE["float32"])


def reads_what_it_closes_over(build: Callable[[list], Callable[[], Any]]) -> None:
    """A second call reads what has changed since the first, whatever is remembered of it."""
    box = [jnp.float32(1)]
    call = build(box)
    before = call()
    box[0] = jnp.float32(2)
    after, fresh = call(), build([jnp.float32(2)])()
    assert_close(after, fresh, TOLERANCE["float32"])
    with pytest.raises(AssertionError):
        assert_close(before, after, TOLERANCE["float32"])


FURTHER_CHECKS = (takes_any_container, injects_numbers, reads_what_it_closes_over)


def checks_of(row: Row) -> list[Callable[[Row], None]]:
    """The checks that have a meaning for this row."""
    absent: set[Callable[[Row], None]] = set()
    if not row.differentiable:
        absent |= {gradients_match_differences, shows_nan}
    if row.mask is None:
        absent.add(ignores_masked_entries)
    if row.classes is None:
        absent.add(takes_ids_of_every_dtype)
    if not scalars_of(*unwrapped(row.function)):
        absent.add(takes_scalars_of_every_kind)
    if row.state is None:
        absent.add(state_keeps_structure)
    if not row.pmap:
        absent.add(pmap_equals_loop)
    if not row.bad:
        absent.add(refuses_bad_input)
    if all(axis is None for axis in row.axes):
        absent |= {vmap_equals_loop, pmap_equals_loop, accepts_empty_batch}
        absent |= {sharded_equals_unsharded, shard_map_equals_unsharded}
    return [check for check in CHECKS if check not in absent]


# What the checks share.


def unwrapped(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function under `functools.partial`, and the options bound there."""
    if isinstance(function, functools.partial) and not function.args:
        return function.func, dict(function.keywords)
    return function, {}


def scalars_of(function: Callable[..., Any], bound: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword-only options that are numbers, with the value they have."""
    parameters = inspect.signature(function).parameters.values()
    values = {p.name: bound.get(p.name, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: value for name, value in values.items() if type(value) in (int, float)}


def outcome(function: Callable[..., Any], arguments: tuple) -> str:
    """The kind of error, or that there is none; from shapes alone, which costs no compilation."""
    try:
        jax.eval_shape(function, *arguments)
    except (TypeError, ValueError) as error:
        return type(error).__name__
    return "accepted"


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def floats(tree: Any) -> list:
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf), dtype) if is_float(leaf) else leaf, tree
    )


def numbers(leaf: Any) -> np.ndarray:
    """Any leaf as float64 (all our integers fit); PRNG keys by their data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).astype(np.float64)


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = jax.tree_util.tree_leaves_with_path(actual)
    for (path, a), e in zip(paths, jax.tree.leaves(expected), strict=True):
        a, e = numbers(a), numbers(e)
        scale = np.max(np.abs(e), initial=0.0, where=np.isfinite(e))
        np.testing.assert_allclose(
            a, e, rtol=0, atol=tolerance * scale, err_msg=f"output{jax.tree_util.keystr(path)}"
        )


def stack(row: Row, sets: list[tuple]) -> tuple[tuple, tuple]:
    """Argument sets along a new leading axis, and that axis per argument; shared: from set 0."""
    in_axes = tuple(None if axis is None else 0 for axis in row.axes)
    stacked = tuple(
        same[0] if axis is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *same)
        for axis, same in zip(in_axes, zip(*sets, strict=True), strict=True)
    )
    return stacked, in_axes


def loop(row: Row, sets: list[tuple], feed: bool = False) -> Any:
    """The stacked answers of one call after the other."""
    outputs: list[Any] = []
    for arguments in sets:
        arguments = [
            first if axis is None else own
            for axis, first, own in zip(row.axes, sets[0], arguments, strict=True)
        ]
        if feed and row.state is not None and outputs:
            arguments[row.state[0]] = fed_back(row, outputs[-1])
        outputs.append(row.compiled(*arguments))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def fed_back(row: Row, output: Any) -> Any:
    _, position = row.state
    return output if position is None else output[position]


def split(row: Row, arguments: tuple) -> tuple[tuple, Callable[..., list]]:
    """The differentiable floats, and the function of them alone that returns the float outputs."""
    leaves, structure = jax.tree.flatten(arguments)
    owners = [i for i, argument in enumerate(arguments) for _ in jax.tree.leaves(argument)]
    chosen = [
        i for i, leaf in enumerate(leaves) if owners[i] in row.differentiable and is_float(leaf)
    ]

    def rebuild(*primals: jax.Array) -> list:
        full = list(leaves)
        for i, primal in zip(chosen, primals, strict=True):
            full[i] = primal
        return floats(row.function(*jax.tree.unflatten(structure, full)))

    return tuple(leaves[i] for i in chosen), rebuild


def values_and_gradients(row: Row) -> Callable[[tuple], tuple]:
    """Compiled: outputs, and the gradients of their weighted sum without forming that sum."""

    def run(arguments: tuple) -> tuple:
        primals, rebuild = split(row, arguments)
        outputs, pull_back = jax.vjp(rebuild, *primals)
        return outputs, pull_back(weights_like(outputs, seed=2)) if primals else ()

    return quick_jit(run)


def weights_like(tree: Any, seed: int) -> list:
    generator = np.random.default_rng(seed)
    return [
        jnp.asarray(
            generator.uniform(0.5, 1.5, x.shape) * generator.choice([-1, 1], x.shape), x.dtype
        )
        for x in jax.tree.leaves(tree)
    ]


def data_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def partition(tree: Any, axes: Any) -> Any:
    """A tree of PartitionSpecs: ``data`` on the batch axis of each leaf."""
    axes = jax.tree.broadcast(axes, tree, is_leaf=lambda axis: axis is None)
    axes = jax.tree.leaves(axes, is_leaf=lambda axis: axis is None)
    specs = [
        PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data") for axis in axes
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), specs)


def _filled(fill: Callable[[tuple[int, ...]], np.ndarray], largest: float, leaf: Any) -> Any:
    return jnp.asarray(largest * fill(leaf.shape), leaf.dtype) if is_float(leaf) else leaf


def _count_compilation(event: str, seconds: float, **_: Any) -> None:
    _COMPILATIONS[event] += 1
