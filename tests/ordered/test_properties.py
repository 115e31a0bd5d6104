"""Gates and step against NumPy in float64: every dtype, size, magnitude, tie, infinity and NaN.

A few fixed shapes: nothing is compiled for an example.
"""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from tests.battery import quick_jit
from zoo.ordered import OnLstmCarry, OnLstmParams, cumax, log_cumax, on_lstm, on_lstm_step
from zoo.ordered.ordered_lstm import master_gates

pytestmark = pytest.mark.slow  # many examples each

DTYPES = ("float32", "bfloat16", "float16")
SIZES = (1, 4)
MASTER = ("complement", "reverse")
STEPS = [("complement", dtype) for dtype in DTYPES] + [("reverse", "bfloat16"), ("none", "float32")]


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def all_gates(x):
    """Both functions in both directions, as one program."""
    return [(f(x), f(x, reverse=True)) for f in (cumax, log_cumax)]


gates, slopes = quick_jit(all_gates), quick_jit(jax.jacobian(all_gates))
both_master_gates = quick_jit(lambda x: [master_gates(x, master_input=k) for k in MASTER])


@functools.partial(quick_jit, static_argnames="kind")
def step_and_loop(params, carry, x, kind):
    options = {"chunk_size": 2, "master_input": kind}
    after, depths = on_lstm_step(params, carry, x, **options)
    output = on_lstm(params, x[None], carry, **options)
    return (*after, *depths), (output.hidden[0], output.carry.cell, *(d[0] for d in output.depths))


@st.composite
def logits(draw, sizes=SIZES):
    """Two rows: any magnitude up to the dtype's end, ties, -inf, seldom +inf or NaN."""
    dtype, size = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(sizes))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    top = float(jnp.finfo(dtype).max)
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e3, top]))
    x = np.clip(scale * random.normal(size=(2, size)), -top, top)
    x = np.where(random.random(x.shape) < 0.3, x[0, 0], x)
    x = np.where(random.random(x.shape) < draw(st.sampled_from([0, 0, 0.5, 1])), -np.inf, x)
    bad = draw(st.sampled_from([None, None, None, np.inf, np.nan]))
    if bad is not None:
        x[0, random.integers(size)] = bad
    return jnp.asarray(x, dtype)


def expected(x, reverse):
    """cumax and its logarithm, by the definition in float64; NaN where nothing is allowed."""
    x = np.asarray(x, np.float64)
    x = x[..., ::-1] if reverse else x
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = x - x.max(axis=-1, keepdims=True)
        total = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        tops = np.maximum.accumulate(shifted, axis=-1)
        parts = [
            np.log(np.exp(shifted[..., : k + 1] - tops[..., k : k + 1]).sum(axis=-1))
            for k in range(x.shape[-1])
        ]
        sums = tops + np.stack(parts, axis=-1)
        logs = np.where(tops == -np.inf, -np.inf, sums) - total
        logs = np.where(np.isfinite(x.max(axis=-1, keepdims=True)), logs, np.nan)
        logs = np.where(np.arange(x.shape[-1]) == x.shape[-1] - 1, logs * 0, logs)  # exactly 0
    return (logs[..., ::-1] if reverse else logs), x


@given(logits())
def test_cumax_and_its_logarithm(x):
    for reverse, found, found_logs in zip((False, True), *gates(x), strict=True):
        logs, wide = expected(x, reverse)
        assert found.dtype == found_logs.dtype == x.dtype
        tolerance = eps(x.dtype) + 8 * eps("float32")
        np.testing.assert_allclose(np.asarray(found, float), np.exp(logs), atol=tolerance)
        # A logarithm is a difference of two numbers that are as large as the logits.
        size = np.max(np.abs(np.where(np.isfinite(wide), wide, 0)), axis=-1, keepdims=True)
        found_logs, known = np.asarray(found_logs, float), ~np.isnan(logs)
        # Beside +inf the limit of some is known.
        assert (np.isnan(found_logs) | (found_logs == -np.inf))[~known].all()
        beyond = (logs < float(jnp.finfo(x.dtype).min)) & (found_logs == -np.inf)
        with np.errstate(invalid="ignore"):
            error = np.abs(found_logs - logs)
            close = error <= eps(x.dtype) * np.abs(logs) + 8 * eps("float32") * (size + 1)
        assert (beyond | (found_logs == logs) | close)[known].all()


