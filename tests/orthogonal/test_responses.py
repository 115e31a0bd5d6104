"""Self-orthogonality: the numbers of its source, its lemma, its traps."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from tests.battery import data_mesh, quick_jit
from zoo.orthogonal import filter_angles, filter_responses, self_orthogonality, sign_correlation

correlate = quick_jit(sign_correlation, static_argnames=("center",))
loss_of = quick_jit(self_orthogonality, static_argnames=("reduction", "center"))
slope_of = quick_jit(jax.grad(self_orthogonality))


@functools.partial(quick_jit, static_argnames=("stop",))
def layer_slopes(w, x, stop=False, **options):
    """Gradients of the loss with respect to the filters and their inputs."""

    def loss(w, x):
        y = filter_responses(x, w, stop_input_gradient=stop)
        return self_orthogonality(y, **options)

    return jax.grad(loss, argnums=(0, 1))(w, x)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def orthonormal(seed, entries, filters):
    return np.linalg.qr(normal(seed, entries, filters))[0].astype(np.float32)


def off_diagonal(matrix):
    return np.asarray(matrix)[~np.eye(len(matrix), dtype=bool)]


# The worked example of the formulas, by finite differences in double precision.
X = (np.arange(12).reshape(4, 3) - 5.5) / 10
W = np.array([[1, 0.5, -0.2], [0, -0.3, 0.4], [0.2, 0.1, 0.6]])
GRADIENT = [
    [-55.153688, 765.864047, 1683.810501],
    [-127.197164, 2387.561068, 959.676987],
    [-199.240640, 4009.258088, 235.543473],
]


def test_golden(double_precision):
    y = X @ W
    v = correlate(y)
    np.testing.assert_allclose(
        [v[0, 1], v[0, 2], v[1, 2]], [0.920792, 0.940409, 0.820416], atol=5e-7
    )
    np.testing.assert_allclose(np.diag(v), 1, atol=1e-14)
    np.testing.assert_allclose(loss_of(y), 2881.239677, atol=5e-7)
    np.testing.assert_allclose(layer_slopes(W, X)[0], GRADIENT, atol=5e-7)


def closed_form(y, x, w, sharpness, mean_weight, square_weight):
    """The gradients with respect to w and x as the source derives them, in numpy."""
    s = np.tanh(sharpness * y)
    norms = np.linalg.norm(s, axis=0)
    u = s / norms
    v = u.T @ u - np.eye(u.shape[1])
    np.fill_diagonal(v, 0)
    a = (2 * mean_weight * v.sum() + 2 * square_weight * v) * (1 - np.eye(len(v)))
    du = 2 * u @ a
    ds = (du - u * (u * du).sum(axis=0)) / norms
    dy = sharpness * (1 - s**2) * ds
    return x.T @ dy, dy @ w.T


@pytest.mark.parametrize(("samples", "filters"), [(9, 4), (3, 8)])  # both sides of the Gram matrix
def test_gradients_are_the_closed_form(samples, filters, double_precision):
    generator = np.random.default_rng(0)
    x, w = generator.normal(size=(samples, 5)), generator.normal(size=(5, filters))
    options = {"sharpness": 0.7, "mean_weight": 3.0, "square_weight": 2.0}
    expected = closed_form(x @ w, x, w, 0.7, 3.0, 2.0)
    both = layer_slopes(w, x, **options)
    for got, wanted in zip(both, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)
    stopped = layer_slopes(w, x, stop=True, **options)
    np.testing.assert_allclose(stopped[0], both[0], rtol=1e-12)
    np.testing.assert_array_equal(stopped[1], 0)


@pytest.mark.parametrize(
    ("layer", "dtype", "shape"),
    [("dense", jnp.float32, (64, 32)), ("conv", jnp.bfloat16, (2, 6, 5, 3))],
)
def test_a_stopped_copy_of_a_layers_responses_is_theirs_and_costs_nothing(layer, dtype, shape):
    options = {"use_bias": False, "dtype": dtype, "rngs": nnx.Rngs(0)}
    if layer == "dense":
        layer = nnx.Linear(32, 48, **options)
    else:
        layer = nnx.Conv(3, 4, (3, 3), strides=2, **options)
    graph, kernels = nnx.split(layer)

    def both(kernels, x):
        layer = nnx.merge(graph, kernels)
        own = filter_responses(x, layer.kernel[...], strides=2, stop_input_gradient=True)
        return layer(x), own

    x = jnp.asarray(normal(0, *shape), dtype)
    program = jax.jit(both).lower(kernels, x)
    assert len(re.findall(r"stablehlo\.(dot_general|convolution)", program.as_text())) == 2
    compiled = program.compile()
    costs = compiled.cost_analysis()["flops"]
    alone = jax.jit(lambda *a: both(*a)[0]).lower(kernels, x).compile().cost_analysis()["flops"]
    assert costs == pytest.approx(alone, rel=0.05)
    np.testing.assert_array_equal(*compiled(kernels, x))


@pytest.mark.parametrize("shape", [(20, 6), (4, 30)])  # both sides of the Gram matrix
def test_the_loss_is_that_of_the_sign_correlation(shape, double_precision):
    y = normal(2, *shape).astype(np.float64)
    v = off_diagonal(correlate(y))
    options = {"mean_weight": 7.0, "square_weight": 3.0}
    np.testing.assert_allclose(
        loss_of(y, **options), 7 * v.sum() ** 2 + 3 * (v**2).sum(), rtol=1e-12
    )
    np.testing.assert_allclose(
        loss_of(y, reduction="mean", **options), 7 * v.mean() ** 2 + 3 * (v**2).mean(), rtol=1e-12
    )
    # Welch: the rank of V is B at most.
    samples, filters = shape
    assert (v**2).sum() >= filters * (filters - samples) / samples


def test_one_filter_no_samples_no_response():
    assert loss_of(normal(0, 5, 1), reduction="mean") == 0
    assert loss_of(np.zeros((0, 3), np.float32)) == 0


def test_a_filter_that_never_responds():
    y = normal(4, 10, 4)
    y[:, 2] = 0
    rest = np.delete(y, 2, axis=1)
    v, gradient = np.asarray(correlate(y)), np.asarray(slope_of(y))
    for part in (v[2], v[:, 2], gradient[:, 2]):
        np.testing.assert_array_equal(part, 0)
    np.testing.assert_allclose(np.delete(np.delete(v, 2, 0), 2, 1), correlate(rest), atol=1e-6)
    np.testing.assert_allclose(loss_of(y), loss_of(rest), rtol=1e-5)
    np.testing.assert_allclose(np.delete(gradient, 2, axis=1), slope_of(rest), rtol=1e-3, atol=1e-3)


def test_float16_sums_do_not_overflow():
    y = normal(5, 128, 512).astype(np.float16)
    loss = loss_of(y, sharpness=10.0)
    assert loss.dtype == jnp.float32
    assert loss > np.finfo(np.float16).max  # where a sum in float16 would have ended
    np.testing.assert_allclose(loss, loss_of(y.astype(np.float32)), rtol=1e-6)
    assert correlate(y).dtype == jnp.float16


def test_traced_sharpness_out_of_range_is_nan_and_nan_stays():
    y = normal(6, 8, 3)
    assert np.isnan(loss_of(y, sharpness=0.0))
    assert np.isnan(loss_of(y, sharpness=-1.0))
    y[0, 0] = np.nan
    assert np.isnan(loss_of(y))


def test_invariances():
    y = normal(7, 50, 6)
    expected = loss_of(y)
    for axis in (0, 1):
        permuted = np.random.default_rng(0).permutation(y, axis=axis)
        np.testing.assert_allclose(loss_of(permuted), expected, rtol=1e-4)
    sign = np.array([1, -1, 1, 1, 1, 1], np.float32)
    flipped, v = y * sign, np.asarray(correlate(y))
    np.testing.assert_allclose(correlate(flipped), v * np.outer(sign, sign), atol=1e-6)
    squares = functools.partial(loss_of, mean_weight=0.0)
    np.testing.assert_allclose(squares(flipped), squares(y), rtol=1e-5)
    # Hard signs know no length; soft ones do.
    longer = y * np.array([[1, 5, 1, 1, 1, 1]], np.float32)
    hard, hard_longer = (correlate(z, sharpness=1e6) for z in (y, longer))
    np.testing.assert_allclose(hard, hard_longer, atol=1e-6)
    assert np.abs(correlate(longer) - v).max() > 1e-3
    doubled = np.concatenate([y, y[:, :1]], axis=1)
    np.testing.assert_allclose(np.asarray(correlate(doubled))[0, -1], 1, atol=1e-6)
    # Leading axes are samples.
    np.testing.assert_allclose(correlate(y.reshape(5, 2, 5, 6)), v, atol=1e-6)


def two_filters(angle, dimension=16):
    w = np.zeros((dimension, 2), np.float32)
    w[0] = 1, math.cos(angle)
    w[1, 1] = math.sin(angle)
    return w


def test_hyperplane_lemma():
    samples = 100_000
    x = normal(9, samples, 16)
    for angle in (0.3, 1.0, math.pi / 2, 2.5):
        exact = 1 - 2 * angle / math.pi
        v = np.asarray(correlate(x @ two_filters(angle), sharpness=1e6))[0, 1]
        # Five standard errors: wrong by chance once in two million.
        assert abs(v - exact) < 5 * math.sqrt((1 - exact**2) / samples)


def test_sharpness_leads_from_the_cosine_to_the_sign():
    y = normal(10, 100_000, 16) @ two_filters(1.0)
    found = [float(correlate(y, sharpness=s)[0, 1]) for s in (0.01, 1.0, 10.0, 100.0, 1e6)]
    # cos 1 at the soft end, 1 - 2/π at the hard one; five standard errors of 0.003.
    np.testing.assert_allclose(found, [0.540, 0.515, 0.394, 0.366, 0.3634], atol=0.015)
    assert found == sorted(found, reverse=True)


def test_trap_correlated_inputs_are_whitened():
    """V of Gaussian inputs is the arcsine law of the outputs' correlations: 0 for WᵀΣW diagonal."""
    generator = np.random.default_rng(11)
    factor = generator.normal(size=(6, 6))
    covariance = factor @ factor.T
    samples = 100_000
    x = (generator.normal(size=(samples, 6)) @ factor.T).astype(np.float32)
    w = generator.normal(size=(6, 4)).astype(np.float32)
    outer = w.T @ covariance @ w
    lengths = np.sqrt(np.diag(outer))
    expected = 2 / np.pi * np.arcsin(np.clip(outer / np.outer(lengths, lengths), -1, 1))
    assert np.abs(correlate(x @ w, sharpness=1e6) - expected).max() < 5 / math.sqrt(samples)
    # Orthogonal filters are not what R asks for here, whitening ones are.
    _, vectors = np.linalg.eigh(covariance)
    whitening = (vectors[:, :4] @ np.linalg.qr(w[:4])[0]).astype(np.float32)
    whitening = np.linalg.solve(factor.T, whitening).astype(np.float32)
    assert np.abs(off_diagonal(correlate(x @ orthonormal(12, 6, 4), sharpness=1e6))).max() > 0.1
    assert np.abs(off_diagonal(correlate(x @ whitening, sharpness=1e6))).max() < 0.02
    assert np.abs(filter_angles(whitening) - 90).max() > 5


