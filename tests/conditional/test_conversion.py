"""A model gets conditional norms: the same model at first, and one that can learn from there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.conditional import ConditionalLayerNorm, conditionalize
from zoo.conditional.modules import conditioned_on
from zoo.training import functional
from zoo.transformer import Transformer, TransformerConfig

SIZES = {"features": 8, "num_layers": 2, "num_heads": 2, "feedforward_features": 8}
CONFIG = TransformerConfig(vocab_size=11, max_positions=8, mask="causal", dropout=0.0, **SIZES)
FEATURES = 5
GENERATOR = np.random.default_rng(0)
IDS = jnp.asarray(GENERATOR.integers(11, size=(3, 6)), jnp.int32)
CONDITION = jnp.asarray(GENERATOR.normal(size=(3, FEATURES)), jnp.float32)


def make(rngs):
    plain = Transformer(CONFIG, rngs=rngs)
    return conditionalize(plain, FEATURES, hidden_features=4, rngs=rngs)


init, merge = functional(make)


@functools.cache
def start():
    return quick_jit(init)(jax.random.key(0))


def drawn_transformer():
    """Drawn with NumPy, which compiles nothing."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0))))
    draws = np.random.default_rng(2)
    return nnx.merge(
        graph, jax.tree.map(lambda x: 0.1 * draws.normal(size=x.shape).astype("f"), state)
    )


@quick_jit
def gradients_and_logits(parameters, condition):
    def loss(parameters, condition):
        logits = merge(parameters)(IDS, condition=condition)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], IDS[:, 1:])
        return losses.mean(), logits

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(parameters, condition)


@pytest.mark.slow
def test_step_0_is_the_pretrained_model_to_the_last_bit():
    plain = drawn_transformer()
    model = conditionalize(plain, FEATURES, hidden_features=4, rngs=nnx.Rngs(8))
    assert isinstance(model.layers.attention_norm, ConditionalLayerNorm)
    expected = nnx.jit(lambda m, ids: m(ids))(plain, IDS)
    found = nnx.jit(lambda m, ids, c: m(ids, condition=c))(model, IDS, CONDITION)
    np.testing.assert_array_equal(found, expected)
    kernels = model.layers.feedforward_norm.hidden_kernel[...]
    assert kernels.shape == (2, FEATURES, 4)
    assert np.abs(kernels[0] - kernels[1]).max() > 0, "each layer draws its own bottleneck"
    kinds = {type(module).__name__ for _, module in nnx.iter_modules(plain)}
    assert "ConditionalLayerNorm" not in kinds, "the model that was given was changed"


@pytest.mark.slow
def test_the_condition_learns_from_the_second_step_on():
    def norms(parameters, condition):
        gradient, to_condition = gradients_and_logits(parameters, condition)[0]
        flat = {jax.tree_util.keystr(p): g for p, g in jax.tree.leaves_with_path(gradient)}
        groups = ("hidden_kernel", "norm']['scale_kernel", "norm']['bias_kernel")
        found = [[float(jnp.abs(g).max()) for n, g in flat.items() if s in n] for s in groups]
        return gradient, [float(jnp.abs(to_condition).max()), *found[0]], found[1] + found[2]

    gradient, condition_and_hidden, kernels = norms(start(), CONDITION)
    assert len(kernels) == 2 * 4  # embedding, two stacks of layers, head
    assert max(condition_and_hidden) == 0
    assert min(kernels) > 0
    after = jax.tree.map(lambda p, g: p - 0.1 * g, start(), gradient)
    assert min(norms(after, CONDITION)[1]) > 0


@pytest.mark.slow
def test_no_sample_sees_the_condition_of_another():
    noise = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda leaf: leaf + 0.1 * noise.normal(size=leaf.shape).astype("f"), start()
    )
    _, before = gradients_and_logits(moved, CONDITION)
    _, after = gradients_and_logits(moved, CONDITION.at[1].add(1.0))
    np.testing.assert_array_equal(before[::2], after[::2])
    assert np.abs(before[1] - after[1]).max() > 1e-3


def test_models_of_flax_get_their_condition_from_the_context():
    rngs = nnx.Rngs(0)
    shared = nnx.LayerNorm(4, epsilon=1e-6, rngs=rngs)
    shared.scale[...], shared.bias[...] = jnp.arange(4.0), jnp.ones(4)
    parts = [nnx.Linear(3, 4, rngs=rngs), shared, nnx.RMSNorm(4, rngs=rngs), shared]
    bare = nnx.LayerNorm(4, use_bias=False, use_scale=False, rngs=rngs)
    plain = nnx.Sequential(*parts, bare)
    model = conditionalize(plain, 2, rngs=rngs)
    assert model.layers[1] is model.layers[3], "a shared norm stays shared"
    x, condition = jnp.asarray([[1.0, 2.0, 4.0], [0.0, 1.0, 0.5]]), jnp.ones((2, 2))

    @nnx.jit
    def run(model, x, condition):
        with conditioned_on(condition):
            return model(x)

    y = run(model, x, condition)
    np.testing.assert_allclose(y, plain(x), atol=1e-5)
    model.layers[4].bias_kernel[...] = jnp.ones((2, 4))
    moved = run(model, x, condition.at[1].set(0.0))
    np.testing.assert_allclose(moved - y, [[2.0] * 4, [0.0] * 4], atol=1e-5)
    with pytest.raises(TypeError, match="condition must be given"):
        model(x)


def test_what_cannot_be_made_conditional_is_refused():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match=r"must hold a LayerNorm or RMSNorm.* got Linear"):
        conditionalize(nnx.Linear(2, 2, rngs=rngs), 3, rngs=rngs)
    images = nnx.Sequential(nnx.LayerNorm(4, reduction_axes=(1, 2, 3), rngs=rngs))
    with pytest.raises(ValueError, match=r"layers/0.* the last axis alone.*\(1, 2, 3\)"):
        conditionalize(images, 3, rngs=rngs)


@pytest.mark.parametrize("kind", [nnx.LayerNorm, nnx.RMSNorm])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_dtypes_and_masks_are_those_of_the_norm_that_was(kind, dtype):
    mask, condition = jnp.arange(4) < 3, jnp.ones((2, FEATURES))
    for param_dtype in (jnp.float32, jnp.bfloat16):
        plain = kind(4, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        model = conditionalize(plain, FEATURES, rngs=nnx.Rngs(0))
        for x in (jnp.asarray([[1.0, 2.0, 4.0, 9.0]] * 2, d) for d in ("float32", "float16")):
            for options in ({}, {"mask": mask}):
                found, expected = model(x, condition, **options), plain(x, **options)
                assert found.dtype == expected.dtype
                np.testing.assert_allclose(found.astype("f"), expected.astype("f"), rtol=2e-2)