@given(logits())
def test_excluded_levels_reach_no_derivative(x):
    for row in np.asarray(x, np.float32):
        if row.max() > -np.inf and row.max() < np.inf:
            for slope in jax.tree.leaves(slopes(row)):
                assert np.isfinite(slope).all()
                assert not slope[:, row == -np.inf].any()


@given(logits(sizes=(2, 6)))
def test_master_gates(x):
    input_, forget = np.split(np.asarray(x, float), 2, axis=-1)
    for kind, found in zip(MASTER, both_master_gates(x), strict=True):
        rising = np.exp(expected(forget, False)[0])
        falling = np.exp(expected(input_, kind == "reverse")[0])
        falling = falling if kind == "reverse" else 1 - falling
        for ours, theirs in zip(found, (rising, falling), strict=True):
            assert ours.dtype == x.dtype
            tolerance = 2 * eps(x.dtype) + 8 * eps("float32")
            np.testing.assert_allclose(np.asarray(ours, float), theirs, atol=tolerance)


def step_in_numpy(params, carry, x, kind):
    """The equations of the module in float64, unit by unit."""
    kernel, recurrent, bias, hidden, cell, x = (
        np.asarray(a, np.float64) for a in (*params, *carry, x)
    )
    units, (levels, chunk) = hidden.shape[-1], cell.shape[1:]
    with np.errstate(over="ignore"):
        z = x @ kernel + hidden @ recurrent + bias
        first, (o, c, i, f) = z[:, : -4 * units], np.split(z[:, -4 * units :], 4, axis=-1)
        sigmoid = lambda z: np.exp(-np.logaddexp(0, -z))  # noqa: E731
        o, i, f, c = sigmoid(o), sigmoid(i), sigmoid(f), np.tanh(c)
    depths = 1 - f.mean(axis=-1), i.mean(axis=-1)
    if kind != "none":
        master_in = np.exp(expected(first[:, :levels], kind == "reverse")[0])
        master_in = master_in if kind == "reverse" else 1 - master_in
        keep = np.exp(expected(first[:, levels:], False)[0])
        depths = 1 - keep.mean(axis=-1), master_in.mean(axis=-1)
        keep, write = np.repeat(keep, chunk, axis=-1), np.repeat(master_in, chunk, axis=-1)
        f, i = f * keep * write + keep * (1 - write), i * keep * write + write * (1 - keep)
    new = f * cell.reshape(hidden.shape) + i * c
    return o * np.tanh(new), new.reshape(cell.shape), *depths


@pytest.mark.slow
@given(st.sampled_from(STEPS), st.sampled_from([1e-3, 1.0, 1e2, 1e4]), st.integers(0, 10_000))
def test_the_step_and_the_loop(case, scale, seed):
    (kind, dtype), random = case, np.random.default_rng(seed)
    columns = 16 if kind == "none" else 20
    shapes = ((3, columns), (4, columns), (columns,), (2, 4), (2, 2, 2))
    *params, hidden, cell = (jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)
    x = jnp.asarray(scale * random.normal(size=(2, 3)), dtype)
    params, carry = OnLstmParams(*params), OnLstmCarry(jnp.tanh(hidden), cell)
    theirs = step_in_numpy(params, carry, x, kind)
    # Rounding of a logit moves a gate by a quarter of it at most, and none far from its turn.
    tolerance = 8 * eps(dtype) + 64 * eps("float32") * min(scale, 20)
    for ours in step_and_loop(params, carry, x, kind):
        assert [a.dtype for a in ours[:2]] == [dtype, dtype]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(np.asarray(a, float), b, atol=tolerance, rtol=8 * eps(dtype))


def test_no_row_and_no_level():
    params = OnLstmParams(jnp.ones((3, 20)), jnp.ones((4, 20)), jnp.ones(20))
    carry = OnLstmCarry(jnp.zeros((0, 4)), jnp.zeros((0, 2, 2)))
    for shapes in step_and_loop(params, carry, jnp.zeros((0, 3)), "complement"):
        assert [a.shape for a in shapes] == [(0, 4), (0, 2, 2), (0,), (0,)]
    assert [a.shape for pair in gates(jnp.zeros((2, 0))) for a in pair] == [(2, 0)] * 4
