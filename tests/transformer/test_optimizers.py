"""Optimisers: numbers of the original classes, exclusions, norms of stacked layers, lazy rows."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from tests.battery import quick_jit
from zoo._paths import path_name
from zoo.transformer import Transformer, TransformerConfig
from zoo.transformer.optimizers import (
    STACKED,
    excluding,
    lazy_rows,
    scale_by_layer_trust_ratio,
    scale_by_uncorrected_adam,
    uncorrected_lamb,
)

START = np.array([[1, -2], [0.5, 3]])


def gradient(t):
    return np.array([[0.1 * (t + 1), -0.2], [0.3, 0.05 * (t + 1)]])


def descend(optimizer, gradients, start=None, name="w_kernel"):
    """The parameter after these gradients, in float64 as a Python loop runs it."""
    with jax.enable_x64(True):
        parameters = {name: jnp.asarray(START if start is None else start, jnp.float64)}
        state = optimizer.init(parameters)

        @quick_jit
        def step(parameters, state, gradient):
            updates, state = optimizer.update({name: gradient}, state, parameters)
            return optax.apply_updates(parameters, updates), state

        for one in gradients:
            parameters, state = step(parameters, state, jnp.asarray(one, jnp.float64))
        return np.asarray(parameters[name])


# The constants of the original are float32, and 1 - float32(0.999) is not 0.001.
BETAS = {"b1": float(np.float32(0.9)), "b2": float(np.float32(0.999))}
adamw = functools.partial(optax.adamw, 0.1, eps=1e-6, **BETAS)
lamb = functools.partial(uncorrected_lamb, weight_decay=0.1, **BETAS)


def linear(*points):
    """A schedule between (update, rate) points, from (0, 0)."""
    pairs = zip(((0, 0.0), *points), points, strict=False)
    parts = [optax.linear_schedule(a[1], b[1], b[0] - a[0]) for a, b in pairs]
    return optax.join_schedules(parts, [update for update, _ in points[:-1]])


ADAM = [0.70768374, -1.70000148, 0.20000103, 2.70768595]
OPTIMIZERS = {
    "Adam": (adamw(weight_decay=0.0), ADAM),
    "Adam, no bias correction": (
        optax.chain(scale_by_uncorrected_adam(**BETAS), optax.scale(-0.1)),
        [-0.20043385, -0.76392400, -0.73612356, 1.79976416],
    ),
    "AdamW": (
        adamw(weight_decay=0.1, mask=excluding()),
        [0.68093795, -1.64358950, 0.18814053, 2.62153792],
    ),
    "AdamW, excluded": (adamw(weight_decay=0.1, mask=excluding(["kernel"])), ADAM),
    "LAMB": (lamb(0.1), [0.49495384, -1.46962225, -0.01120248, 2.46945167]),
    "LAMB, schedule": (
        lamb(linear((2, 0.1), (4, 0.0))),
        [0.73405069, -1.71755421, 0.22621448, 2.72251868],
    ),
    "parameter-wise": (
        optax.chain(adamw(weight_decay=0.0), optax.scale(0.5)),
        [0.85384190, -1.85000086, 0.35000053, 2.85384297],
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_of_the_original(name):
    """Recipe: bert4keras' classes under TensorFlow 2.15, float32, three steps from START."""
    optimizer, expected = OPTIMIZERS[name]
    found = descend(optimizer, [gradient(t) for t in range(3)])
    np.testing.assert_allclose(found.ravel(), expected, atol=5e-7)


def test_accumulation_counts_updates_where_the_original_counts_micro_steps():
    """Row "accum2(LAMB + schedule {2:1, 8:0})" after five micro-steps, which are two updates.

    The original updates at micro-steps 0, 2 and 4, the first time with a gradient of zero, at rate
    zero. Ours makes the two real updates, at the rates that its micro-steps 2 and 4 had.
    """
    by_micro_step = linear((2, 0.1), (8, 0.0))
    optimizer = lamb(lambda count: by_micro_step(2 * (count + 1)))
    found = descend(optimizer, [(gradient(t) + gradient(t + 1)) / 2 for t in (0, 2)])
    expected = [0.70457840, -1.69028056, 0.20278394, 2.68793583]
    np.testing.assert_allclose(found.ravel(), expected, atol=5e-7)


def test_output_bias_of_the_original_only_if_not_excluded():
    """The original decays and adapts it, because its name there is "beta"; the default here not."""
    gradients = [np.array([0.1, -0.2])] * 2
    on_bias = functools.partial(descend, start=[0.0, 0.0], name="output_bias")
    for count, expected in ((1, [-0.31612992, 0.31617990]), (2, [-0.34774366, 0.34779716])):
        found = on_bias(lamb(0.1, exclude=()), gradients[:count])
        np.testing.assert_allclose(found, expected, atol=5e-7)
    plain = optax.chain(scale_by_uncorrected_adam(**BETAS), optax.scale(-0.1))
    np.testing.assert_array_equal(on_bias(lamb(0.1), gradients), on_bias(plain, gradients))