def test_trap_noise_floor_of_orthogonal_filters():
    samples, filters = 64, 12
    pairs = filters * (filters - 1)
    w = orthonormal(13, 32, filters)
    y = jnp.asarray(normal(14, 400, samples, 32) @ w)
    v = np.asarray(jax.vmap(functools.partial(sign_correlation, sharpness=1e6))(y))
    off = v * (1 - np.eye(filters))
    squares, sums = (off**2).sum(axis=(1, 2)), off.sum(axis=(1, 2))
    for values, floor in ((squares, pairs / samples), (sums**2, 2 * pairs / samples)):
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - floor) < 5 * error


def test_trap_scale_of_the_literal_sums():
    """The sums dwarf a cross-entropy; their expectations exceed the noise floor of the pairs."""
    samples, filters, repeats = 128, 64, 50
    pairs = filters * (filters - 1)
    x, w = normal(15, repeats, samples, 256), normal(16, repeats, 256, filters)
    y = jnp.einsum("rbd,rdk->rbk", x, w)
    v = quick_jit(jax.vmap(sign_correlation))(y)
    off = np.asarray(v) * (1 - np.eye(filters))
    sums, squares = off.sum(axis=(1, 2)) ** 2, (off**2).sum(axis=(1, 2))
    both = np.asarray(quick_jit(jax.vmap(self_orthogonality))(y))
    np.testing.assert_allclose(both, 100 * sums + squares, rtol=1e-3)
    # Measured over many draws: 106, 39 and 10,700.
    for values, expected in ((sums, 106), (squares, 39), (both, 10_700)):
        assert (
            abs(values.mean() - expected) < 5 * values.std() / math.sqrt(repeats) + 0.02 * expected
        )
    assert squares.mean() > pairs / samples


