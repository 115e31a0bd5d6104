"""Optimisers: numbers of the original classes, exclusions, schedules, lazy rows, accumulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.transformer import (
    Transformer,
    TransformerConfig,
    adamw,
    lamb,
    lazy_rows,
    piecewise_linear,
    scale_by_adam,
    scale_by_norm_ratio,
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
ADAM = [0.70768374, -1.70000148, 0.20000103, 2.70768595]
OPTIMIZERS = {
    "Adam": (adamw(0.1, weight_decay=0.0, **BETAS), ADAM),
    "Adam, no bias correction": (
        adamw(0.1, weight_decay=0.0, bias_correction=False, **BETAS),
        [-0.20043385, -0.76392400, -0.73612356, 1.79976416],
    ),
    "AdamW": (
        adamw(0.1, weight_decay=0.1, **BETAS),
        [0.68093795, -1.64358950, 0.18814053, 2.62153792],
    ),
    "AdamW, excluded": (adamw(0.1, weight_decay=0.1, exclude=("kernel",), **BETAS), ADAM),
    "LAMB": (
        lamb(0.1, weight_decay=0.1, **BETAS),
        [0.49495384, -1.46962225, -0.01120248, 2.46945167],
    ),
    "LAMB, schedule": (
        lamb(piecewise_linear({2: 1.0, 4: 0.0}, scale=0.1), weight_decay=0.1, **BETAS),
        [0.73405069, -1.71755421, 0.22621448, 2.72251868],
    ),
    "parameter-wise": (
        optax.chain(adamw(0.1, weight_decay=0.0, **BETAS), optax.scale(0.5)),
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
    """Row «accum2(LAMB + schedule {2:1, 8:0})» after five micro-steps, which are two updates.

    The original updates at micro-steps 0, 2 and 4, the first time with a gradient of zero, at rate
    zero. Ours makes the two real updates, at the rates that its micro-steps 2 and 4 had.
    """
    by_micro_step = piecewise_linear({2: 1.0, 8: 0.0}, scale=0.1)
    optimizer = lamb(lambda count: by_micro_step(2 * (count + 1)), weight_decay=0.1, **BETAS)
    found = descend(optimizer, [(gradient(t) + gradient(t + 1)) / 2 for t in (0, 2)])
    expected = [0.70457840, -1.69028056, 0.20278394, 2.68793583]
    np.testing.assert_allclose(found.ravel(), expected, atol=5e-7)


def test_output_bias_of_the_original_only_if_not_excluded():
    """The original decays and adapts it, because its name there is «beta»; the default here not."""
    gradients = [np.array([0.1, -0.2])] * 2
    original = lamb(0.1, weight_decay=0.1, exclude=(), **BETAS)
    for count, expected in ((1, [-0.31612992, 0.31617990]), (2, [-0.34774366, 0.34779716])):
        found = descend(original, gradients[:count], start=[0.0, 0.0], name="output_bias")
        np.testing.assert_allclose(found, expected, atol=5e-7)
    found = descend(lamb(0.1, weight_decay=0.1), gradients, start=[0.0, 0.0], name="output_bias")
    plain = descend(
        adamw(0.1, weight_decay=0.0, bias_correction=False),
        gradients,
        start=[0.0, 0.0],
        name="output_bias",
    )
    np.testing.assert_array_equal(found, plain)


def test_adam_with_correction_is_that_of_optax():
    gradients = [gradient(t) for t in range(4)]
    theirs = optax.chain(optax.scale_by_adam(eps=1e-6), optax.scale(-0.1))
    ours = optax.chain(scale_by_adam(), optax.scale(-0.1))
    np.testing.assert_allclose(descend(ours, gradients), descend(theirs, gradients), rtol=1e-12)


def test_lamb_moves_by_the_rate_times_the_norm_and_not_by_the_size_of_gradients():
    gradients = [gradient(0)]
    moved = descend(lamb(0.03, epsilon=0.0, weight_decay=0.0), gradients) - START
    assert np.linalg.norm(moved) == pytest.approx(0.03 * np.linalg.norm(START), rel=1e-9)
    scaled = descend(lamb(0.03, epsilon=0.0, weight_decay=0.0), [1e4 * gradients[0]]) - START
    np.testing.assert_allclose(scaled, moved, rtol=1e-9)


def test_adamw_without_gradient_is_decay_alone():
    found = descend(adamw(0.1, weight_decay=0.2), [np.zeros_like(START)] * 2)
    np.testing.assert_allclose(found, START * (1 - 0.1 * 0.2) ** 2, rtol=1e-9)


def test_stacked_layers_have_norms_of_their_own():
    stack = np.stack([START, 10 * START[::-1], np.zeros_like(START)])
    gradients = [np.stack([gradient(t), 3 * gradient(t)[::-1], gradient(t)]) for t in range(3)]
    together = descend(lamb(0.1), gradients, start=stack, name="layers/kernel")
    for number in range(3):
        alone = descend(lamb(0.1), [one[number] for one in gradients], start=stack[number])
        np.testing.assert_allclose(together[number], alone, rtol=1e-6)
    as_one = descend(lamb(0.1, stacked=()), gradients, start=stack, name="layers/kernel")
    assert not np.allclose(as_one, together)


def test_exclusions_find_what_has_no_decay_in_a_transformer():
    config = TransformerConfig(
        vocab_size=5, features=4, num_layers=1, num_heads=2, feedforward_features=4, max_positions=3
    )
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(abstract, nnx.Param))
    parameters = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    optimizer = adamw(1.0, weight_decay=1.0)
    zeros = jax.tree.map(np.zeros_like, parameters)
    updates, _ = quick_jit(optimizer.update)(zeros, optimizer.init(parameters), parameters)
    kept = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, update in jax.tree.leaves_with_path(updates)
        if not np.any(update)
    }
    assert all(name.endswith("bias") or "norm" in name for name in kept)
    assert {"output_bias", "head_norm/scale", "layers/attention/query_bias"} <= kept
    assert len(kept) == 6 + 2 * 4 + 2  # biases of a layer; two norms there, two beside; the head


def test_schedule():
    """Numbers of the original for {1000: 1, 2000: 0.1}; a knot at 0 takes away the warm-up."""
    rate = piecewise_linear({1000: 1.0, 2000: 0.1})
    found = [float(rate(count)) for count in (0, 500, 1000, 1500, 3000)]
    assert found == pytest.approx([0, 0.5, 1, 0.55, 0.1], abs=1e-7)
    assert float(piecewise_linear({0: 1.0}, scale=3.0)(jnp.int32(7))) == 3.0
    published = piecewise_linear({3125: 1.0, 125_000: 0.0}, scale=0.00176)
    assert float(published(3125)) == pytest.approx(0.00176)
    assert float(published(125_001)) == 0


def test_lazy_rows_stay_where_they_were():
    tables = {"token_embedding": jnp.ones((3, 2)), "kernel": jnp.ones((3, 2))}
    gradients = [
        jax.tree.map(lambda leaf, t=t: leaf * (jnp.arange(3) == t)[:, None], tables) for t in (0, 1)
    ]
    optimizer = lazy_rows(adamw(0.1, weight_decay=0.5))
    state, parameters, moved = optimizer.init(tables), tables, []
    for one in gradients:
        updates, state = optimizer.update(one, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        moved.append(np.asarray(jnp.any(updates["token_embedding"] != 0, axis=-1)))
        assert jnp.all(updates["kernel"] != 0)
    np.testing.assert_array_equal(moved, [[True, False, False], [False, True, False]])
    # The moments are those of the plain optimiser.
    plain = adamw(0.1, weight_decay=0.5)
    plain_state = functools.reduce(
        lambda state, one: plain.update(one, state, tables)[1], gradients, plain.init(tables)
    )
    jax.tree.map(np.testing.assert_array_equal, state[0], plain_state[0])


def test_state_keeps_its_structure():
    parameters = {"w": jnp.ones((2, 2), jnp.bfloat16)}
    optimizer = lazy_rows(lamb(piecewise_linear({2: 0.1})))
    state = optimizer.init(parameters)
    updates, after = optimizer.update(parameters, state, parameters)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    assert updates["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adamw(0.1, b1=1.0), r"b1 must be in \[0, 1\), got 1.0"),
        (lambda: lamb(0.1, b2=-0.1), r"b2 must be in \[0, 1\), got -0.1"),
        (lambda: adamw(0.1, epsilon=-1.0), "epsilon must be at least 0, got -1.0"),
        (lambda: lamb(0.1, weight_decay=-1.0), "weight_decay must be at least 0, got -1.0"),
        (lambda: piecewise_linear({}), "at least one, got {}"),
        (lambda: piecewise_linear({-1: 1.0}), "counts of 0 or more"),
        (lambda: piecewise_linear({1: float("nan")}), "finite rates"),
        (lambda: scale_by_norm_ratio().update({}, None), "needs the parameters, got None"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