def test_lamb_moves_by_the_rate_times_the_norm_and_not_by_the_size_of_gradients():
    moved, scaled = (
        descend(uncorrected_lamb(0.03, eps=0.0, weight_decay=0.0), [size * gradient(0)]) - START
        for size in (1, 1e4)
    )
    assert np.linalg.norm(moved) == pytest.approx(0.03 * np.linalg.norm(START), rel=1e-9)
    np.testing.assert_allclose(scaled, moved, rtol=1e-9)


def test_the_trust_ratio_is_that_of_optax():
    parameters = {"a": jnp.array([[3.0, -1.0]]), "zero": jnp.zeros(2)}
    updates = {"a": jnp.array([[0.2, 0.1]]), "zero": jnp.ones(2)}
    ours, theirs = (
        ratio.update(updates, ratio.init(parameters), parameters)[0]
        for ratio in (scale_by_layer_trust_ratio(), optax.scale_by_trust_ratio())
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs)


def test_stacked_layers_have_norms_of_their_own():
    stack = np.stack([START, 10 * START[::-1], np.zeros_like(START)])
    gradients = [np.stack([gradient(t), 3 * gradient(t)[::-1], gradient(t)]) for t in range(3)]
    lamb_of_layers = uncorrected_lamb(0.1, stacked=STACKED)
    together = descend(lamb_of_layers, gradients, start=stack, name="layers/kernel")
    for number in range(3):
        alone = descend(uncorrected_lamb(0.1), [g[number] for g in gradients], start=stack[number])
        np.testing.assert_allclose(together[number], alone, rtol=1e-6)
    as_one = descend(uncorrected_lamb(0.1), gradients, stack, name="layers/kernel")
    assert not np.allclose(as_one, together)


def test_exclusions_find_every_bias_and_norm_of_a_transformer():
    config = TransformerConfig(
        vocab_size=5, features=4, num_layers=1, num_heads=2, feedforward_features=4, max_positions=3
    )
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    mask = excluding()(nnx.to_pure_dict(nnx.state(abstract, nnx.Param)))
    kept = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, decays in jax.tree.leaves_with_path(mask)
        if not decays
    }
    assert all(name.endswith("bias") or "norm" in name for name in kept)
    assert {"output_bias", "head_norm/scale", "layers/attention/query_bias"} <= kept
    assert len(kept) == 6 + 2 * 4 + 2  # biases of a layer; two norms there, two beside; the head


KERNEL, NORM = jnp.arange(1.0, 7.0).reshape(3, 2), jnp.ones(2)
LAYER = {"kernel": KERNEL, "bias": NORM, "attention_norm": {"scale": NORM}}


class Module(nnx.Module):
    """The same parameters as an NNX module."""

    def __init__(self):
        self.layers = nnx.List([nnx.Dict(kernel=nnx.Param(KERNEL), bias=nnx.Param(NORM))])
        self.layers[0]["attention_norm"] = nnx.Dict(scale=nnx.Param(NORM))


TREES = {
    "dict": {"layers": {"0": LAYER}},
    "list": {"layers": [LAYER]},
    "FrozenDict": FrozenDict({"layers": {"0": LAYER}}),
    "nnx.State": nnx.state(Module(), nnx.Param),
}


@pytest.mark.parametrize("kind", TREES)
def test_patterns_mean_the_same_on_every_tree(kind):
    """No bias or norm decays, and no list of layers is taken for a stacked axis."""
    tree = TREES[kind]
    for stacked in ((), STACKED):
        optimizer = uncorrected_lamb(0.1, weight_decay=0.5, stacked=stacked)
        gradients = jax.tree.map(jnp.zeros_like, tree)
        updates, _ = optimizer.update(gradients, optimizer.init(tree), tree)
        moved = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(updates)}
        # With no gradient u = λ x, and the ratio makes it 0.1 x, the rows together.
        np.testing.assert_allclose(moved.pop("layers/0/kernel"), -0.1 * KERNEL, rtol=1e-6)
        assert set(moved) == {"layers/0/bias", "layers/0/attention_norm/scale"}
        assert not any(leaf.any() for leaf in moved.values())
    optimizer = uncorrected_lamb(0.1, stacked=STACKED)
    gradients = jax.tree.map(lambda leaf: leaf**2, tree)
    updates, _ = optimizer.update(gradients, optimizer.init(tree), tree)
    lengths = {leaf.shape: jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(updates)}
    assert lengths[3, 2] == pytest.approx(0.1 * float(jnp.linalg.norm(KERNEL)), rel=1e-5)


