"""The original's networks, by numbers computed with its code, and spectral normalisation."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo import _cpu
from zoo.energy.composition import energies_by_label
from zoo.energy.networks import RESNET_LARGE, MnistEnergy, MultiscaleEnergy, ResNetEnergy
from zoo.energy.spectral import SpectralKernel, spectral_normalize


def wave(shape, number):
    """The recipe of the recorded numbers: 0.1·sin(0.7·i + j) for variable j, entry i."""
    return jnp.asarray(0.1 * np.sin(0.7 * np.arange(np.prod(shape)) + number).reshape(shape))


def fill_kernel(kernel, number):
    kernel.kernel.set_value(wave(kernel.kernel.shape, number))
    kernel.u.set_value(wave(kernel.u.shape, number + 1))


def image(*shape):
    return jnp.asarray((np.sin(0.3 * np.arange(np.prod(shape))) + 1) / 2).reshape(shape)


# Variables of a convolution in the original: kernel, u, bias (unused), gain, input bias, one more.
PER_CONVOLUTION = 6


def without_values(make):
    """Initialisers take long to compile. The keys of dropout get values that are not used."""
    network = nnx.eval_shape(lambda: make(nnx.Rngs(0)))

    def some(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key(0) if is_key else jnp.zeros(leaf.shape, leaf.dtype)

    nnx.update(network, jax.tree.map(some, nnx.state(network, nnx.RngState)))
    return network


def original_mnist():
    network = without_values(lambda rngs: MnistEnergy(8, rngs=rngs))
    for position, kernel in enumerate(network.convolutions):
        fill_kernel(kernel, PER_CONVOLUTION * position)
    dense = PER_CONVOLUTION * 4
    fill_kernel(network.hidden, dense)
    network.hidden_bias.set_value(wave((16,), dense + 2))
    network.output.kernel.set_value(wave((16, 1), dense + 3))
    network.output.bias.set_value(wave((1,), dense + 4))
    return network


def original_resnet():
    network = without_values(lambda rngs: ResNetEnergy(4, rngs=rngs))
    fill_kernel(network.stem, 0)
    number = PER_CONVOLUTION
    for block in network.blocks:
        fill_kernel(block.first, number)
        block.first_bias.set_value(wave(block.first_bias.shape, number + 4))
        number += PER_CONVOLUTION
        fill_kernel(block.second, number)
        block.gain.set_value(wave(block.gain.shape, number + 3))
        block.second_bias.set_value(wave(block.second_bias.shape, number + 4))
        number += PER_CONVOLUTION
        if block.skip is not None:
            fill_kernel(block.skip, number)
            number += PER_CONVOLUTION
    number += 3  # a dense layer that the original allocates and never uses
    network.output.kernel.set_value(wave((8, 1), number))
    network.output.bias.set_value(wave((1,), number + 1))
    return network


@pytest.mark.parametrize(
    ("make", "shape", "energies", "slope", "later"),
    [
        (
            original_mnist,
            (2, 28, 28, 1),
            [0.05489751, 0.05504424],
            0.041484058,
            [0.05490012, 0.05504305],
        ),
        pytest.param(
            original_resnet,
            (2, 32, 32, 3),
            [0.00476845, 0.00479656],
            0.21160537,
            [0.00477088, 0.00480206],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mnist", "resnet"],
)
def test_numbers_of_the_original(make, shape, energies, slope, later, double_precision):
    graph, variables = nnx.split(make())

    @quick_jit
    def measured(variables, x):
        network = nnx.merge(graph, variables)
        network.eval()
        gradient = jax.grad(lambda x: network(x).sum())(x)
        network.train()
        return jnp.abs(gradient).sum(), network(x), network(x)

    found_slope, found, found_later = measured(variables, image(*shape))
    np.testing.assert_allclose(found_slope, slope, rtol=1e-6)
    np.testing.assert_allclose(found, energies, atol=1e-8)
    np.testing.assert_allclose(found_later, later, atol=2e-8)  # u has moved on


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda rngs: MnistEnergy(rngs=rngs), 1_246_017),
        (lambda rngs: ResNetEnergy(rngs=rngs), 5_315_841),
        (lambda rngs: ResNetEnergy(blocks=RESNET_LARGE, rngs=rngs), 18_591_105),
    ],
    ids=["mnist", "resnet", "large"],
)
def test_published_numbers_of_parameters(make, count):
    network = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))]
    assert sum(sizes) == count


def test_estimate_grows_from_below_to_the_norm(double_precision):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)))
    u = jnp.asarray(np.random.default_rng(1).normal(size=4))
    exact = np.linalg.svd(kernel, compute_uv=False)[0]
    estimates, normalize = [], quick_jit(spectral_normalize)
    for _ in range(30):
        normalized, u = normalize(kernel, u)
        estimates.append(float(kernel[0, 0] / normalized[0, 0]))
    assert (np.diff(estimates) > -1e-12).all()
    assert estimates[0] < 0.999 * exact
    assert estimates[-1] == pytest.approx(exact, rel=1e-6)


def test_gradient_is_that_with_both_vectors_held(double_precision):
    generator = np.random.default_rng(0)
    kernel, direction = (jnp.asarray(generator.normal(size=(5, 3))) for _ in range(2))
    u = jnp.asarray(generator.normal(size=3))
    normalized, new_u = quick_jit(spectral_normalize)(kernel, u)
    kernel, direction, u, new_u = map(np.asarray, (kernel, direction, u, new_u))
    v = kernel @ u / np.linalg.norm(kernel @ u)
    sigma = v @ kernel @ new_u
    expected = (direction - np.vdot(direction, normalized) * np.outer(v, new_u)) / sigma
    actual = quick_jit(jax.grad(lambda k: jnp.vdot(spectral_normalize(k, u)[0], direction)))(kernel)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_a_kernel_that_starts_at_zero_may_stay_small():
    small, _ = spectral_normalize(jnp.eye(3) * 1e-3, jnp.ones(3), at_most=True)
    np.testing.assert_allclose(small, jnp.eye(3) * 1e-3, rtol=2e-3)
    large, _ = spectral_normalize(jnp.eye(3) * 5, jnp.ones(3), at_most=True)
    np.testing.assert_allclose(large, jnp.eye(3), rtol=1e-5)
    zeros, u = spectral_normalize(jnp.zeros((3, 3)), jnp.ones(3))
    np.testing.assert_array_equal(zeros, 0.0)
    assert np.isfinite(u).all()


@pytest.mark.parametrize(
    "u", [[0.0, 0.0], [np.nan, 1.0], [1.0, 1.0]], ids=["zeros", "NaN", "mapped to 0"]
)
def test_a_lost_vector_is_found_again(u):
    """After one kernel of zeros, or one that maps u to zero."""
    kernel = jnp.array([[3.0, -3.0], [1.0, -1.0]])
    normalize = quick_jit(spectral_normalize)
    found, after = normalize(kernel, jnp.array(u))
    assert jnp.linalg.norm(found, ord=2) == pytest.approx(1, rel=1e-6)
    zeros, kept = normalize(jnp.zeros((2, 2)), after)
    np.testing.assert_array_equal(zeros, 0)
    np.testing.assert_array_equal(kept, after)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_size_of_the_kernel_is_irrelevant(scale):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    expected, _ = spectral_normalize(kernel, jnp.ones(3))
    actual, _ = spectral_normalize(kernel * scale, jnp.ones(3))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_evaluation_leaves_the_state():
    kernel = SpectralKernel(4, 3, rngs=nnx.Rngs(0))
    before = kernel.u[...]
    kernel.eval()
    frozen = kernel()
    np.testing.assert_array_equal(kernel.u[...], before)
    kernel.train()
    np.testing.assert_array_equal(kernel(), frozen)
    assert not np.array_equal(kernel.u[...], before)


def test_labels_matter_where_there_are_classes():
    options = dict(channels=1, blocks=((1, True),), num_classes=3)
    network = without_values(lambda rngs: ResNetEnergy(4, **options, rngs=rngs))
    block = network.blocks[0]
    for number, kernel in enumerate((network.stem, block.first, block.second)):
        fill_kernel(kernel, number)
    tables = block.first_bias, block.second_bias, block.gain, block.shared_gain
    for number, values in enumerate((*tables, network.output.kernel, network.output.bias)):
        values.set_value(10 * wave(values.shape, number))
    network.eval()
    x = image(3, 8, 8, 1)
    energy = quick_jit(lambda labels: network(x, labels))
    zero, two = (energy(jnp.full(3, label)) for label in (0, 2))
    assert (jnp.abs(zero - two) > 1e-6).all()
    mixed = energy(jnp.array([0, 2, 7]))
    np.testing.assert_allclose(mixed[:2], [zero[0], two[1]], rtol=1e-5)
    assert np.isnan(mixed[2])
    table = quick_jit(lambda x: energies_by_label(network, x, num_classes=3))(x)
    assert table.shape == (3, 3)
    np.testing.assert_allclose(table[:, 0], zero, rtol=1e-5)
    np.testing.assert_allclose(table[:, 2], two, rtol=1e-5)
    with pytest.raises(ValueError, match="num_classes=3, got no labels"):
        network(x)
    with pytest.raises(ValueError, match=r"labels must have shape \[B\].* got \[2\]"):
        network(x, jnp.zeros(2, int))


def test_scales_see_the_image_its_half_and_its_quarter():
    network = without_values(lambda rngs: MultiscaleEnergy(4, channels=1, rngs=rngs))
    assert [part.least_size for part in network.parts] == [16, 8, 4]
    with pytest.raises(ValueError, match=r"at least 16 pixels .* got \[2, 8, 8, 1\]"):
        network(jnp.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="num_scales must be at least 1 and at most 4, got 5"):
        MultiscaleEnergy(2, num_scales=5, rngs=nnx.Rngs(0))

    # The same call with parts that are known: the sum of the image and the largest of its half.
    x = image(2, 16, 16, 1)
    parts = [lambda x, _: x.sum(axis=(1, 2, 3)), lambda x, _: x.max(axis=(1, 2, 3))]
    found = MultiscaleEnergy.__call__(types.SimpleNamespace(parts=parts), x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    half = np.mean(
        [padded[:, i : i + 16 : 2, j : j + 16 : 2] for i in range(3) for j in range(3)], axis=0
    )
    expected = (np.sum(x, axis=(1, 2, 3)) + half.max(axis=(1, 2, 3))) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def small_networks():
    resnet = without_values(
        lambda rngs: ResNetEnergy(2, channels=1, blocks=((1, True),), num_classes=300, rngs=rngs)
    )
    networks = [without_values(lambda rngs: MnistEnergy(2, stem_features=2, rngs=rngs)), resnet]
    for network in networks:
        values = jax.tree.map(lambda leaf: 10 * wave(leaf.shape, 1), nnx.state(network))
        nnx.update(network, values)
        network.eval()
    return networks


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_images_are_those_in_single(small_networks, dtype):
    network, x = small_networks[0], image(2, 28, 28, 1).astype(dtype)
    energy = quick_jit(network.__call__)
    found = energy(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, energy(x.astype(jnp.float32)), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int32"])
def test_images_of_bytes_are_refused(small_networks, dtype):
    labels = jnp.zeros(2, int)
    parts = MultiscaleEnergy.__call__
    for call in (
        small_networks[0],
        lambda x: small_networks[1](x, labels),
        lambda x: parts(types.SimpleNamespace(parts=small_networks[1:]), x, labels),
    ):
        with pytest.raises(
            TypeError, match=rf"floating-point, got {dtype}; scale bytes to \[0, 1\]"
        ):
            jax.eval_shape(call, jnp.zeros((2, 28, 28, 1), dtype))


def test_no_images_have_no_energies(small_networks):
    mnist, resnet = small_networks
    assert quick_jit(mnist.__call__)(jnp.zeros((0, 28, 28, 1))).shape == (0,)
    assert quick_jit(resnet.__call__)(jnp.zeros((0, 8, 8, 1)), jnp.zeros(0, int)).shape == (0,)


def test_labels_of_any_integers(small_networks):
    """K = 300 does not fit into a byte; a label that does is what it says."""
    network, x = small_networks[1], image(2, 8, 8, 1)
    energy = quick_jit(lambda labels: network(x, labels))
    expected = energy(jnp.array([200, 3]))
    np.testing.assert_allclose(energy(jnp.array([200, 3], jnp.uint8)), expected, rtol=1e-6)
    with pytest.raises(TypeError, match="labels must be an array of integers, got float32"):
        network(x, jnp.zeros(2))
    for options in ({"num_classes": 0}, {"channels": 0}, {"features": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1, got 0"):
            ResNetEnergy(**{"features": 2} | options, rngs=nnx.Rngs(0))


# Convolutions.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "lengths", "stride"), [((7, 6), (4, 4), 2), ((5, 4), (3, 2), 1), ((4, 7), (1, 4), 3)]
)
def test_products_are_the_convolution(sizes, lengths, stride):
    """Small whole numbers: every sum is exact, in whatever order."""
    generator = np.random.default_rng(0)

    def whole(*shape):
        return generator.integers(-3, 4, shape).astype(np.float32)

    x, kernels = whole(2, *sizes, 3), whole(2, *lengths, 3, 2)

    def everything(convolve):
        def of_both(x, kernel):
            out = convolve(x, kernel, stride=stride)
            return (out**2).sum(), out

        def steepness(x, kernel):
            slopes, out = jax.grad(of_both, (0, 1), has_aux=True)(x, kernel)
            return sum((slope / 2).sum() for slope in slopes), (slopes, out)

        return jax.vmap(jax.grad(steepness, (0, 1), has_aux=True), (None, 0))(x, kernels)

    found = quick_jit(lambda: everything(_cpu.convolution))()
    expected = quick_jit(lambda: everything(_cpu._library_convolution))()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    half = _cpu.convolution(x.astype(jnp.bfloat16), kernels[0].astype(jnp.bfloat16), stride=stride)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, found[1][1][0].astype(jnp.bfloat16))


@pytest.mark.parametrize(("platform", "whole"), [("cpu", False), ("tpu", True)])
def test_accelerators_have_their_convolution(platform, whole):
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2))
    program = jax.jit(_cpu.convolution).trace(x, kernel).lower(lowering_platforms=(platform,))
    assert ("stablehlo.convolution" in program.as_text()) is whole


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"\[B, 28, 28, 1\]; got \[2, 32, 32, 1\]"):
        without_values(lambda rngs: MnistEnergy(4, rngs=rngs))(jnp.zeros((2, 32, 32, 1)))
    with pytest.raises(ValueError, match=r"u: expected shape \[out\].*got \(2,\) for \(4, 3\)"):
        spectral_normalize(jnp.ones((4, 3)), jnp.ones(2))
    with pytest.raises(TypeError, match="kernel must be a floating-point array, got int32"):
        spectral_normalize(jnp.ones((4, 3), int), jnp.ones(3))
