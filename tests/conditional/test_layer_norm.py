"""The formula, its derivative, and the modules around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.conditional import (
    ClassCondition,
    ConditionalLayerNorm,
    ConditionalRMSNorm,
    conditional_layer_norm,
    layer_norm,
)
from zoo.conditional.layer_norm import conditional_rms_norm, drop_condition
from zoo.transformer.layers import LayerNorm

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
    y = conditional_layer_norm(**arguments)
    np.testing.assert_allclose(y[0], GOLDEN["conditional"], rtol=0, atol=1e-8)
    zero = jnp.zeros((5, 4))
    plain = arguments | {"scale_kernel": zero, "bias_kernel": zero}
    y = conditional_layer_norm(**plain)
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
    y = conditional_layer_norm(x, (sample, position), scale, bias, *kernels)
    rms = conditional_rms_norm(x, (sample, position), scale, kernels[0])
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


@pytest.mark.parametrize("centred", [True, False])
def test_the_written_derivative_is_that_of_the_equation(centred, double_precision):
    """Both modes, twice: against JAX's own derivative of the same equation."""
    shapes = [(2, 3, 5), (2, 1, 5), (2, 1, 5)]
    arguments = [normal(seed, *shape, dtype="float64") for seed, shape in enumerate(shapes)]
    direction = [normal(seed, *shape, dtype="float64") for seed, shape in enumerate(shapes, 3)]
    weights = normal(6, 2, 3, 5, dtype="float64")

    @functools.partial(quick_jit, static_argnums=0)
    def derivatives(function, arguments, direction):
        def gradient(*arguments):
            y, pull_back = jax.vjp(lambda *a: function(0.1, centred, *a), *arguments)
            return y, pull_back(weights)

        return jax.jvp(gradient, arguments, direction)

    written = derivatives(layer_norm._scale_and_shift, arguments, direction)
    automatic = derivatives(layer_norm._scale_and_shift.fun, arguments, direction)
    for ours, theirs in zip(*map(jax.tree.leaves, (written, automatic)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_gradient_keeps(dtype):
    """Of the size of x: x alone. Then three numbers per position, the gain and the parameters."""
    shapes = [(2, 16, 32), (2, 8), (32,), (32,), (8, 32), (8, 32)]
    arguments = [normal(seed, *shape, dtype=dtype) for seed, shape in enumerate(shapes)]
    _, pull_back = jax.vjp(conditional_layer_norm, *arguments)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if isinstance(leaf, jax.Array)]
    large = [leaf for leaf in kept if leaf.size >= 2 * 16 * 32]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [((2, 16, 32), dtype)]
    small = 3 * 2 * 16 + 2 * 32 + 2 * 2 * 8 + 2 * 8 * 32
    assert sum(leaf.size for leaf in kept) <= 2 * 16 * 32 + small


@pytest.mark.parametrize("value", [3.3, -7.7e16])
def test_constant_rows_give_the_bias(value):
    # 768 equal numbers: their float32 mean is another number for each of these values.
    x = jnp.full((2, 768), value).at[1, 5].add(1)
    bias = normal(0, 768)
    kernels = jnp.zeros((3, 768))

    def first_row(x, scale):
        y = conditional_layer_norm(x, jnp.ones((2, 3)), scale, bias, kernels, kernels)
        return y[0]

    y, pull_back = jax.vjp(first_row, x, jnp.ones(768))
    np.testing.assert_array_equal(y, bias)
    dx, dscale = pull_back(normal(1, 768))
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(dscale, 0)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((3, 5, 8), {"hidden_features": 4, "activation": "gelu"}), ((2, 768), {})],
)
def test_at_first_it_is_the_layer_norm_to_the_last_bit(shape, options):
    x, condition = 3 + normal(0, *shape), normal(1, shape[0], 6)
    plain = LayerNorm(shape[-1], epsilon=1e-12)
    plain.scale[...], plain.bias[...] = normal(2, shape[-1]), normal(3, shape[-1])
    norm = ConditionalLayerNorm(shape[-1], 6, rngs=nnx.Rngs(0), **options)
    norm.scale, norm.bias = plain.scale, plain.bias
    np.testing.assert_array_equal(nnx.jit(norm)(x, condition), nnx.jit(plain)(x))
    # Trained, it still is for the null condition.
    norm.scale_kernel[...] = norm.bias_kernel[...] = jnp.ones(norm.scale_kernel.shape)
    y = nnx.jit(norm)(x, condition.at[1].set(0))
    np.testing.assert_array_equal(y[1], nnx.jit(plain)(x)[1])
    assert np.abs(y[0] - plain(x)[0]).max() > 0.01


