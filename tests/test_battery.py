"""Runs every row of every package through the battery, and proves that each check can fail."""

import functools
import importlib
import inspect
import pathlib
import pkgutil
import typing
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import zoo
from tests import battery
from tests.battery import CHECKS, FURTHER_CHECKS, BadInput, Row, checks_of
from zoo import _checks

# Packages whose functions act on the host (files, meshes, loops) and are no array functions.
HOST_PACKAGES = {
    "data": "sources, vocabularies and pipelines run on the host; see tests/data",
    "training": "meshes, steps and checkpoints are whole programs; see tests/training",
}
TESTS = pathlib.Path(__file__).parent
PACKAGES = sorted((*zoo.IDEAS, *zoo.FRAME))


def rows_module(package):
    return importlib.import_module(f"tests.{package}.rows")


ROWS = [
    row
    for package in PACKAGES
    if (TESTS / package / "rows.py").is_file()
    for row in rows_module(package).ROWS
]


# How a function is wired into JAX's transformations, shapes and caches takes most of the time and
# is slow, as is every dtype, except for the rows that also run under pmap, one or two a package.
# The numbers are checked for every row.
WIRING = {
    "jit_equals_eager",
    "scan_equals_loop",
    "sharded_equals_unsharded",
    "shard_map_equals_unsharded",
    "donation_is_safe",
    "vmap_equals_loop",
    "compiles_once",
    "known_from_shapes",
    "accepts_empty_batch",
    "state_keeps_structure",
    "keeps_dtype",
}


def pairs(rows):
    return [
        pytest.param(
            row,
            check,
            id=f"{row}-{check.__name__}",
            marks=[pytest.mark.slow] * (check.__name__ in WIRING and not row.pmap),
        )
        for row in rows
        for check in checks_of(row)
    ]


@pytest.mark.parametrize(("row", "check"), pairs(ROWS))
def test_row(row, check):
    if check.__name__ in row.skip:
        pytest.skip(row.skip[check.__name__])
    check(row)


def further(table):
    """name -> entry of one of the further tables, of all packages."""
    found = {}
    for package in sorted({row.name.split(".")[1] for row in ROWS}):
        entries = getattr(rows_module(package), table, {})
        if not isinstance(entries, dict):
            entries = {f"{make.func.__module__}.{make.func.__name__}": make for make in entries}
        found |= entries
    return found


TRANSFORMATIONS = further("TRANSFORMATIONS")
FURTHER = [
    pytest.param(entry, check, id=f"{name}-{check.__name__}")
    for check, tables in zip(
        FURTHER_CHECKS,
        (TRANSFORMATIONS | further("TREES"), TRANSFORMATIONS, further("CLOSURES")),
        strict=True,
    )
    for name, entry in tables.items()
]


@pytest.mark.parametrize(("entry", "check"), FURTHER)
def test_further(entry, check):
    check(entry)


def test_every_transformation_is_checked():
    """Whatever says that it returns one, public or in its module."""
    there = set()
    for package in {row.name.split(".")[1] for row in ROWS}:
        path = importlib.import_module(f"zoo.{package}").__path__
        for info in pkgutil.iter_modules(path, f"zoo.{package}."):
            for name, value in vars(importlib.import_module(info.name)).items():
                made = str(getattr(value, "__annotations__", {}).get("return", ""))
                own = getattr(value, "__module__", "") == info.name and name[0] != "_"
                if own and "GradientTransformation" in made:
                    there.add(f"{info.name}.{name}")
    assert there == {*TRANSFORMATIONS, "zoo.averaging.exponential.average_of_parameters"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_has_a_row_and_an_example(package):
    module = importlib.import_module(f"zoo.{package}")
    public = {f"zoo.{package}.{name}": getattr(module, name) for name in module.__all__}
    objects = {n: f for n, f in public.items() if callable(f) and typing.get_origin(f) is None}
    functions = {n: f for n, f in objects.items() if not inspect.isclass(f)}
    assert not [name for name, value in objects.items() if not inspect.getdoc(value)]
    if package in HOST_PACKAGES:
        return
    rows = rows_module(package)
    exempt, no_example = rows.EXEMPT, getattr(rows, "NO_EXAMPLE", {})
    with_row = {row.name for row in rows.ROWS}
    for name in with_row - functions.keys():  # of a module, by its path
        path, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(path), attribute)), name
    assert exempt.keys() <= functions.keys() - with_row, "exemptions without need"
    assert all((exempt | no_example).values()), "an exemption needs a reason"
    missing = functions.keys() - with_row - exempt.keys()
    assert not missing, f"add a row (or an exemption with a reason) to tests/{package}/rows.py"
    dumb = [n for n, f in functions.items() if ">>>" not in inspect.getdoc(f)]
    assert set(dumb) == set(no_example), "public functions need an example in their docstring"


def test_ids_and_skips_are_sound():
    names = [str(row) for row in ROWS]
    assert len(set(names)) == len(names), "two rows of one name need variants"
    known = {check.__name__ for check in CHECKS}
    for row in ROWS:
        assert row.skip.keys() <= known
        assert all(row.skip.values())


