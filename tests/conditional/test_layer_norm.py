"""The formula, its derivative, and the modules around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import conditional
from zoo.conditional import ConditionalLayerNorm, ConditionalRMSNorm
from zoo.transformer import LayerNorm

# Numbers of the original code (bert4keras) for x_i = sin i [1, 3, 4], scale 1 + j/10, bias j/20,
# c = cos(0..4), kernels sin(0.3 i)/10 and cos(0.3 i)/10, bottleneck sin(0.5 i)/5 [5, 2], swish.
GOLDEN = {
    "plain": [
        [-1.164377152, 1.047899958, 1.388990780, -0.912052696],
        [-0.677396107, -1.051804313, 0.206114924, 2.217789475],
        [1.312493585, 0.680677164, -0.681183099, -1.455305710],
    ],
    "conditional": [
        [-1.083787006, 1.408272602, 1.765299900, -1.085695699],
        [-0.532927705, -1.062249458, 0.345843549, 2.680483320],
        [1.717979711, 0.976196511, -0.718918071, -1.739398982],
    ],
    "bottleneck": [
        [-1.174775085, 1.073507323, 1.412304975, -0.937069854],
        [-0.678441190, -1.067969293, 0.207144655, 2.244079780],
        [1.349665886, 0.698978855, -0.696869375, -1.489228408],
    ],
}


def wave(function, step, size, *shape):
    return jnp.asarray(size * function(step * np.arange(np.prod(shape))).reshape(shape))


def example(rows=5):
    """The arguments of the numbers above, in the float type of the moment."""
    return {
        "x": wave(np.sin, 1.0, 1.0, 1, 3, 4),
        "condition": wave(np.cos, 1.0, 1.0, 1, 5),
        "scale": 1 + 0.1 * jnp.arange(4.0),
        "bias": 0.05 * jnp.arange(4.0),
        "scale_kernel": wave(np.sin, 0.3, 0.1, rows, 4),
        "bias_kernel": wave(np.cos, 0.3, 0.1, rows, 4),
    }


def normal(seed, *shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def test_numbers_of_the_original_code(double_precision):
    arguments = example()
    y = conditional.conditional_layer_norm(**arguments)
    np.testing.assert_allclose(y[0], GOLDEN["conditional"], rtol=0, atol=1e-8)
    zero = jnp.zeros((5, 4))
    plain = arguments | {"scale_kernel": zero, "bias_kernel": zero}
    y = conditional.conditional_layer_norm(**plain)
    np.testing.assert_allclose(y[0], GOLDEN["plain"], rtol=0, atol=1e-8)
    arguments = example(rows=2)
    norm = ConditionalLayerNorm(4, 5, hidden_features=2, rngs=nnx.Rngs(0))
    norm.hidden_kernel[...] = wave(np.sin, 0.5, 0.2, 5, 2)
    for name in ("scale", "bias", "scale_kernel", "bias_kernel"):
        getattr(norm, name)[...] = arguments[name]
    y = norm(arguments["x"], arguments["condition"])
    np.testing.assert_allclose(y[0], GOLDEN["bottleneck"], rtol=0, atol=1e-8)


def test_conditions_of_samples_and_positions_add_up(double_precision):
    shapes = [(2, 3, 4), (4,), (4,), (2, 5 + 2, 4), (2, 5), (2, 3, 2)]
    draws = [normal(seed, *shape, dtype="float64") for seed, shape in enumerate(shapes)]
    x, scale, bias, kernels, sample, position = draws
    y = conditional.conditional_layer_norm(x, (sample, position), scale, bias, *kernels)
    rms = conditional.conditional_rms_norm(x, (sample, position), scale, kernels[0])
    for b in range(2):
        for t in range(3):
            row, c = np.asarray(x[b, t]), np.concatenate([sample[b], position[b, t]])
            gain, shift = scale + c @ kernels[0], bias + c @ kernels[1]
            expected = gain * (row - row.mean()) / np.sqrt(row.var() + 1e-12) + shift
            np.testing.assert_allclose(y[b, t], expected, rtol=1e-12)
            expected = gain * row / np.sqrt((row**2).mean() + 1e-6)
            np.testing.assert_allclose(rms[b, t], expected, rtol=1e-12)
    norm = ConditionalLayerNorm(4, (5, 2), rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = scale, bias
    norm.scale_kernel[...], norm.bias_kernel[...] = kernels
    np.testing.assert_array_equal(norm(x, (sample, position)), y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_gradient_keeps(dtype):
    """Of the size of x: x alone. Then two numbers a row, the gain, parameters and condition."""
    arguments = [normal(i, *shape, dtype=dtype) for i, shape in enumerate([(2, 16, 32), (2, 8)])]
    arguments += [
        normal(i, *shape, dtype=dtype) for i, shape in enumerate([(32,)] * 2 + [(8, 32)] * 2)
    ]
    _, pull_back = jax.vjp(conditional.conditional_layer_norm, *arguments)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if isinstance(leaf, jax.Array)]
    large = [leaf for leaf in kept if leaf.size >= 2 * 16 * 32]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [((2, 16, 32), dtype)]
    small = 2 * 2 * 16 + 2 * 32 + 2 * 2 * 8 + 2 * 8 * 32
    assert sum(leaf.size for leaf in kept) <= 2 * 16 * 32 + small


@pytest.mark.parametrize("value", [0.1, 3.3, 1e5, -7.7e16])
def test_constant_rows_give_the_bias(value):
    # 768 equal numbers: their float32 mean is another number for each of these values.
    x = jnp.full((2, 768), value).at[1, 5].add(1)
    bias = normal(0, 768)
    kernels = jnp.zeros((3, 768))

    def first_row(x, scale):
        y = conditional.conditional_layer_norm(x, jnp.ones((2, 3)), scale, bias, kernels, kernels)
        return y[0]

    y, pull_back = jax.vjp(first_row, x, jnp.ones(768))
    np.testing.assert_array_equal(y, bias)
    dx, dscale = pull_back(normal(1, 768))
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(dscale, 0)


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 768)])
def test_untrained_it_is_the_layer_norm_to_the_last_bit(shape):
    x, condition = 3 + normal(0, *shape), normal(1, shape[0], 6)
    plain = LayerNorm(shape[-1], epsilon=1e-12)
    plain.scale[...], plain.bias[...] = normal(2, shape[-1]), normal(3, shape[-1])
    for options in ({}, {"hidden_features": 4, "activation": "gelu"}):
        norm = ConditionalLayerNorm(shape[-1], 6, rngs=nnx.Rngs(0), **options)
        norm.scale, norm.bias = plain.scale, plain.bias
        y = nnx.jit(plain)(x)
        for given in (condition, 0 * condition):
            np.testing.assert_array_equal(nnx.jit(norm)(x, given), y)


def test_zeros_are_no_condition_once_it_has_learned():
    x, plain = normal(0, 2, 8), LayerNorm(8)
    for options in ({}, {"hidden_features": 4, "activation": "tanh"}):
        norm = ConditionalLayerNorm(8, 3, rngs=nnx.Rngs(0), **options)
        norm.scale_kernel[...] = norm.bias_kernel[...] = jnp.ones(norm.scale_kernel.shape)
        y = norm(x, jnp.zeros((2, 3)).at[0].set(1.0))
        np.testing.assert_allclose(y[1], plain(x)[1], atol=1e-6)
        assert np.abs(y[0] - plain(x)[0]).max() > 0.1


def test_half_precision_has_statistics_in_float32():
    x = (1000 + normal(0, 2, 64)).astype("bfloat16")
    arguments = [
        normal(1, 2, 3),
        1 + normal(2, 64),
        normal(3, 64),
        normal(4, 3, 64),
        normal(5, 3, 64),
    ]
    y = conditional.conditional_layer_norm(x, *arguments)
    exact = conditional.conditional_layer_norm(x.astype("float32"), *arguments)
    assert y.dtype == "bfloat16"
    np.testing.assert_array_equal(y, exact.astype("bfloat16"))
    tiny = jnp.asarray([[0.0, 1e-4, 2e-4]], "float16")  # epsilon itself is 0 in float16
    y = conditional.conditional_layer_norm(
        tiny, jnp.zeros((1, 1)), *jnp.array([[1.0] * 3, [0.0] * 3]), *jnp.zeros((2, 1, 3))
    )
    np.testing.assert_allclose(y.astype("float32"), [[-1.2247, 0, 1.2247]], atol=2e-3)


def test_from_linen():
    linen = nnx.bridge.to_linen(ConditionalLayerNorm, 4, 3, hidden_features=2)
    x, condition = normal(0, 2, 5, 4), normal(1, 2, 3)
    variables = linen.init(jax.random.key(0), x, condition)
    y = linen.apply(variables, x, condition)
    np.testing.assert_array_equal(y, LayerNorm(4)(x))
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {
        "scale": (4,),
        "bias": (4,),
        "scale_kernel": (2, 4),
        "bias_kernel": (2, 4),
        "hidden_kernel": (3, 2),
    }


def test_dropped_conditions_are_whole_samples():
    condition = 1 + jnp.arange(4000.0).reshape(1000, 2, 2)
    kept = np.asarray(conditional.drop_condition(jax.random.key(0), condition, rate=0.3)) != 0
    assert (kept == kept[:, :1, :1]).all()
    # Three standard deviations of a share of 1,000.
    assert abs(kept[:, 0, 0].mean() - 0.7) < 3 * np.sqrt(0.3 * 0.7 / 1000)


def test_a_label_that_is_no_class_gives_nan():
    embed = conditional.ClassCondition(3, 4, rngs=nnx.Rngs(0))
    rows = embed(jnp.array([0, 2, 3, -1]))
    np.testing.assert_array_equal(np.isnan(rows).all(axis=-1), [False, False, True, True])
    norm = ConditionalLayerNorm(8, 4, rngs=nnx.Rngs(0))
    y = norm(normal(0, 4, 8), rows)
    np.testing.assert_array_equal(np.isnan(y).all(axis=-1), [False, False, True, True])
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        embed(jnp.ones(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConditionalLayerNorm(0, 3, rngs=nnx.Rngs(0)), "num_features must be at least 1"),
        (lambda: ConditionalLayerNorm(4, (), rngs=nnx.Rngs(0)), "condition_features .* got 0"),
        (
            lambda: ConditionalRMSNorm(4, 3, hidden_features=0, rngs=nnx.Rngs(0)),
            "hidden_features must be at least 1, got 0",
        ),
        (
            lambda: ConditionalLayerNorm(4, 3, activation="sigmoid", rngs=nnx.Rngs(0)),
            "activation must be one of .*'swish'.* got 'sigmoid'",
        ),
        (lambda: ConditionalRMSNorm(4, 3, epsilon=0.0, rngs=nnx.Rngs(0)), "epsilon .* got 0"),
        (
            functools.partial(conditional.ClassCondition, 0, 3, rngs=nnx.Rngs(0)),
            "num_classes must be at least 1, got 0",
        ),
    ],
)
def test_sizes_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_condition_is_said():
    norm = ConditionalLayerNorm(4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"condition must be given.* got None"):
        norm(jnp.ones((2, 4)))
    with conditional.conditioned_on(jnp.ones((2, 3))):
        assert norm(jnp.ones((2, 4))).shape == (2, 4)
    with pytest.raises(TypeError, match="condition must be given"):
        norm(jnp.ones((2, 4)))
