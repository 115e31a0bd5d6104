"""Containers of two kinds, any leaf, options that are traced and out of range."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from tests.battery import quick_jit
from zoo.averaging import (
    average_init,
    average_update,
    averaged_parameters,
    lookahead,
    parameter_ema,
    post_hoc_average,
    power_law_ema,
    stochastic_weight_average,
)
from zoo.averaging.power import LARGEST_RELATIVE_STD, power_law_exponent
from zoo.averaging.statistics import recompute_statistics
from zoo.orthogonal import add_orthogonality_penalty

PLAIN = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([3.0, 4.0])}
STEP = jax.tree.map(lambda leaf: -0.5 * leaf, PLAIN)


def as_state(tree):
    return nnx.State({name: nnx.Param(leaf) for name, leaf in tree.items()})


CONTAINERS = {"dict": dict, "FrozenDict": freeze, "State": as_state}
TRANSFORMATIONS = {
    "parameter_ema": parameter_ema(0.5),
    "lookahead": lookahead(sync_period=2, slow_step_size=0.25),
}


def leaves(tree):
    """Arrays by the order of names, whatever holds them."""
    return [np.asarray(jax.tree.leaves(tree[name])[0]) for name in PLAIN]


def run(transformation, parameters=PLAIN, step=STEP, steps=3):
    """What is left of the updates and the average, after some steps."""
    state, update = transformation.init(parameters), quick_jit(transformation.update)
    for _ in range(steps):
        updates, state = update(step, state, parameters)
        moved = [p + u for p, u in zip(leaves(parameters), leaves(updates), strict=True)]
        parameters = jax.tree.unflatten(
            jax.tree.structure(parameters), [moved[i] for i in np.argsort(list(PLAIN))]
        )
    return leaves(updates), leaves(averaged_parameters(state, parameters))


@pytest.mark.parametrize("updates", CONTAINERS)
@pytest.mark.parametrize("parameters", CONTAINERS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_containers_of_parameters_and_updates_may_differ(name, parameters, updates):
    ours = run(TRANSFORMATIONS[name], CONTAINERS[parameters](PLAIN), CONTAINERS[updates](STEP))
    jax.tree.map(np.testing.assert_array_equal, ours, run(TRANSFORMATIONS[name]))


@pytest.mark.parametrize("parameters", CONTAINERS)
@pytest.mark.parametrize("function", [False, True])
def test_masks_are_found_by_path(parameters, function):
    mask = {"kernel": True, "bias": False}
    transformation = parameter_ema(0.5, mask=(lambda _: mask) if function else mask)
    kernel, bias = run(transformation, CONTAINERS[parameters](PLAIN), STEP)[1]
    np.testing.assert_array_equal(kernel, run(parameter_ema(0.5))[1][0])
    np.testing.assert_array_equal(bias, leaves(PLAIN)[1] + 3 * leaves(STEP)[1])
    wrong = parameter_ema(0.5, mask={"kernel": True, "offset": False})
    with pytest.raises(ValueError, match=r"mask must .*none for .'bias'., and .'offset'. too many"):
        wrong.init(CONTAINERS[parameters](PLAIN))


def test_trees_of_one_kind_are_averaged_with_those_of_another():
    state = average_update(average_init(as_state(PLAIN)), freeze(STEP), decay=0.5)
    jax.tree.map(np.testing.assert_array_equal, leaves(state.average), leaves(STEP))
    found = post_hoc_average([PLAIN, as_state(PLAIN)], [1, 2], [0.1, 0.1], relative_std=0.1)
    jax.tree.map(np.testing.assert_allclose, found, PLAIN)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (parameter_ema, {"decay": 1.5}),
        (parameter_ema, {"decay": 0.5, "every": 0}),
        (parameter_ema, {"decay": 0.5, "every": -2}),
        (parameter_ema, {"decay": 0.5, "start_step": -1}),
        (stochastic_weight_average, {"start_step": 0, "every": 0}),
        (power_law_ema, {"relative_std": 0.4}),
        (power_law_ema, {"relative_std": 0.0}),
        (lookahead, {"sync_period": 0}),
        (lookahead, {"sync_period": 1, "slow_step_size": 2.0}),
    ],
)
def test_traced_numbers_out_of_range_give_nan(make, options):
    @quick_jit
    def first(options):
        transformation = make(**options)
        state = transformation.init(jnp.ones(2))
        for _ in range(2):
            updates, state = transformation.update(jnp.ones(2), state, jnp.ones(2))
        return updates if make is lookahead else averaged_parameters(state)

    assert np.isnan(first(options)).all()


def test_a_function_lost_to_injection_is_refused():
    make = optax.inject_hyperparams(parameter_ema)
    transformation = make(decay=0.5, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))
    with pytest.raises(ValueError, match=r"got False for every one; .* unless static_args"):
        transformation.init(PLAIN)
    make = optax.inject_hyperparams(parameter_ema, static_args="mask")
    make(decay=0.5, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)).init(PLAIN)


def test_width_of_the_profile_traced():
    widths = np.array([0.01, 0.1, 0.25, 0.3])
    exponents = quick_jit(jax.vmap(power_law_exponent))(widths)
    by_roots = [np.roots([1, 7, 16 - w**-2.0, 12 - w**-2.0]).real.max() for w in widths]
    np.testing.assert_allclose(exponents, by_roots, rtol=1e-4)
    np.testing.assert_allclose([power_law_exponent(w) for w in widths], by_roots, rtol=1e-12)
    assert np.isfinite(power_law_exponent(np.nextafter(LARGEST_RELATIVE_STD, 0)))


@pytest.mark.parametrize("start_step", range(5))
@pytest.mark.parametrize("every", [1, 2, 3])
def test_an_average_that_has_not_begun_is_the_newest_parameters(start_step, every):
    """And from then on the mean of the terms, by definition."""
    transformation = stochastic_weight_average(start_step=start_step, every=every)
    held = parameter_ema(0.5, debias=False, start_step=start_step, every=every)
    state, other, parameters = transformation.init(0.0), held.init(0.0), jnp.float32(0)
    for step in range(1, 11):
        _, state = transformation.update(jnp.float32(1), state, parameters)
        _, other = held.update(jnp.float32(1), other, parameters)
        parameters += 1
        terms = [n for n in range(start_step + 1, step + 1) if n % every == 0]
        assert float(state.average) == pytest.approx(np.mean(terms or [step]))
        if not terms:  # the parameters at the start are a term, and stay until the next
            assert float(other.average) == min(step, start_step)


FLOATS = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float32")
OTHERS = ("int4", "uint8", "int32", "bool")


@pytest.mark.parametrize("dtype", FLOATS + OTHERS)
def test_leaves_of_every_dtype(dtype):
    values = jnp.ones(2, dtype)
    state = average_init(values, debias=False)
    assert state.weight.dtype == jnp.float32
    for _ in range(3):  # a running sum in the dtype itself would not move
        state = average_update(state, jnp.zeros(2, dtype), decay=0.99)
    np.testing.assert_allclose(state.average, 0.99**3 if dtype in FLOATS else 0, rtol=1e-6)
    assert state.average.dtype == (jnp.float32 if dtype in FLOATS else values.dtype)
    assert averaged_parameters(state, values).dtype == values.dtype
    stored = parameter_ema(0.0)
    _, state = stored.update(values, stored.init(values), values)
    np.testing.assert_array_equal(state.average, (values + values).astype(state.average.dtype))
    slow = lookahead(sync_period=1, slow_step_size=0.5)
    updates, _ = slow.update(values, slow.init(values), values)
    assert updates.dtype == values.dtype
    np.testing.assert_array_equal(updates.astype(float), 0.5 if dtype in FLOATS else 1)
    averages = post_hoc_average([values, values], [1, 2], [0.1, 0.1], relative_std=0.1)
    assert averages.dtype == values.dtype
    np.testing.assert_array_equal(averages, values)


@pytest.mark.parametrize("none", [None, np.zeros((), jax.dtypes.float0)])
def test_keys_are_carried_and_leaves_without_updates_stay(none):
    old, new = ({"key": jax.random.key(seed), "w": jnp.float32(seed)} for seed in (0, 1))
    state = average_update(average_init(old), new, decay=0.5)
    assert state.average["key"] == new["key"]
    assert averaged_parameters(state, old)["key"] == new["key"]
    assert post_hoc_average([old, new], [1, 2], [0.1, 0.1], relative_std=0.1)["key"] == new["key"]
    for transformation in (parameter_ema(0.5), lookahead(sync_period=1)):
        updates = {"key": none, "w": jnp.float32(1)}
        left, state = transformation.update(updates, transformation.init(new), new)
        assert left["key"] is none
        assert averaged_parameters(state)["key"] == new["key"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_statistics_in_any_container_and_dtype(container):
    def batch_statistics(batch):
        statistics = {"mean": batch.mean(axis=0), "var": batch.var(axis=0), "count": jnp.int32(7)}
        return CONTAINERS[container]({k: v.astype(narrow[k]) for k, v in statistics.items()})

    examples = np.random.default_rng(0).normal(3, 2, size=(600, 2))
    batches = [jnp.asarray(x, jnp.float32) for x in np.split(examples, [0, 200, 200, 201])]
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)):
        narrow = {"mean": dtype, "var": dtype, "count": jnp.int32}
        found = recompute_statistics(batch_statistics, batches)
        assert type(found) is type(batch_statistics(batches[1]))
        mean, var, count = (jax.tree.leaves(found[name])[0] for name in narrow)
        assert mean.dtype == var.dtype == dtype
        np.testing.assert_allclose(mean.astype(float), examples.mean(axis=0), rtol=tolerance)
        np.testing.assert_allclose(var.astype(float), examples.var(axis=0), rtol=tolerance)
        assert count == 7


def test_statistics_are_summed_wider_than_they_are_kept():
    """In bfloat16 the mean would stop where a batch's share of it is rounded away."""
    levels = np.linspace(0, 1, 400)
    batches = [jnp.full((1, 1), level, jnp.float32) for level in levels]
    found = recompute_statistics(lambda b: {"mean": b[0].astype(jnp.bfloat16)}, batches)
    assert float(found["mean"][0]) == pytest.approx(0.5, abs=2e-3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Callable:
    """A model that is a tree and can be called, as those of Equinox."""

    kernel: Any
    bias: Any

    def __call__(self, x):
        return x @ self.kernel + self.bias


def test_a_mask_that_can_be_called_is_still_a_tree():
    model, mask = Callable(**PLAIN), Callable(kernel=True, bias=False)
    for transformation in (
        parameter_ema(0.5, mask=mask),
        optax.inject_hyperparams(parameter_ema, static_args="mask")(decay=0.5, mask=mask),
    ):
        _, state = transformation.update(Callable(**STEP), transformation.init(model), model)
        assert isinstance(averaged_parameters(state, model), Callable)
    penalty = add_orthogonality_penalty(1.0, mask=mask)
    updates, _ = penalty.update(model, penalty.init(model), model)
    assert (updates.kernel != model.kernel).any()
    assert updates.bias is model.bias