def test_trap_inputs_that_are_not_centred():
    """Orthonormal filters, |V| by offset = mean/deviation of an input: the responses of filter i
    have mean·Σ_d w_di for their mean, so that E|V| = (E|erf(offset·z/√2)|)² = ((2/π)·atan offset)².
    """
    samples, filters, repeats = 1024, 64, 10
    normals = normal(17, samples, 256)
    w = jnp.stack([orthonormal(100 + r, 256, filters) for r in range(repeats)])

    @functools.partial(quick_jit, static_argnums=1)
    def mean_size(x, center):
        v = jax.lax.map(lambda w: jnp.abs(sign_correlation(x @ w, center=center)), w)
        return (v.sum(axis=(1, 2)) - filters) / (filters * (filters - 1))

    for x, offset, measured in (
        (np.abs(normals), math.sqrt(2 / (math.pi - 2)), 0.341),
        (np.maximum(normals, 0), 1 / math.sqrt(math.pi - 1), 0.144),
    ):
        found = np.asarray(mean_size(x, False))
        error = 5 * found.std() / math.sqrt(repeats) + 0.005
        assert abs(found.mean() - (2 / math.pi * math.atan(offset)) ** 2) < error
        assert abs(measured - found.mean()) < 5 * found.std()  # one draw of the filters
    floor = math.sqrt(2 / (math.pi * samples))
    assert floor / 2 == pytest.approx(0.0126, rel=0.02)  # measured with 4 times the samples
    positive = np.abs(normals)
    for x, center in ((normals, False), (positive - positive.mean(0), False), (positive, True)):
        assert float(mean_size(x, center).mean()) == pytest.approx(floor, rel=0.03)


