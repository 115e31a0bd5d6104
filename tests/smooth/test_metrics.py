"""Metrics: numbers of the article, exact metrics as limits, masks, 0/0, gradients, scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from zoo import smooth

P = jnp.array([0.9, 0.8, 0.3, 0.2, 0.6])
T = jnp.array([1, 1, 1, 0, 0])
METRICS = (smooth.smooth_precision, smooth.smooth_recall, smooth.smooth_f1)


def test_golden():
    assert float(smooth.smooth_f1(P, T)) == pytest.approx(0.689655172, rel=1e-6)
    assert float(smooth.smooth_f1((P > 0.5).astype(float), T)) == pytest.approx(2 / 3, rel=1e-6)
    assert float(smooth.smooth_accuracy(P, T)) == pytest.approx(0.64, rel=1e-6)
    assert float(smooth.smooth_precision(P, T)) == pytest.approx(2 / 2.8, rel=1e-6)
    assert float(smooth.smooth_recall(P, T)) == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("average", ["binary", "macro", "micro"])
def test_hard_predictions_give_the_exact_metrics(average):
    generator = np.random.default_rng(0)
    classes = 2 if average == "binary" else 4
    labels, predicted = generator.integers(0, classes, (2, 60))
    probabilities = np.eye(classes, dtype=np.float32)[predicted]
    if average == "binary":
        probabilities = probabilities[:, 1]
    exact = metrics.precision_recall_fscore_support(labels, predicted, average=average)[:3]
    for function, expected in zip(METRICS, exact, strict=True):
        found = function(jnp.asarray(probabilities), jnp.asarray(labels), average=average)
        assert float(found) == pytest.approx(expected, rel=1e-6)
    found = smooth.smooth_accuracy(jnp.asarray(probabilities), jnp.asarray(labels))
    assert float(found) == pytest.approx((labels == predicted).mean(), rel=1e-6)


def test_indicators_and_classes_agree():
    p = jax.random.uniform(jax.random.key(0), (7, 3))
    labels = jnp.array([0, 2, 1, 1, 0, 2, 2])
    for function in METRICS:
        for average in ("macro", "micro"):
            by_class = function(p, labels, average=average)
            by_indicator = function(p, jax.nn.one_hot(labels, 3), average=average)
            np.testing.assert_allclose(by_class, by_indicator, rtol=1e-6)


@pytest.mark.parametrize("function", [smooth.smooth_accuracy, *METRICS, smooth.smooth_auc])
def test_masks(function):
    where = jnp.array([True, False, True, True, False])
    hidden = P.at[1].set(jnp.nan)
    labels = T.at[4].set(-7)  # padding may be anything
    kept = np.flatnonzero(where)
    np.testing.assert_allclose(function(hidden, labels, where=where), function(P[kept], T[kept]))
    gradient = jax.grad(lambda p: function(p, labels, where=where))(hidden)
    assert np.isfinite(gradient).all()
    assert not gradient[jnp.array([1, 4])].any()
    nothing = jnp.zeros(5, bool)
    expected = 0.5 if function is smooth.smooth_auc else 0.0
    assert function(P, T, where=nothing) == expected
    assert not jax.grad(lambda p: function(p, T, where=nothing))(P).any()


@pytest.mark.parametrize("function", [smooth.smooth_accuracy, *METRICS, smooth.smooth_auc])
def test_labels_out_of_range_give_nan(function):
    for wrong in (-1, 2):
        assert np.isnan(function(P, T.at[0].set(wrong)))
        assert np.isnan(jax.jit(function)(P, T.at[0].set(wrong)))
    many = jnp.ones((2, 3)) / 3
    options = (
        {} if function in (smooth.smooth_accuracy, smooth.smooth_auc) else {"average": "macro"}
    )
    if function is not smooth.smooth_auc:
        assert np.isnan(function(many, jnp.array([0, 3]), **options))
        assert np.isnan(function(many, jnp.array([0, -1]), **options))


def test_zero_over_zero():
    nothing = jnp.zeros(3)
    for function in METRICS:
        assert function(nothing, jnp.zeros(3, int)) == 0
        assert not jax.grad(function)(nothing, jnp.zeros(3, int)).any()
    # A class that is never there counts as 0 in the mean over classes.
    p = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    assert smooth.smooth_f1(p, jnp.array([0, 0]), average="macro") == 0.5


def test_gradient_of_f1_is_that_of_the_source(double_precision):
    # -E[(y - F1/2) ∇p], scaled by 2 over the mean of t + p.
    p, t = P.astype(jnp.float64), T
    f1 = smooth.smooth_f1(p, t)
    expected = 2 * (np.asarray(t) - f1 / 2) / np.sum(np.asarray(t + p))
    np.testing.assert_allclose(jax.grad(smooth.smooth_f1)(p, t), expected, rtol=1e-12)


def test_accuracy_has_no_gradient_where_it_is_needed(double_precision):
    # The first-order Taylor polynomial of the cross entropy at p = 1, and flat where it is wrong.
    loss = lambda z: -smooth.smooth_accuracy(jax.nn.sigmoid(z)[None], jnp.ones(1, int))  # noqa: E731
    slope = jax.grad(loss)
    np.testing.assert_allclose(slope(8.0), -jax.nn.sigmoid(-8.0), rtol=1e-3)
    assert abs(slope(-8.0)) < 1e-3 < jax.nn.sigmoid(8.0)


@pytest.mark.parametrize("items", [5, 80])
def test_auc_is_the_mean_over_pairs(items, double_precision):
    generator = np.random.default_rng(items)
    scores, labels = generator.normal(size=items), generator.integers(0, 2, items)
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    found = smooth.smooth_auc(jnp.asarray(scores), jnp.asarray(labels), temperature=0.3)
    np.testing.assert_allclose(found, np.mean(1 / (1 + np.exp(-pairs / 0.3))), rtol=1e-12)
    hard = smooth.smooth_auc(jnp.asarray(scores), jnp.asarray(labels), temperature=1e-5)
    np.testing.assert_allclose(hard, metrics.roc_auc_score(labels, scores), rtol=1e-9)


def test_auc_of_one_class_is_chance():
    assert smooth.smooth_auc(P, jnp.ones(5, int)) == 0.5
    assert not jax.grad(smooth.smooth_auc)(P, jnp.ones(5, int)).any()


def test_multilabel_cross_entropy(double_precision):
    s, t = jnp.array([2.0, -1.0, 0.5]), jnp.array([1, 0, 0])
    expected = np.log1p(np.exp(-1) + np.exp(0.5)) + np.log1p(np.exp(-2))
    np.testing.assert_allclose(smooth.multilabel_cross_entropy(s, t), expected, rtol=1e-12)
    soft = jnp.array([0.9, 0.2, 0.0])
    expected = np.log1p(np.sum((1 - soft) * np.exp(s))) + np.log1p(np.sum(soft * np.exp(-s)))
    np.testing.assert_allclose(smooth.multilabel_cross_entropy(s, soft), expected, rtol=1e-12)
    # One label of many: the same as the softmax's cross entropy against a class of logit 0 twice.
    hard = smooth.multilabel_cross_entropy(1e3 * s, t) / 1e3
    np.testing.assert_allclose(hard, max(0, -1, 0.5) + max(0, -2), rtol=1e-6)


def test_multilabel_cross_entropy_keeps_what_a_huge_masked_logit_would_drown():
    for dtype in (jnp.float32, jnp.float16):
        s = jnp.array([1e4, 0.0], dtype)
        loss, gradient = jax.value_and_grad(smooth.multilabel_cross_entropy)(s, jnp.array([1, 0]))
        np.testing.assert_allclose(loss, np.log(2), rtol=1e-3)
        np.testing.assert_allclose(gradient, [0, 0.5], atol=1e-3)
    assert np.isnan(smooth.multilabel_cross_entropy(jnp.ones(2), jnp.array([0, 2])))