def test_a_stacked_axis_is_one_only_where_the_caller_says_so():
    start = np.stack([START, 10 * START])
    gradients = [np.stack([gradient(0), gradient(1)])]
    for name in ("layers/kernel", "kernel"):
        plain = descend(uncorrected_lamb(0.1), gradients, start=start, name=name)
        assert np.linalg.norm(plain - start) == pytest.approx(0.1 * np.linalg.norm(start))


def test_norms_of_linen_and_scales_do_not_decay():
    names = ("LayerNorm_0/scale", "ln_1/scale", "Dense_0/bias", "BatchNorm_0/bias")
    tree = flax.traverse_util.unflatten_dict({tuple(n.split("/")): 1.0 for n in names})
    assert not any(jax.tree.leaves(excluding()(tree)))
    assert all(jax.tree.leaves(excluding()({"Dense_0": {"kernel": 1.0}, "rescale": 1.0})))


def test_nan_reaches_every_number_of_its_layer():
    ratio = scale_by_layer_trust_ratio(("stack",))
    x = {"a": jnp.ones(3), "stack": jnp.ones((2, 2))}
    u = {"a": jnp.array([1.0, jnp.nan, 1.0]), "stack": jnp.array([[jnp.nan, 1.0], [1.0, 1.0]])}
    updates, _ = ratio.update(u, ratio.init(x), x)
    assert jnp.isnan(updates["a"]).all()
    np.testing.assert_array_equal(jnp.isnan(updates["stack"]), [[True, True], [False, False]])


@pytest.mark.parametrize("make", [uncorrected_lamb, scale_by_uncorrected_adam])
def test_hyper_parameters_may_be_injected_and_out_of_range_give_nan(make):
    rates = {"learning_rate": 0.1} if make is uncorrected_lamb else {}
    options = {**rates, "b1": 0.8, "b2": jnp.array(0.9), "eps": 1e-3}
    tree = {"kernel": jnp.ones((2, 2))}
    injected = optax.inject_hyperparams(make)(**options)
    plain = make(**{name: float(value) for name, value in options.items()})
    step = quick_jit(lambda tree, state: injected.update(tree, state, tree)[0])
    state = injected.init(tree)
    expected = plain.update(tree, plain.init(tree), tree)[0]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), step(tree, state), expected
    )
    for name in options:
        wrong = state._replace(hyperparams={**state.hyperparams, name: jnp.float32(-1)})
        assert jnp.isnan(step(tree, wrong)["kernel"]).all(), name
        with pytest.raises(ValueError, match=f"{name} must be"):
            make(**options | {name: np.float32(-1)})


def test_lazy_rows_stay_where_they_were():
    tables = {"token_embedding": jnp.ones((3, 2)), "kernel": jnp.ones((3, 2))}
    gradients = [
        jax.tree.map(lambda leaf, t=t: leaf * (jnp.arange(3) == t)[:, None], tables) for t in (0, 1)
    ]
    plain = optax.adamw(0.1, weight_decay=0.5)
    optimizer, moved = lazy_rows(plain), []
    state = plain_state = optimizer.init(tables)
    for one in gradients:
        updates, state = optimizer.update(one, state, tables)
        _, plain_state = plain.update(one, plain_state, tables)
        moved.append(np.asarray(jnp.any(updates["token_embedding"] != 0, axis=-1)))
        assert jnp.all(updates["kernel"] != 0)
    np.testing.assert_array_equal(moved, [[True, False, False], [False, True, False]])
    jax.tree.map(np.testing.assert_array_equal, state, plain_state)  # the moments too


def test_state_keeps_its_structure():
    parameters = {"w": jnp.ones((2, 2), jnp.bfloat16)}
    optimizer = lazy_rows(uncorrected_lamb(linear((2, 0.1))))
    state = optimizer.init(parameters)
    updates, after = optimizer.update(parameters, state, parameters)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    assert updates["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_by_uncorrected_adam(b1=1.0), "b1 must be .* < 1, got 1.0"),
        (lambda: uncorrected_lamb(0.1, b2=-0.1), "b2 must be .* ≥ 0 .*got -0.1"),
        (lambda: uncorrected_lamb(0.1, eps=-1.0), "eps must be .*got -1.0"),
        (lambda: uncorrected_lamb(0.1, weight_decay=-1.0), "weight_decay must be .*got -1.0"),
        (lambda: scale_by_layer_trust_ratio().update({}, None), "needs the parameters, got None"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
