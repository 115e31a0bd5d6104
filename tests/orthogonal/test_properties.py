"""Every function of `zoo.orthogonal` against float64, over sizes, dtypes, magnitudes and ties."""

import functools

import hypothesis.extra.numpy as arrays
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.battery import quick_jit
from zoo.orthogonal import (
    filter_angles,
    filter_responses,
    orthogonality_penalty,
    self_orthogonality,
    sign_correlation,
)
from zoo.orthogonal.angles import random_angle_density

pytestmark = pytest.mark.slow  # many examples each

# Few of each, as every one is compiled.
CASES = (
    ((0, 3), "float32"),
    ((3, 0), "float32"),
    ((1, 1), "float32"),
    ((3, 2), "float32"),
    ((3, 2), "bfloat16"),
    ((2, 7), "float32"),
    ((2, 7), "float16"),
)
KINDS = ("soft", "double_soft", "off_diagonal", "mutual_coherence", "spectral")


@st.composite
def matrices(draw, cases=CASES, largest=8):
    """Small integers, so that there are ties, zeros and parallel columns, or any fractions; each
    column by a power of two of its own.
    """
    shape, dtype = draw(st.sampled_from(cases))
    entries = draw(st.sampled_from([st.integers(-2, 2).map(float), st.floats(-1, 1, width=16)]))
    matrix = draw(arrays.arrays(np.float64, shape, elements=entries))
    largest = min(largest, 8) if dtype == "float16" else largest
    powers = draw(arrays.arrays(np.int64, shape[1:], elements=st.integers(-largest, largest)))
    return jnp.asarray(matrix * 2.0**powers, dtype)


@functools.cache
def compiled(function, **options):
    return quick_jit(functools.partial(function, **options))


def exact(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


def by_definition(w, kind):
    product = w.T @ w
    distance = product - np.eye(w.shape[1])
    if kind == "soft":
        return (distance**2).sum()
    if kind == "double_soft":
        return (distance**2).sum() + ((w @ w.T - np.eye(w.shape[0])) ** 2).sum()
    if kind == "off_diagonal":
        return ((product - np.diag(np.diag(product))) ** 2).sum()
    if kind == "mutual_coherence":
        return np.abs(distance).max(initial=0)
    return np.abs(np.linalg.eigvalsh(distance)).max(initial=0)


@pytest.mark.parametrize("kind", KINDS)
@given(w=matrices())
def test_penalties(kind, w):
    found = compiled(orthogonality_penalty, kind=kind, power_iterations=400)(w)
    expected = by_definition(exact(w), kind)
    assert found.dtype == jnp.float32
    # An entry of G - I is a difference, and a penalty by squares is as exact as its root.
    size = np.abs(exact(w).T @ exact(w)).max(initial=1)
    root = np.sqrt if kind not in ("mutual_coherence", "spectral") else np.asarray
    slack = 1e-3 if kind == "spectral" else 4e-5  # iterations end beside ties
    if kind == "off_diagonal":
        size = np.sqrt(expected)
    np.testing.assert_allclose(root(found), root(expected), rtol=slack, atol=slack * size)


@given(w=matrices(largest=60), sign=st.sampled_from([1, -1]))
def test_angles(w, sign):
    u = exact(w)
    lengths = np.linalg.norm(u, axis=0)
    u = u / np.where(lengths == 0, 1, lengths)
    i, j = np.triu_indices(u.shape[1], 1)
    ends = [np.linalg.norm(u[:, i] - s * u[:, j], axis=0) for s in (1, -1)]
    expected = np.degrees(2 * np.arctan2(*ends))
    expected[(lengths[i] == 0) | (lengths[j] == 0)] = np.nan
    np.testing.assert_allclose(compiled(filter_angles)(sign * w), expected, atol=1e-3)


@given(
    degrees=arrays.arrays(
        np.float32, 6, elements=st.floats(0, 180, width=32) | st.floats(89, 91, width=32)
    ),
    dimension=st.sampled_from([2, 3, 4, 27, 576, 4608, 100_000]),
)
def test_density(degrees, dimension):
    mpmath = pytest.importorskip("mpmath")
    found = compiled(random_angle_density, dimension=dimension)(degrees)
    half = mpmath.mpf(dimension) / 2
    scale = mpmath.gamma(half) / mpmath.gamma(half - 0.5) * mpmath.sqrt(mpmath.pi) / 180
    sines = (mpmath.sin(mpmath.radians(float(angle))) for angle in degrees)
    expected = [float(scale * sine ** (dimension - 2)) for sine in sines]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6 * float(scale))


def signs_of(y, sharpness):
    s = np.tanh(sharpness * y)
    lengths = np.linalg.norm(s, axis=0)
    return s / np.where(lengths > 0, lengths, 1)


correlation = quick_jit(lambda y, sharpness: sign_correlation(y, sharpness=sharpness))


@given(y=matrices(largest=120), sharpness=st.sampled_from([1e-3, 10.0, 1e6]))
def test_sign_correlation(y, sharpness):
    values = exact(y)
    # Responses without a sign, by the docstring; those beside the limit are not promised.
    largest = sharpness * np.abs(values).max(axis=0, initial=0)
    silent, loud = largest < 1e-16, largest > 1e-15
    values = values * loud
    u = signs_of(values, sharpness)
    found = np.asarray(correlation(y, sharpness).astype(jnp.float32))
    clear = loud | silent
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-3}[str(y.dtype)]
    np.testing.assert_allclose(
        found[np.ix_(clear, clear)], (u.T @ u)[np.ix_(clear, clear)], atol=tolerance
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@given(y=matrices())
def test_self_orthogonality(reduction, y):
    u = signs_of(exact(y), 10.0)
    v = u.T @ u
    pairs = v - np.diag(np.diag(v))
    count = 1 if reduction == "sum" else max(v.shape[0] * (v.shape[0] - 1), 1)
    expected = 100 * (pairs.sum() / count) ** 2 + (pairs**2).sum() / count
    found = compiled(self_orthogonality, reduction=reduction)(y)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@given(
    x=matrices(cases=(((4, 3), "bfloat16"), ((4, 3), "float32"), ((0, 3), "float32"))),
    kernel=matrices(cases=(((3, 2), "float32"), ((3, 0), "float32"))),
)
def test_responses(x, kernel):
    found = compiled(filter_responses)(x, kernel)
    assert found.dtype == x.dtype
    exact_kernel = exact(kernel.astype(x.dtype))
    tolerance = {"float32": 1e-6, "bfloat16": 1e-2}[str(x.dtype)]
    size = np.abs(exact(x)) @ np.abs(exact_kernel)
    assert (np.abs(exact(found) - exact(x) @ exact_kernel) <= tolerance * (size + 1e-3)).all()
