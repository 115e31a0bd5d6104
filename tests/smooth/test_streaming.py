"""Streaming F1: the bias of batches reproduced, its absence here, and the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.battery import quick_jit
from zoo.smooth import smooth_f1, streaming_f1, streaming_f1_init

# The table of the source: mean F1 over batches of a scorer with 5 % of positives and F1 .3507.
BIAS = {8: 0.187, 16: 0.252, 32: 0.297, 64: 0.324, 256: 0.344, 1024: 0.349}
WHOLE = 0.3507


@functools.cache
def scorer(rows=1 << 18):
    """Logits and labels of a scorer with nearly that F1; the source does not say which it used."""
    generator = np.random.default_rng(0)
    labels = generator.random(rows) < 0.05
    logits = -3.5 + 5.25 * labels + 2.5 * generator.normal(size=rows)
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)


@pytest.mark.parametrize("size", BIAS)
def test_bias_of_batches_and_of_the_stream(size):
    logits, labels = (leaf.reshape(-1, size) for leaf in scorer())
    p = jax.nn.sigmoid(logits)
    whole = float(smooth_f1(p.ravel(), labels.ravel()))
    assert whole == pytest.approx(WHOLE, abs=0.01)
    by_batch = float(jnp.mean(quick_jit(jax.vmap(smooth_f1))(p, labels)))
    assert by_batch == pytest.approx(BIAS[size], abs=0.015)

    def step(state, batch):
        return streaming_f1(state, *batch, decay=1 - size / 8192)

    state, streamed = quick_jit(functools.partial(jax.lax.scan, step))(
        streaming_f1_init(), (p, labels)
    )
    settled = streamed[len(streamed) // 4 :]
    assert float(jnp.mean(settled)) == pytest.approx(whole, abs=0.006)
    assert float(state.rows) == pytest.approx(8192, rel=1e-3)


def test_without_forgetting_it_is_the_f1_of_everything():
    logits, labels = scorer(600)
    p, where = jax.nn.sigmoid(logits), jnp.arange(600) % 7 > 0
    state = streaming_f1_init()
    for rows in np.split(np.arange(600), [200, 400]):
        state, f1 = quick_jit(streaming_f1)(
            state, p[rows], labels[rows], decay=1.0, where=where[rows]
        )
    np.testing.assert_allclose(f1, smooth_f1(p, labels, where=where), rtol=1e-5)
    assert state.rows == where.sum()


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_many_classes(average):
    p = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (90, 3)))
    labels = jax.random.randint(jax.random.key(1), (90,), 0, 3)
    state = streaming_f1_init(3 if average == "macro" else None)
    update = quick_jit(functools.partial(streaming_f1, average=average))
    for rows in np.split(np.arange(90), 3):
        state, f1 = update(state, p[rows], labels[rows], decay=1.0)
    np.testing.assert_allclose(f1, smooth_f1(p, labels, average=average), rtol=1e-5)


def test_gradient_is_that_of_all_rows():
    # With the totals of all rows as the state, the batches' gradients average to the exact one.
    logits, labels = scorer(4096)
    whole = jax.grad(lambda a: smooth_f1(jax.nn.sigmoid(a * logits), labels))(1.0)
    totals, _ = streaming_f1(streaming_f1_init(), jax.nn.sigmoid(logits), labels, decay=0.0)
    # So heavy that a batch does not move it.
    heavy = jax.tree.map(lambda leaf: 1e4 * leaf, totals)

    def slope(function):
        batches = logits.reshape(-1, 8), labels.reshape(-1, 8)
        each = jax.vmap(lambda x, t: jax.grad(lambda a: function(a, x, t))(1.0))
        return jnp.mean(quick_jit(each)(*batches))

    streamed = slope(lambda a, x, t: streaming_f1(heavy, jax.nn.sigmoid(a * x), t, decay=1.0)[1])
    np.testing.assert_allclose(streamed, whole, rtol=1e-3)
    by_batch = slope(lambda a, x, t: smooth_f1(jax.nn.sigmoid(a * x), t))
    assert abs(by_batch - whole) > 0.2 * abs(whole)  # else this shows nothing


def test_first_batch_alone_has_the_gradient_of_the_batch():
    p, t = jnp.array([0.9, 0.8, 0.3, 0.2, 0.6]), jnp.array([1, 1, 1, 0, 0])
    own = jax.grad(lambda p: streaming_f1(streaming_f1_init(), p, t)[1])(p)
    np.testing.assert_allclose(own, jax.grad(smooth_f1)(p, t), rtol=1e-6)


def test_nothing_to_count():
    state, f1 = streaming_f1(streaming_f1_init(), jnp.zeros(0), jnp.zeros(0, int))
    assert f1 == 0
    gradient = jax.grad(lambda p: streaming_f1(state, p, jnp.zeros(3, int))[1])(jnp.zeros(3))
    assert not gradient.any()
    traced = jax.jit(lambda decay: streaming_f1(state, jnp.ones(2), jnp.ones(2, int), decay=decay))
    assert np.isnan(traced(1.5)[1])
    assert traced(0.5)[1] == 1