def test_minimising_it_alone_makes_filters_orthogonal():
    dimension, filters = 16, 8
    optimizer = optax.adam(1e-2)

    @quick_jit
    def train(w, keys):
        def step(carry, key):
            w, state = carry
            x = jax.random.normal(key, (256, dimension))
            gradient = jax.grad(
                lambda w: self_orthogonality(filter_responses(x, w), mean_weight=0.0)
            )(w)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, optimizer.init(w)), keys)[0][0]

    w = jnp.asarray(normal(19, dimension, filters) + 1)
    trained = train(w, jax.random.split(jax.random.key(0), 600))
    before, after = np.asarray(quick_jit(jax.vmap(filter_angles))(jnp.stack([w, trained])))
    assert np.abs(before - 90).mean() > 20
    assert np.abs(after - 90).max() < 5
    assert after.std() < 0.2 * math.degrees(1 / math.sqrt(dimension - 2))  # random filters: 15°


@pytest.mark.parametrize("center", [False, True])
def test_statistics_and_gradients_are_those_of_the_global_batch(center):
    x, w = normal(20, 32, 5) + 0.5, normal(21, 5, 4)

    def loss(w, x, axis_name=None):
        y = filter_responses(x, w)
        return self_orthogonality(y, center=center, axis_name=axis_name)

    value, gradient = quick_jit(jax.value_and_grad(loss))(w, x)
    sharded = jax.shard_map(
        functools.partial(loss, axis_name="data"),
        mesh=data_mesh(),
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )
    found, found_gradient = quick_jit(jax.value_and_grad(sharded))(w, x)
    np.testing.assert_allclose(found, value, rtol=1e-4)
    np.testing.assert_allclose(found_gradient, gradient, rtol=1e-3, atol=1e-2)
    # A mean of the devices' own losses is another number: their batches of 4 have a higher floor.
    own = np.mean([loss_of(part) for part in (x @ w).reshape(8, 4, 4)])
    assert abs(own - value) > 0.1 * value


def test_a_convolution_responds_at_every_position():
    x, kernel = normal(22, 2, 6, 5, 3), normal(23, 3, 3, 3, 4)
    y = filter_responses(x, kernel, padding="VALID")
    assert y.shape == (2, 4, 3, 4)
    patch = x[1, 2:5, 1:4]
    np.testing.assert_allclose(
        np.asarray(y)[1, 2, 1], np.einsum("hwi,hwik->k", patch, kernel), rtol=1e-4
    )
    assert filter_responses(x, kernel, strides=2).shape == (2, 3, 3, 4)
    y = filter_responses(x, kernel, strides=(1, 2), padding=((0, 0), (1, 1)))
    assert y.shape == (2, 4, 3, 4)