# A healthy row of each kind, then one broken row for every check.


def normal(generator, shape, dtype):
    return jnp.asarray(generator.normal(size=shape), dtype)


def one_array(generator, batch, dtype):
    return (normal(generator, (*batch, 3), dtype),)


def row(function, **changes):
    options = {"name": "toy", "arguments": one_array, "axes": (0,), "extreme": 0.1, "pmap": True}
    return Row(function=function, **(options | changes))


class Average(NamedTuple):
    mean: jax.Array
    count: jax.Array


def state_and_value(generator, batch, dtype):
    return Average(normal(generator, (3,), dtype), jnp.zeros((), jnp.int32)), *one_array(
        generator, (), dtype
    )


def update_average(state, x):
    count = state.count + 1
    return Average(state.mean + (x - state.mean) / count.astype(x.dtype), count)


def batch_mean(x, axis_name=None):
    mean = jnp.sum(x, axis=0) / jnp.asarray(max(len(x), 1), x.dtype)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def key_and_array(generator, batch, dtype):
    return jax.random.key(int(generator.integers(100))), *one_array(generator, batch, dtype)


def add_noise(key, x):
    return x + jax.random.uniform(key, x.shape, x.dtype), jax.random.split(key)[0]


def masked_mean(x, mask):
    return jnp.sum(jnp.where(mask, x, 0), axis=-1) / jnp.asarray(x.shape[-1], x.dtype)


def array_and_mask(generator, batch, dtype):
    return *one_array(generator, batch, dtype), jnp.asarray(generator.random((*batch, 3)) < 0.7)


def scaled(x, *, factor=2.0):
    return x * _checks.number("factor", factor)


def only(x):
    if x.ndim != 2:
        raise ValueError(f"x must have 2 axes, got {x.ndim}")
    return x


HEALTHY = [
    row(jnp.tanh, variant="elementwise", extreme=1.0),
    row(
        update_average,
        variant="state",
        arguments=state_and_value,
        axes=(None, None),
        differentiable=(0, 1),
        state=(0, None),
    ),
    row(batch_mean, variant="reduction", out_axes=None, axis_name=True),
    row(masked_mean, variant="masked", arguments=array_and_mask, axes=(0, 0), mask=(0, 1)),
    row(scaled, variant="scalar", classes=lambda ids: 3 * ids.astype(jnp.float32)),
    row(
        add_noise,
        variant="random",
        arguments=key_and_array,
        axes=(None, 0),
        out_axes=(0, None),
        differentiable=(1,),
        random=True,
        skip={"shard_map_equals_unsharded": "each device draws its own noise"},
    ),
    row(
        only,
        variant="bad",
        bad=(BadInput("a vector", lambda: only(jnp.ones(3)), ValueError, "x", "2 axes", "got 1"),),
    ),
]


@pytest.mark.parametrize(
    ("row", "check"), [param.values for param in pairs(HEALTHY)], ids=[p.id for p in pairs(HEALTHY)]
)
def test_healthy_row_passes(row, check):
    if check.__name__ in row.skip:
        pytest.skip(row.skip[check.__name__])
    check(row)


@jax.custom_batching.custom_vmap
def wrong_batching(x):
    return 2 * x


@wrong_batching.def_vmap
def _(axis_size, in_batched, x):
    return 3 * x, True


@jax.custom_jvp
def wrong_gradient(x):
    return jnp.sin(x)


wrong_gradient.defjvps(lambda tangent, _, x: tangent * jnp.sin(x))


def by_concreteness(traced, concrete):
    return lambda x: (traced if isinstance(x, jax.core.Tracer) else concrete)(x)


def naive_softmax(x):
    return jnp.exp(x) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True)


def replicate(x):
    mesh = battery.data_mesh()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.lax.with_sharding_constraint(2 * x, everywhere)


def half_checked(x, *, factor=2.0):
    if isinstance(factor, float) and factor != factor:
        raise ValueError(f"factor must be a number, got {factor}")
    return x * jnp.asarray(factor, x.dtype)


def masked_afterwards(x, mask):
    return jnp.sum(jnp.where(mask, jnp.exp(x), 0), axis=-1)


def grumble(x):
    warnings.warn("a library should be quiet", UserWarning, stacklevel=2)
    return x


def counts_calls(state, x):
    return Average(state.mean + x, state.count + jnp.float32(1))


def forgetful_state(state, x):
    return Average(x, jnp.int32(1))


def fresh_loop(x):
    return jax.lax.scan(lambda total, entry: (total + entry, None), x[0], x)[0]


def decay_by_path(rate, tables=2):
    """Sees the containers in its paths, and takes a number for one that is known."""

    def update(updates, state, parameters=None):
        def leaf(path, update):
            return update * rate if "value" in str(path[-1]) else update

        return jax.tree.map_with_path(leaf, updates), state

    if rate < 0:
        raise ValueError(f"rate must be positive, got {rate}")
    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


