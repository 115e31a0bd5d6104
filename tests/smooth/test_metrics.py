"""Metrics: numbers of the article, exact metrics as limits, masks, 0/0, gradients, scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from tests.battery import quick_jit
from zoo import smooth

P = np.array([0.9, 0.8, 0.3, 0.2, 0.6], np.float32)
T = np.array([1, 1, 1, 0, 0])
FUNCTIONS = {
    "precision": smooth.smooth_precision,
    "recall": smooth.smooth_recall,
    "f1": smooth.smooth_f1,
    "accuracy": smooth.smooth_accuracy,
    "auc": smooth.smooth_auc,
}
precision, recall, f1 = RATIOS = [
    quick_jit(FUNCTIONS[name], static_argnames="average") for name in ("precision", "recall", "f1")
]
accuracy, auc = (quick_jit(FUNCTIONS[name]) for name in ("accuracy", "auc"))
VALUES = dict(zip(FUNCTIONS, (*RATIOS, accuracy, auc), strict=True))
SLOPES = {name: quick_jit(jax.value_and_grad(function)) for name, function in FUNCTIONS.items()}


def test_golden():
    assert float(f1(P, T)) == pytest.approx(0.689655172, rel=1e-6)
    assert float(f1((P > 0.5).astype(np.float32), T)) == pytest.approx(2 / 3, rel=1e-6)
    assert float(accuracy(P, T)) == pytest.approx(0.64, rel=1e-6)
    assert float(precision(P, T)) == pytest.approx(2 / 2.8, rel=1e-6)
    assert float(recall(P, T)) == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("average", ["binary", "macro", "micro"])
def test_hard_predictions_give_the_exact_metrics(average):
    generator = np.random.default_rng(0)
    classes = 2 if average == "binary" else 4
    labels, predicted = generator.integers(0, classes, (2, 60))
    p = np.eye(classes, dtype=np.float32)[predicted]
    p = p[:, 1] if average == "binary" else p
    exact = metrics.precision_recall_fscore_support(labels, predicted, average=average)[:3]
    for function, expected in zip(RATIOS, exact, strict=True):
        assert float(function(p, labels, average=average)) == pytest.approx(expected, rel=1e-6)
        if average != "binary":  # labels as indicators
            found = function(p, np.eye(classes)[labels], average=average)
            assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(accuracy(p, labels)) == pytest.approx((labels == predicted).mean(), rel=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_masks(name):
    where = np.array([True, False, True, True, False])
    hidden = np.where(np.arange(5) == 1, np.nan, P)
    labels = np.where(np.arange(5) == 4, -7, T)  # padding may be anything
    value, gradient = SLOPES[name](hidden, labels, where=where)
    np.testing.assert_allclose(value, VALUES[name](P[where], T[where]), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[~where].any()
    value, gradient = SLOPES[name](P, T, where=np.zeros(5, bool))
    assert value == (0.5 if name == "auc" else 0.0)
    assert not gradient.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_labels_out_of_range_give_nan(name):
    for wrong in (-1, 2):
        assert np.isnan(VALUES[name](P, np.where(np.arange(5) == 0, wrong, T)))
    options = {} if name == "accuracy" else {"average": "macro"}
    for wrong in (-1, 3) if name != "auc" else ():
        many = np.ones((2, 3), np.float32) / 3
        assert np.isnan(VALUES[name](many, np.array([0, wrong]), **options))


def test_zero_over_zero():
    nothing = np.zeros(3, np.float32)
    for name in ("precision", "recall", "f1"):
        value, gradient = SLOPES[name](nothing, np.zeros(3, int))
        assert value == 0
        assert not gradient.any()
    # A class that is never there counts as 0 in the mean over classes.
    p = np.array([[1, 0], [1, 0]], np.float32)
    assert f1(p, np.array([0, 0]), average="macro") == 0.5


def test_gradient_of_f1_is_that_of_the_source(double_precision):
    # -E[(y - F1/2) ∇p], scaled by 2 over the mean of t + p.
    p = P.astype(np.float64)
    value, gradient = SLOPES["f1"](p, T)
    np.testing.assert_allclose(gradient, 2 * (T - value / 2) / np.sum(T + p), rtol=1e-12)


def test_accuracy_has_no_gradient_where_it_is_needed(double_precision):
    # The first-order Taylor polynomial of the cross entropy at p = 1, and flat where it is wrong.
    @quick_jit
    @jax.grad
    def slope(z):
        return -smooth.smooth_accuracy(jax.nn.sigmoid(z)[None], jnp.ones(1, int))

    np.testing.assert_allclose(slope(8.0), -jax.nn.sigmoid(-8.0), rtol=1e-3)
    assert abs(slope(-8.0)) < 1e-3 < jax.nn.sigmoid(8.0)


@pytest.mark.parametrize("items", [5, 80])
def test_auc_is_the_mean_over_pairs(items, double_precision):
    generator = np.random.default_rng(items)
    scores, labels = generator.normal(size=items), generator.integers(0, 2, items)
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    found = auc(scores, labels, temperature=0.3)
    np.testing.assert_allclose(found, np.mean(1 / (1 + np.exp(-pairs / 0.3))), rtol=1e-12)
    hard = auc(scores, labels, temperature=1e-5)
    np.testing.assert_allclose(hard, metrics.roc_auc_score(labels, scores), rtol=1e-9)


def test_auc_of_one_class_is_chance():
    value, gradient = SLOPES["auc"](P, np.ones(5, int))
    assert value == 0.5
    assert not gradient.any()


def test_multilabel_cross_entropy(double_precision):
    loss = quick_jit(smooth.multilabel_cross_entropy)
    s, t = np.array([2.0, -1.0, 0.5]), np.array([1, 0, 0])
    for labels in (t, np.array([0.9, 0.2, 0.0])):
        expected = np.log1p(np.sum((1 - labels) * np.exp(s)))
        expected += np.log1p(np.sum(labels * np.exp(-s)))
        np.testing.assert_allclose(loss(s, labels), expected, rtol=1e-12)
    # One label of many: the same as the softmax's cross entropy against a class of logit 0 twice.
    np.testing.assert_allclose(loss(1e3 * s, t) / 1e3, max(0, -1, 0.5) + max(0, -2), rtol=1e-6)


def test_multilabel_cross_entropy_keeps_what_a_huge_masked_logit_would_drown():
    both = quick_jit(jax.value_and_grad(smooth.multilabel_cross_entropy))
    for dtype in (np.float32, np.float16):
        loss, gradient = both(np.array([1e4, 0.0], dtype), np.array([1, 0]))
        np.testing.assert_allclose(loss, np.log(2), rtol=1e-3)
        np.testing.assert_allclose(gradient, [0, 0.5], atol=1e-3)
    assert np.isnan(both(np.ones(2, np.float32), np.array([0, 2]))[0])
