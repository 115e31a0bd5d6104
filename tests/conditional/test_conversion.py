"""A model gets conditional norms: the same model at first, and one that can learn from there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo import conditional
from zoo.conditional import ConditionalLayerNorm, conditionalize, conditioned_on
from zoo.training import functional
from zoo.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=11,
    features=16,
    num_layers=2,
    num_heads=2,
    feedforward_features=32,
    max_positions=8,
    mask="causal",
    dropout=0.0,
)
CLASSES, FEATURES = 3, 5
IDS = jnp.asarray(np.random.default_rng(0).integers(11, size=(3, 6)), jnp.int32)
LABELS = jnp.array([0, 2, 1])


class Generator(nnx.Module):
    """A Transformer whose norms see a class."""

    def __init__(self, *, rngs):
        plain = Transformer(CONFIG, rngs=rngs)
        self.model = conditionalize(plain, FEATURES, hidden_features=4, rngs=rngs)
        self.condition = conditional.ClassCondition(CLASSES, FEATURES, rngs=rngs)


init, rebuild = functional(lambda rngs: Generator(rngs=rngs))


@quick_jit
def logits(parameters, ids, condition):
    return rebuild(parameters).model(ids, condition=condition)


def conditions(parameters):
    return rebuild(parameters).condition(LABELS)


@pytest.fixture(scope="module")
def untrained():
    return init(jax.random.key(0))


@pytest.fixture(scope="module")
def moved(untrained):
    """All parameters away from where they start."""
    noise = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * noise.normal(size=leaf.shape).astype("f"), untrained
    )


def test_step_0_is_the_pretrained_model_to_the_last_bit():
    plain = Transformer(CONFIG, rngs=nnx.Rngs(7))
    for options in ({}, {"hidden_features": 4}):
        model = conditionalize(plain, FEATURES, rngs=nnx.Rngs(8), **options)
        assert isinstance(model.layers.attention_norm, ConditionalLayerNorm)
        condition = jnp.asarray(np.random.default_rng(2).normal(size=(3, FEATURES)), jnp.float32)
        expected = nnx.jit(lambda m, ids: m(ids))(plain, IDS)
        found = nnx.jit(lambda m, ids, c: m(ids, condition=c))(model, IDS, condition)
        np.testing.assert_array_equal(found, expected)
    kernels = model.layers.feedforward_norm.hidden_kernel[...]
    assert kernels.shape == (2, FEATURES, 4)
    assert np.abs(kernels[0] - kernels[1]).max() > 0, "each layer draws its own bottleneck"
    kinds = {type(module).__name__ for _, module in nnx.iter_modules(plain)}
    assert "ConditionalLayerNorm" not in kinds, "the model that was given was changed"


def test_the_condition_learns_from_the_second_step_on(untrained):
    @quick_jit
    def gradient(parameters):
        def loss(parameters):
            model = rebuild(parameters).model
            scores = model(IDS[:, :-1], condition=conditions(parameters))
            return optax.softmax_cross_entropy_with_integer_labels(scores, IDS[:, 1:]).mean()

        return jax.grad(loss)(parameters)

    def norms(gradient):
        flat = {jax.tree_util.keystr(p): g for p, g in jax.tree.leaves_with_path(gradient)}
        groups = ("table", "hidden_kernel", "norm']['scale_kernel", "norm']['bias_kernel")
        return [[float(jnp.abs(g).max()) for n, g in flat.items() if s in n] for s in groups]

    first = gradient(untrained)
    table, hidden, scales, biases = norms(first)
    assert len(scales) == len(biases) == 4  # embedding, two stacks of layers, head
    assert max(table) == max(hidden) == 0
    assert min(scales) > 0
    assert min(biases) > 0
    after = jax.tree.map(lambda p, g: p - 0.1 * g, untrained, first)
    assert all(value > 0 for group in norms(gradient(after)) for value in group)


def test_no_sample_sees_the_condition_of_another(moved):
    condition = conditions(moved)
    other = condition.at[1].add(1.0)
    before, after = logits(moved, IDS, condition), logits(moved, IDS, other)
    np.testing.assert_array_equal(before[::2], after[::2])
    assert np.abs(before[1] - after[1]).max() > 1e-3


def test_no_position_sees_a_later_one(moved):
    """By gradients with respect to the embedded tokens, each of which occurs once."""
    condition = conditions(moved)[:1]

    @quick_jit
    def influence(table):
        def scores(table):
            changed = moved | {"model": moved["model"] | {"token_embedding": table}}
            return rebuild(changed).model(jnp.arange(6)[None], condition=condition)[0, :, 10]

        return jnp.abs(jax.jacrev(scores)(table)[:, :6]).max(axis=-1)

    seen = np.asarray(influence(moved["model"]["token_embedding"]))
    np.testing.assert_array_equal(seen > 0, np.tril(np.ones((6, 6), bool)))


def test_models_of_flax_get_their_condition_from_around():
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


def test_what_cannot_be_made_conditional_is_said():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match=r"must hold a LayerNorm or RMSNorm.* got Linear"):
        conditionalize(nnx.Linear(2, 2, rngs=rngs), 3, rngs=rngs)
    images = nnx.Sequential(nnx.LayerNorm(4, reduction_axes=(1, 2, 3), rngs=rngs))
    with pytest.raises(ValueError, match=r"layers/0.* the last axis alone.*\(1, 2, 3\)"):
        conditionalize(images, 3, rngs=rngs)
