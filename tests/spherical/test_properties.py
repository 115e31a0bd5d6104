"""Geometry against NumPy in float64: narrow dtypes, lengths and angles to the dtype's end, ties.

A few fixed shapes: nothing is compiled for an example.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.battery import quick_jit
from zoo import spherical

pytestmark = pytest.mark.slow  # many examples each

DTYPES = ("float32", "bfloat16", "float16")
SIZES = (1, 2, 5)  # of vectors


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


@functools.cache
def compiled(name):
    return quick_jit(getattr(spherical, name))


def exact(x):
    return np.asarray(x, np.float64)


length = np.linalg.norm


def error(found, expected):
    return length(exact(found) - expected)


@st.composite
def frames(draw):
    """A dtype, a unit vector x, a unit tangent e and another tangent v there, in float64."""
    size = draw(st.sampled_from((2, 5)))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    basis, _ = np.linalg.qr(random.normal(size=(size, 2)))
    if draw(st.booleans()):  # along the axes
        basis = np.eye(size)[:, random.permutation(size)[:2]]
    x, e = basis.T
    v = random.normal(size=size)
    return draw(st.sampled_from(DTYPES)), x, e, v - (x @ v) * x


# Both ends, near both ends, and between; in float32 1 - cos is lost below 1e-4.
angles = st.one_of(
    st.sampled_from([0.0, 1e-30, 1e-8, 1e-4, np.pi / 2, 2.0, np.pi - 1e-4, np.pi - 1e-7, np.pi]),
    st.floats(0, np.pi),
)


def rounded(dtype, *vectors):
    return [jnp.asarray(v, dtype) for v in vectors]


def opposite(x, e, angle):
    return np.cos(angle) * x + np.sin(angle) * e


@pytest.mark.slow
@hypothesis.given(
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from(SIZES),
    exponent=st.floats(-1, 1),
    seed=st.integers(0, 10_000),
)
def test_normalize(dtype, size, exponent, seed):
    info = jnp.finfo(dtype)
    direction = np.random.default_rng(seed).uniform(-1, 1, size)
    # From the smallest normal number to the largest one.
    low, high = np.log2(float(info.tiny)), np.log2(float(info.max))
    scale = 2.0 ** np.clip((low + high) / 2 + exponent * (high - low) / 2, low, high - 1e-3)
    x = jnp.asarray(direction * scale, dtype)
    x = jnp.where(jnp.abs(x) < info.tiny, 0, x)  # below, XLA has zeros
    found = compiled("normalize")(x)
    assert found.dtype == dtype
    if not x.any():
        assert not found.any()
        return
    assert error(found, exact(x) / length(exact(x))) <= 4 * eps(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, *SIZES])
def test_normalize_of_special_vectors(dtype, size):
    normalize = compiled("normalize")
    assert not normalize(jnp.zeros((2, size), dtype)).any()
    assert normalize(jnp.zeros((0, size), dtype)).shape == (0, size)
    for bad in (jnp.nan, jnp.inf, -jnp.inf) if size else ():
        assert jnp.isnan(normalize(jnp.ones(size, dtype).at[0].set(bad))).all()


@hypothesis.given(frame=frames(), angle=angles)
def test_distance(frame, angle):
    dtype, x, e, _ = frame
    x, y = rounded(dtype, x, opposite(x, e, angle))
    found = compiled("geodesic_distance")(x, y)
    a, b = exact(x), exact(y)
    a, b = a / length(a), b / length(b)
    expected = 2 * np.arctan2(length(a - b), length(a + b))
    # The points are unit vectors to rounding; where they are not, it is the angle of none.
    slack = 1 if dtype == "float32" else 2
    assert abs(float(found) - expected) <= 8 * slack * eps(dtype)
    assert 0 <= found <= np.float32(np.pi)


@pytest.mark.slow
@hypothesis.given(frame=frames(), angle=angles)
def test_exponential_and_logarithm(frame, angle):
    dtype, x, e, _ = frame
    x, v, y = rounded(dtype, x, angle * e, opposite(x, e, angle))
    a, b = exact(x), exact(v)
    size = length(b)
    expected = np.cos(size) * a + (np.sin(size) / size if size else 1) * b
    assert error(compiled("exponential_map")(x, v), expected) <= 8 * eps(dtype)
    back = compiled("logarithmic_map")(x, y)
    reached = compiled("exponential_map")(x.astype("float32"), back.astype("float32"))
    assert float(jnp.linalg.norm(reached - y)) <= 24 * eps(dtype)
    tangent = exact(back) @ exact(x) / max(length(exact(back)), 1e-30)
    assert abs(tangent) <= 8 * eps(dtype) or angle < 1e-3


@hypothesis.given(frame=frames(), angle=angles)
def test_transport(frame, angle):
    dtype, x, e, v = frame
    x, y, v = rounded(dtype, x, opposite(x, e, angle), v)
    moved = compiled("parallel_transport")(x, y, v)
    size = length(exact(v))
    assert abs(length(exact(moved)) - size) <= 16 * eps(dtype) * size + 1e-30
    assert abs(exact(moved) @ exact(y)) <= 32 * eps(dtype) * size + 1e-30
    back = compiled("parallel_transport")(y, x, moved)
    assert error(back, exact(v)) <= 64 * eps(dtype) * size or angle > 3


@hypothesis.given(frame=frames(), scale=st.floats(-30, 30))
def test_retraction_and_projection(frame, scale):
    dtype, x, _, v = frame
    scale = np.clip(scale, -4, 4) if dtype == "float16" else scale
    x, v = rounded(dtype, x, v * 10.0**scale)
    a, b = exact(x), exact(v)
    size = 1 + length(b)
    assert error(compiled("retract")(x, v), (a + b) / length(a + b)) <= 8 * eps(dtype)
    expected = b - (a @ b) * a
    assert error(compiled("tangent_projection")(x, v), expected) <= 8 * eps(dtype) * size


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tangent_projection", 2),
        ("retract", 2),
        ("exponential_map", 2),
        ("logarithmic_map", 2),
        ("geodesic_distance", 2),
        ("parallel_transport", 3),
        ("jose_loss", 4),
    ],
)
def test_shapes_and_nan(name, count):
    function = compiled(name)

    @quick_jit
    @functools.partial(jax.grad, argnums=tuple(range(count)), has_aux=True)
    def slopes(*x):
        out = getattr(spherical, name)(*x)
        return jnp.sum(out), out

    for shape in ((0, 3), (2, 0), (2, 1)):
        gradients, out = slopes(*[jnp.zeros(shape)] * count)
        assert out.shape[0] == shape[0]
        assert all(np.isfinite(gradient).all() for gradient in gradients)
    x = jnp.eye(3)[:2]
    for place in range(count):
        arguments = [x] * count
        arguments[place] = x.at[0, 1].set(jnp.nan)
        found = function(*arguments)
        assert jnp.isnan(found[0]).any()
        assert jnp.isfinite(found[1]).all()
