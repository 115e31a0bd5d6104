"""Streaming F1: the bias of batches reproduced, its absence here, and the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.battery import quick_jit
from zoo.smooth import smooth_f1
from zoo.smooth.streaming import streaming_f1, streaming_f1_init

# The table of the source: mean F1 over batches of a scorer with 5 % of positives and F1 .3507.
BIAS = {8: 0.187, 16: 0.252, 32: 0.297, 64: 0.324, 256: 0.344, 1024: 0.349}
F1_OF_ALL = 0.3507


@functools.cache
def scorer(samples=1 << 17):
    """Logits and labels of a scorer with nearly that F1; the source does not say which it used."""
    generator = np.random.default_rng(0)
    labels = generator.random(samples) < 0.05
    logits = -3.5 + 5.25 * labels + 2.5 * generator.normal(size=samples)
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)


@quick_jit
def first_batch(p, labels, decay=0.0):
    return streaming_f1(streaming_f1_init(), p, labels, decay=decay)


@quick_jit
def batch_and_stream(p, labels, decay):
    """F1 of each batch, the streaming F1 after each, and the state at the end."""

    def step(state, batch):
        return streaming_f1(state, *batch, decay=decay)

    state, streamed = jax.lax.scan(step, streaming_f1_init(), (p, labels))
    return jax.vmap(smooth_f1)(p, labels), streamed, state


@pytest.mark.parametrize("size", [8, 64, 1024])
def test_bias_of_batches_and_of_the_stream(size):
    logits, labels = scorer()
    p = jax.nn.sigmoid(logits)
    of_all = float(smooth_f1(p, labels))
    assert of_all == pytest.approx(F1_OF_ALL, abs=0.01)
    batches = p.reshape(-1, size), labels.reshape(-1, size)
    by_batch, streamed, state = batch_and_stream(*batches, 1 - size / 8192)
    assert float(jnp.mean(by_batch)) == pytest.approx(BIAS[size], abs=0.015)
    streamed = streamed[len(streamed) // 4 :]
    assert float(jnp.mean(streamed)) == pytest.approx(of_all, abs=0.008)
    assert float(state.samples) == pytest.approx(8192, rel=1e-3)


@pytest.mark.parametrize("average", ["binary", "macro", "micro"])
def test_without_forgetting_it_is_the_f1_of_everything(average):
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), 90).astype(np.float32)
    labels = generator.integers(0, 3, 90)
    if average == "binary":
        p, labels = p[:, 0], labels % 2
    where = np.arange(90) % 7 > 0
    state = streaming_f1_init(3 if average == "macro" else None)
    update = quick_jit(functools.partial(streaming_f1, average=average, decay=1.0))
    for rows in np.split(np.arange(90), 3):
        state, f1 = update(state, p[rows], labels[rows], where=where[rows])
    exact = quick_jit(functools.partial(smooth_f1, average=average))(p, labels, where=where)
    np.testing.assert_allclose(f1, exact, rtol=1e-5)
    assert state.samples == where.sum()


def test_gradient_is_that_of_all_samples():
    # With the totals of all samples as the state, the batches' gradients average to the exact one.
    logits, labels = (leaf[:4096] for leaf in scorer())
    exact = quick_jit(jax.grad(lambda a: smooth_f1(jax.nn.sigmoid(a * logits), labels)))(1.0)
    totals, _ = first_batch(jax.nn.sigmoid(logits), labels)
    # So heavy that a batch does not move it.
    heavy = jax.tree.map(lambda leaf: 1e4 * leaf, totals)

    def slope(function):
        batches = logits.reshape(-1, 8), labels.reshape(-1, 8)
        each = jax.vmap(lambda x, t: jax.grad(lambda a: function(a, x, t))(1.0))
        return jnp.mean(quick_jit(each)(*batches))

    streamed = slope(lambda a, x, t: streaming_f1(heavy, jax.nn.sigmoid(a * x), t, decay=1.0)[1])
    np.testing.assert_allclose(streamed, exact, rtol=1e-3)
    by_batch = slope(lambda a, x, t: smooth_f1(jax.nn.sigmoid(a * x), t))
    assert abs(by_batch - exact) > 0.2 * abs(exact)  # else this shows nothing


def test_first_batch_alone_has_the_gradient_of_the_batch():
    p, t = np.array([0.9, 0.8, 0.3, 0.2, 0.6], np.float32), np.array([1, 1, 1, 0, 0])
    slopes = quick_jit(jax.grad(lambda p, t: first_batch.__wrapped__(p, t)[1]))
    np.testing.assert_allclose(slopes(p, t), quick_jit(jax.grad(smooth_f1))(p, t), rtol=1e-6)
    assert not slopes(0 * p, 0 * t).any()  # nothing to count


def test_no_samples_and_a_decay_out_of_range():
    nothing = np.zeros(0, np.float32), np.zeros(0, int)
    _, f1 = first_batch(*nothing)
    assert f1 == 0
    ones = np.ones(2, np.float32), np.ones(2, int)
    assert np.isnan(first_batch(*ones, decay=1.5)[1])
    assert first_batch(*ones, decay=0.5)[1] == 1