BROKEN = {  # label: (row, what the failure says)
    "jit_equals_eager": (row(by_concreteness(jnp.sin, jnp.cos)), "Not equal to tolerance"),
    "vmap_equals_loop": (row(wrong_batching), "Not equal to tolerance"),
    "scan_equals_loop": (
        row(counts_calls, arguments=state_and_value, axes=(None, 0), state=(0, None)),
        "carry input and carry output must have equal types",
    ),
    "compiles_once": (
        row(
            lambda x, function: function(x),
            arguments=lambda *a: (*one_array(*a), jax.tree_util.Partial(lambda x: x)),
            axes=(0, None),
        ),
        "traced 2 times",
    ),
    "compiles_once: without jit": (row(fresh_loop), "compiled 1 programs again"),
    "keeps_dtype": (row(lambda x: x.astype(jnp.float32)), "float64 in, float32 out"),
    "keeps_dtype: inexact": (
        row(lambda x: (x.astype(jnp.bfloat16) + 100).astype(x.dtype)),
        "Not equal to tolerance",
    ),
    "known_from_shapes": (row(by_concreteness(lambda x: x[:1], lambda x: x)), "from shapes alone"),
    "gradients_match_differences": (row(wrong_gradient), "jvp .* central difference"),
    "finite_at_extremes": (row(naive_softmax), "value at random signs in float32"),
    "finite_at_extremes: gradient": (
        row(lambda x: jnp.where(x == 0, 0, jnp.sqrt(jnp.abs(x)))),
        "gradient at",
    ),
    "shows_nan": (row(jnp.nan_to_num), "NaN in argument 0 gives"),
    "ignores_masked_entries": (
        row(masked_afterwards, arguments=array_and_mask, mask=(0, 1)),
        "Not equal to tolerance",
    ),
    "takes_ids_of_every_dtype": (
        row(jnp.tanh, classes=lambda ids: (3 * ids).astype(jnp.float32)),
        "Not equal to tolerance",
    ),
    "takes_scalars_of_every_kind": (row(half_checked), "factor=nan as three kinds"),
    "takes_scalars_of_every_kind: unchecked": (
        row(lambda x, *, factor=2.0: x * jnp.asarray(factor, x.dtype)),
        "factor=nan passes",
    ),
    "accepts_empty_batch": (row(lambda x: jnp.max(x, axis=0), out_axes=None), "zero-size array"),
    "accepts_empty_batch: result": (
        row(lambda x: jnp.mean(x), out_axes=None),
        "empty batch gives nan",
    ),
    "sharded_equals_unsharded": (row(replicate), "expected an output sharded as"),
    "shard_map_equals_unsharded": (row(lambda x: x - jnp.mean(x)), "Not equal to tolerance"),
    "pmap_equals_loop": (row(grumble), "should be quiet"),
    "donation_is_safe": (
        row(forgetful_state, arguments=state_and_value, axes=(None, 0), state=(0, None)),
        "was copied",
    ),
    "state_keeps_structure": (
        row(counts_calls, arguments=state_and_value, axes=(None, 0), state=(0, None)),
        "became",
    ),
    "refuses_bad_input": (
        row(
            only,
            bad=(BadInput("a matrix", lambda: only(jnp.ones((2, 3))), ValueError, "", "", ""),),
        ),
        "DID NOT RAISE",
    ),
    "takes_any_container": (functools.partial(decay_by_path, rate=0.5), "Not equal to tolerance"),
    "takes_any_container: lists": (lambda tree: tree["layers"]["0"], "list indices must be"),
    "injects_numbers": (functools.partial(decay_by_path, rate=0.5), "boolean conversion"),
    "reads_what_it_closes_over": (lambda box: jax.jit(lambda: box[0]), "Not equal to tolerance"),
    "refuses_bad_input: message": (
        row(
            only,
            bad=(BadInput("a vector", lambda: only(jnp.ones(3)), ValueError, "x", "", "three"),),
        ),
        "lacks the got",
    ),
}


@pytest.mark.parametrize("label", BROKEN)
def test_broken_row_fails(label):
    check = getattr(battery, label.partition(":")[0])
    broken, message = BROKEN[label]
    failures = (AssertionError, TypeError, ValueError, UserWarning, pytest.fail.Exception)
    with pytest.raises(failures, match=message):
        check(broken)


def test_every_check_is_proved():
    proved = {label.partition(":")[0] for label in BROKEN}
    assert proved == {check.__name__ for check in (*CHECKS, *FURTHER_CHECKS)}


def test_numbers_of_a_few_bits_are_widened():
    """JAX promotes them to nothing."""
    for dtype in ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float32"):
        x, wide = _checks.widened("x", jnp.ones(2, dtype))
        assert (x.dtype, wide.dtype) == (dtype, jnp.float32)
    for dtype in ("int4", "uint4", "int8", "uint16", "int32"):
        ids = _checks.integers("ids", jnp.asarray([0, 7], dtype))
        assert ids.dtype == jnp.int32
        assert ids.tolist() == [0, 7]