def test_half_precision_has_statistics_in_float32():
    x = (1000 + normal(0, 2, 64)).astype("bfloat16")
    shapes = [(2, 3), (64,), (64,), (3, 64), (3, 64)]
    arguments = [normal(seed, *shape) for seed, shape in enumerate(shapes, 1)]
    y = conditional_layer_norm(x, *arguments)
    exact = conditional_layer_norm(x.astype("float32"), *arguments)
    assert y.dtype == "bfloat16"
    np.testing.assert_array_equal(y, exact.astype("bfloat16"))
    tiny = jnp.asarray([[0.0, 1e-4, 2e-4]], "float16")  # epsilon itself is 0 in float16
    y = conditional_layer_norm(
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


def test_conditions_are_dropped_per_sample():
    condition = 1 + jnp.arange(4000.0).reshape(1000, 2, 2)
    kept = np.asarray(drop_condition(jax.random.key(0), condition, rate=0.3)) != 0
    assert (kept == kept[:, :1, :1]).all()
    # Three standard deviations of a share of 1,000.
    assert abs(kept[:, 0, 0].mean() - 0.7) < 3 * np.sqrt(0.3 * 0.7 / 1000)


def test_a_label_that_is_no_class_gives_nan():
    embed = ClassCondition(3, 4, rngs=nnx.Rngs(0))
    rows = embed(jnp.array([0, 2, 3, -1]))
    np.testing.assert_array_equal(np.isnan(rows).all(axis=-1), [False, False, True, True])
    norm = ConditionalLayerNorm(8, 4, rngs=nnx.Rngs(0))
    y = norm(normal(0, 4, 8), rows)
    np.testing.assert_array_equal(np.isnan(y).all(axis=-1), [False, False, True, True])
    with pytest.raises(TypeError, match="labels must be an array of integers, got float32"):
        embed(jnp.ones(2))


@pytest.mark.parametrize(
    ("make", "arguments", "options", "message"),
    [
        (ConditionalLayerNorm, (4, ()), {}, "condition_features must be at least 1, got 0"),
        (ConditionalRMSNorm, (4, 3), {"hidden_features": 0}, "hidden_features .* got 0"),
        (ConditionalLayerNorm, (4, 3), {"activation": "sigmoid"}, "one of 'swish', .*'sigmoid'"),
    ],
)
def test_sizes_are_checked(make, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(("mean", "spread"), [(1e4, 1e-3), (-3e5, 0.1), (0.0, 1.0)])
def test_a_small_spread_around_a_large_mean(mean, spread):
    x = np.float32(mean) + np.float32(spread) * np.asarray(normal(0, 2, 64))
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-12)
    ones, zeros, kernels = jnp.ones(64), jnp.zeros(64), jnp.zeros((3, 64))

    def norm(x):
        return conditional_layer_norm(x, jnp.zeros((2, 3)), ones, zeros, kernels, kernels)

    y, pull_back = jax.vjp(norm, jnp.asarray(x))
    np.testing.assert_allclose(y, centred / deviation, atol=1e-5)
    cotangent = np.asarray(normal(1, 2, 64))
    n = centred / deviation
    expected = cotangent - cotangent.mean(-1, keepdims=True) - n * (cotangent * n).mean(-1)[:, None]
    scale = np.abs(expected / deviation).max()
    np.testing.assert_allclose(pull_back(cotangent)[0], expected / deviation, atol=1e-4 * scale)


def test_masked_entries_do_not_count():
    x = normal(0, 2, 3, 8)
    mask = jnp.arange(8) < 5
    arguments = normal(1, 2, 4), jnp.ones(8), jnp.zeros(8), normal(2, 4, 8), normal(3, 4, 8)
    short = [a if a.shape == (2, 4) else a[..., :5] for a in arguments]
    expected = conditional_layer_norm(x[..., :5], *short)

    for fill in (1.0, jnp.nan):  # what derivatives see of them: test_properties.py
        found = conditional_layer_norm(x.at[..., 5:].set(fill), *arguments, mask=mask)
        np.testing.assert_allclose(found[..., :5], expected, atol=1e-6)
