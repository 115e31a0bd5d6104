"""The gate of AdaLN-Zero, null conditions, and classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.conditional import (
    ClassCondition,
    ClassifierFreeGuidance,
    ConditionalLayerNorm,
    ConditionalRMSNorm,
    conditionalize,
)
from zoo.conditional.guidance import guided
from zoo.conditional.layer_norm import conditional_gate, drop_condition
from zoo.training import functional

KEY = jax.random.key(3)
GENERATOR = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(GENERATOR.normal(size=shape), jnp.float32)


SHAPES = [  # of x, of the condition, of the gate
    ((2, 4), (2, 5), (2, 4)),
    ((2, 3, 3, 4), (2, 5), (2, 1, 1, 4)),
    ((2, 3, 4), (5,), (1, 1, 4)),
    ((2, 3, 4), (2, 3, 5), (2, 3, 4)),
]


@pytest.mark.parametrize(("x_shape", "condition_shape", "gate_shape"), SHAPES)
def test_gate_is_affine_in_the_condition(x_shape, condition_shape, gate_shape):
    shapes = [x_shape, condition_shape, (4,), (5, 4)]
    x, condition, vector, kernel = (normal(*shape) for shape in shapes)
    gate = conditional_gate(x, condition, vector, kernel)
    assert (gate.shape, gate.dtype) == (gate_shape, x.dtype)
    expected = np.asarray(condition, np.float64) @ np.asarray(kernel) + np.asarray(vector)
    np.testing.assert_allclose(gate.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
    assert conditional_gate(x.astype("bfloat16"), condition, vector, kernel).dtype == "bfloat16"


@pytest.mark.parametrize("kind", [ConditionalLayerNorm, ConditionalRMSNorm])
def test_blocks_start_as_the_identity_or_as_pretrained(kind):
    x, condition = normal(2, 3, 4), normal(2, 5)
    plain = kind(4, 5, rngs=nnx.Rngs(0))(x, condition)
    for start in (0.0, 1.0):
        norm = kind(4, 5, gate=start, rngs=nnx.Rngs(0))
        y, gate = norm(x, condition)
        np.testing.assert_array_equal(y, plain)
        np.testing.assert_array_equal(gate, np.full((2, 1, 4), start))
    norm.gate_kernel[...] = jnp.ones((5, 4))
    _, gate = norm(x, condition)
    np.testing.assert_allclose(gate[:, 0, 0], 1 + condition.sum(axis=1), rtol=1e-5)


def test_several_conditions_are_dropped_together_and_may_have_a_null():
    labels, vectors = jnp.arange(64) % 3, 1 + jnp.zeros((64, 1, 2))
    learned = jnp.array([7.0, 8.0])
    found = drop_condition(KEY, (labels, vectors), rate=0.5, null=(9, learned))
    assert [x.dtype for x in found] == [labels.dtype, vectors.dtype]
    kept = np.asarray(found[0] != 9)
    assert 10 < kept.sum() < 54
    np.testing.assert_array_equal(found[0][kept], labels[kept])
    np.testing.assert_array_equal(found[1][:, 0], np.where(kept[:, None], 1, learned))
    np.testing.assert_array_equal(drop_condition(KEY, vectors, rate=0.5)[:, 0, 0], kept)
    gradient = jax.grad(
        lambda null: drop_condition(KEY, vectors, rate=0.5, null=null).sum(), allow_int=True
    )(learned)
    np.testing.assert_array_equal(gradient, (~kept).sum())
    dropped = quick_jit(lambda rate: drop_condition(KEY, labels, rate=rate, null=9))
    assert set(np.unique(dropped(1.5))) <= {-1, 0, 1, 2}
    assert set(np.unique(dropped(1.0))) == {9}


@pytest.mark.parametrize(
    ("condition", "options", "error", "message"),
    [
        (jnp.ones(3), {}, ValueError, r"condition must be \[B, ..., E\], got \(3,\)"),
        (jnp.arange(3), {}, TypeError, "condition must be a floating-point array, got int32"),
        (jnp.ones(()), {"null": 1}, ValueError, r"got \(\), of which"),
        (
            (jnp.ones((2, 1)), jnp.ones((3, 1))),
            {},
            ValueError,
            r"all of them, .*\(2, 1\), \(3, 1\)",
        ),
        (jnp.ones((2, 1)), {"rate": 1.5}, ValueError, "rate must be .* got 1.5"),
    ],
)
def test_conditions_that_cannot_be_dropped(condition, options, error, message):
    with pytest.raises(error, match=message):
        drop_condition(KEY, condition, **({"rate": 0.5} | options))


def test_guided_outputs():
    c, u = normal(2, 5), normal(2, 5)
    for scale in (-1.0, 0.0, 1.0, 7.5):
        expected = np.asarray(u, np.float64) + scale * (np.asarray(c, np.float64) - u)
        np.testing.assert_allclose(guided(c, u, scale=scale), expected, rtol=1e-5, atol=1e-5)
    tree = {"logits": c.at[0, 0].set(-jnp.inf).astype("bfloat16"), "count": jnp.int32(3)}
    found = guided(tree, {"logits": u.astype("bfloat16"), "count": jnp.int32(4)}, scale=2.0)
    assert (found["count"], found["logits"].dtype) == (3, jnp.bfloat16)
    assert np.isneginf(np.asarray(found["logits"], np.float32)).sum() == 1
    gradient = jax.grad(lambda c: jnp.where(c > -9, guided(c, u, scale=2.0), 0).sum())(
        c.at[0, 0].set(-jnp.inf)
    )
    np.testing.assert_array_equal(gradient, 2.0 - 2.0 * (np.arange(10) == 0).reshape(2, 5))
    assert np.isnan(quick_jit(lambda s: guided(c, u, scale=s))(jnp.inf)).all()
    with pytest.raises(ValueError, match="scale must be one finite number, got nan"):
        guided(c, u, scale=float("nan"))
    with pytest.raises(
        ValueError, match=r"both outputs must have one shape, got \(2, 5\) and \(5,"
    ):
        guided(c, u[0], scale=1.0)


class Classes(nnx.Module):
    """Takes labels; its last class stands for none."""

    def __init__(self, rngs):
        self.condition = ClassCondition(4, 3, initializer=jax.random.normal, rngs=rngs)
        self.norm = ConditionalLayerNorm(2, 3, rngs=rngs)
        self.norm.bias_kernel[...] = jnp.arange(6.0).reshape(3, 2)
        self.calls = 0

    def __call__(self, x, labels):
        self.calls += 1
        return self.norm(x, self.condition(labels))


def test_guidance_around_a_module_of_labels():
    model = ClassifierFreeGuidance(
        Classes(nnx.Rngs(0)), rate=0.25, scale=3.0, null=3, keyword="labels", rngs=nnx.Rngs(1)
    )
    x, labels = normal(400, 2), jnp.arange(400) % 3
    plain = model.module
    c, u = plain(x, labels), plain(x, jnp.full(400, 3))
    y = model(x, condition=labels)
    share = np.isclose(y, u).all(axis=1).mean()
    assert abs(share - 0.25) < 3 * np.sqrt(0.25 * 0.75 / 400)
    assert (np.isclose(y, u) | np.isclose(y, c)).all()
    assert np.abs(y - model(x, condition=labels)).max() > 0, "the same samples were dropped again"

    model.eval()
    np.testing.assert_allclose(model(x, condition=labels), u + 3 * (c - u), rtol=1e-5, atol=1e-4)
    before = plain.calls
    np.testing.assert_array_equal(model(x, condition=labels, scale=1), c)
    np.testing.assert_array_equal(model(x, condition=labels, scale=0), u)
    assert plain.calls == before + 2, "one branch is enough"
    traced = nnx.jit(lambda model, scale: model(x, condition=labels, scale=scale))(model, 1.0)
    np.testing.assert_allclose(traced, c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("null", [None, nnx.Param(jnp.full(3, 0.5)), np.full(3, 0.5)])
def test_guidance_in_training_code_and_through_the_context(null):
    def make(rngs):
        plain = nnx.Sequential(nnx.Linear(2, 2, rngs=rngs), nnx.LayerNorm(2, rngs=rngs))
        model = conditionalize(plain, 3, rngs=rngs)
        model.layers[1].bias_kernel[...] = jnp.ones((3, 2))
        return ClassifierFreeGuidance(model, rate=1.0, null=null, keyword=None, rngs=rngs)

    init, merge = functional(make)
    parameters = quick_jit(init)(jax.random.key(0))
    assert ("null" in parameters) == isinstance(null, nnx.Param)
    x, condition = normal(2, 2), jnp.ones((2, 3))

    @quick_jit
    def run(parameters):
        dropped = merge(parameters, jax.random.key(1))(x, condition=condition)
        model = merge(parameters)
        return dropped, *(model(x, condition=condition, scale=s) for s in (0.0, 1.0, 2.0))

    dropped, without, with_it, beyond = run(parameters)
    np.testing.assert_allclose(dropped, without, rtol=1e-6)
    np.testing.assert_allclose(with_it - without, 3.0 if null is None else 1.5, rtol=1e-5)
    np.testing.assert_allclose(beyond, 2 * with_it - without, rtol=1e-5)
