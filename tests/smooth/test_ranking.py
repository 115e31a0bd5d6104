"""NDCG, reciprocal rank, Spearman: exact metrics of scikit-learn and SciPy as limits, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from tests.battery import quick_jit
from zoo.smooth import soft_rank, soft_top_k
from zoo.smooth.ranking import smooth_mrr, smooth_ndcg, smooth_spearman

ndcg = quick_jit(smooth_ndcg, static_argnames=("k", "gain"))
mrr, spearman = quick_jit(smooth_mrr), quick_jit(smooth_spearman)
RELEVANCE = np.random.default_rng(0).integers(0, 4, (6, 9))
SCORES = np.random.default_rng(1).normal(size=(6, 9)).astype(np.float32)


@pytest.mark.parametrize("k", [None, 3, 20])
def test_ndcg_ends_at_the_exact_one(k):
    for gain, gains in (("exponential", 2.0**RELEVANCE - 1), ("linear", RELEVANCE)):
        found = ndcg(SCORES, RELEVANCE, temperature=1e-5, k=k, gain=gain)
        expected = [
            metrics.ndcg_score(g[None], s[None], k=k) for g, s in zip(gains, SCORES, strict=True)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert (ndcg(SCORES, RELEVANCE, temperature=0.5, k=k, gain=gain) <= 1).all()
    best = (RELEVANCE - 1e-2 * np.arange(9)).astype(np.float32)
    np.testing.assert_allclose(ndcg(best, RELEVANCE, temperature=1e-5, k=k), np.ones(6), rtol=1e-6)


def test_reciprocal_rank_and_correlation_end_at_the_exact_ones():
    relevant = RELEVANCE >= 2
    order = np.argsort(-SCORES, axis=-1)
    expected = 1 / (1 + np.argmax(np.take_along_axis(relevant, order, -1), axis=-1))
    expected = np.where(relevant.any(-1), expected, 0)
    np.testing.assert_allclose(mrr(SCORES, relevant, temperature=1e-5), expected, rtol=1e-6)
    for targets in (RELEVANCE, SCORES**3, -1e-20 * SCORES):  # with ties; any scale
        expected = [stats.spearmanr(s, t).statistic for s, t in zip(SCORES, targets, strict=True)]
        found = spearman(SCORES, targets.astype(np.float32), temperature=1e-5)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("function", [smooth_ndcg, smooth_mrr, smooth_spearman])
def test_padding_and_lists_without_anything(function):
    where = np.arange(9) < 6
    both = quick_jit(jax.value_and_grad(lambda s, r, w: function(s, r, where=w).sum()))
    for fill in (np.nan, np.inf):
        hidden = np.where(where, SCORES[:1], np.float32(fill))
        value, slope = both(hidden, np.where(where, RELEVANCE[:1], 7), where[None])
        expected, _ = both(SCORES[:1, :6], RELEVANCE[:1, :6], where[None, :6])
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert np.isfinite(slope).all()
        assert not slope[:, ~where].any()
    for mask in (where[None], where[None] & False):
        value, slope = both(SCORES[:1], 0 * RELEVANCE[:1], mask)
        assert value == 0
        assert not slope.any()
    spoiled = np.where(np.arange(9) == 0, np.nan, SCORES[:1])
    assert np.isnan(both(spoiled, RELEVANCE[:1], where[None])[0])
    assert function(jnp.zeros((2, 0)), jnp.zeros((2, 0))).tolist() == [0, 0]


def test_training_on_it_raises_the_exact_one():
    step = quick_jit(jax.vmap(lambda s, r: s + 2 * jax.grad(smooth_ndcg)(s, r)), donate_argnums=0)
    scores = jnp.asarray(SCORES)
    for _ in range(100):
        scores = step(scores, RELEVANCE)
    before, after = (ndcg(s, RELEVANCE, temperature=1e-5).mean() for s in (SCORES, scores))
    assert before < 0.8
    assert after > 0.97
    assert np.isnan(ndcg(scores, -1 - RELEVANCE, temperature=1e-5)).all()


def test_masks_of_ranks_and_top_k():
    where = np.array([True, False, True, True])
    x = np.array([1.0, np.nan, 3.0, 2.0], np.float32)

    @quick_jit
    def run(x, where):
        chosen = [
            soft_top_k(x, 2, method=m, where=where) for m in ("gradient", "sigmoid", "clipped")
        ]
        recursive = soft_top_k(x, 1, method="recursive", where=where)
        as_many, more = (soft_top_k(x, k, where=where) for k in (3, len(x)))
        return soft_rank(x, where=where), *chosen, recursive, as_many, more

    found = run(x, where)
    for own, expected in zip(found, run(x[where], where[where]), strict=True):
        np.testing.assert_allclose(own[where], expected, rtol=1e-5)
        assert own[1] == 0
    np.testing.assert_allclose(found[-2:], [where, where])
