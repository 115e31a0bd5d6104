"""Every function of one array at any magnitude, tie, mask, infinity and NaN, against float64.

The references are written with NumPy and SciPy, by brute force where there is one. All functions
are compiled into one program per dtype, so that an example costs milliseconds.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from scipy import optimize, special

from tests.battery import quick_jit
from zoo import smooth
from zoo.smooth.projections import project_simplex
from zoo.smooth.streaming import streaming_f1, streaming_f1_init

pytestmark = pytest.mark.slow  # many examples each

K = 2
LARGEST = float(np.finfo(np.float32).max)
SQUARE = 4 * math.log(2) ** 2
METHODS = ("gradient", "threshold", "sigmoid", "clipped", "recursive")
KERNELS = ("logistic", "gaussian", "square")
ELEMENTWISE = {
    "abs": smooth.smooth_abs,
    "sign": smooth.smooth_sign,
    "step": smooth.smooth_step,
    "clip": lambda x, temperature: smooth.smooth_clip(x, -1, 2, temperature=temperature),
    "greater": lambda x, temperature: smooth.soft_greater(x, 1, temperature=temperature),
    "equal": lambda x, temperature: smooth.soft_equal(x, 1, temperature=temperature, tolerance=0.5),
    "floor": smooth.smooth_floor,
    "round": smooth.smooth_round,
    **{f"relu {k}": functools.partial(smooth.smooth_relu, kernel=k) for k in KERNELS},
}
ALONG_ITEMS = {
    "max": smooth.smooth_max,
    "min": lambda x, **options: smooth.smooth_min(-x, **options),
    "one hot": smooth.soft_one_hot,
    "argmax": smooth.smooth_argmax,
    "rank": smooth.soft_rank,
    "sort": functools.partial(smooth.soft_sort, descending=True),
    "simplex": project_simplex,
    **{m: functools.partial(smooth.soft_top_k, k=K, method=m) for m in METHODS},
}
# In what follows an item at -inf takes no part in the first ones; a quantile counts it.
QUANTILE = {
    "quantile": lambda x, temperature: smooth.soft_quantile(x, 0.3, temperature=temperature)
}
FUNCTIONS = ELEMENTWISE | ALONG_ITEMS | QUANTILE
TEMPERATURES = (1e-30, 1e-3, 0.1, 0.3, 1.0, 40.0, 1e30)


@quick_jit
def values(x, temperature):
    return {name: function(x, temperature=temperature) for name, function in FUNCTIONS.items()}


@functools.partial(quick_jit, static_argnames="order")
def derivatives(x, temperature, order):
    """Of a weighted sum: in x, in τ, and of both once more along a line in x and τ for order 2."""

    def of(function):
        def weighted(x, temperature):
            y = function(x, temperature=temperature)
            y = jnp.where(jnp.isfinite(y), y, 0)  # infinite on purpose, and NaN: argmax of nothing
            return jnp.sum(y * jnp.cos(1.0 + jnp.arange(y.size)).astype(x.dtype))

        first = jax.grad(weighted, argnums=(0, 1))
        if order == 1:
            return first(x, temperature), ()
        direction = jnp.ones_like(temperature)
        second = jax.jvp(first, (x, temperature), (jnp.cos(jnp.arange(x.size) * 1.0), direction))
        return second

    return {name: of(function) for name, function in FUNCTIONS.items()}


def difference(a, b):
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


def soft_one_hot(x, temperature):
    if (x == -np.inf).all():
        return np.zeros_like(x)
    weights = np.exp(difference(x, x.max()) / temperature)
    return weights / weights.sum()


def smooth_max(x, temperature):
    if np.isinf(x.max()):
        return x.max()
    return x.max() + temperature * np.log(np.exp((x - x.max()) / temperature).sum())


def stairs(x, temperature):
    step = np.where(np.isfinite(x), np.round(x), 0)
    n = np.arange(-60, 61) if temperature < 1.2 else np.zeros(0)
    rest = np.where(np.isfinite(x), x - step, 0)
    with np.errstate(over="ignore"):
        series = special.expit((rest[:, None] - n) / temperature).sum(axis=1) - 61
    # Flat from about 1 on: the slope alone.
    return np.where(np.isinf(x), x, step + (series if n.size else rest - 0.5))


def relu(x, temperature, kernel):
    with np.errstate(over="ignore", invalid="ignore"):
        v = np.abs(x) / temperature
        if kernel == "logistic":
            excess = np.log1p(np.exp(-v))
        elif kernel == "gaussian":
            density = np.exp(-v * v / 2) / math.sqrt(2 * math.pi)
            mills = math.sqrt(math.pi / 2) * v * special.erfcx(v / math.sqrt(2))
            mills = np.where(v < 1e9, mills, 1)
            excess = density * (1 - mills)
        else:
            excess = SQUARE / (2 * (np.hypot(v, math.sqrt(SQUARE)) + v))
    return np.maximum(x, 0) + temperature * excess


def laplace(u):
    return np.where(u < 0, np.exp(np.minimum(u, 0)) / 2, 1 - np.exp(-np.maximum(u, 0)) / 2)


def soft_top_k(x, temperature, method):
    """Differences of 1000 τ are as good as infinite ones."""
    if method == "recursive":
        present = x > -np.inf
        if present.sum() <= K or np.isposinf(x).any():
            return np.full(x.shape, np.nan)
        gap = np.where(present, x - x[present].min(), 0)
        chosen = np.zeros_like(x)
        for _ in range(K):
            chosen += soft_one_hot(np.where(present, (1 - chosen) * gap, -np.inf), temperature)
        return chosen
    u = np.clip(difference(x, np.sort(x)[-K]) / temperature, -1000, 1000)
    if method == "gradient":
        subsets = list(itertools.combinations(range(len(u)), K))
        member = np.array([[i in subset for i in range(len(u))] for subset in subsets])
        weights = np.exp(np.where(member, u, 0).sum(1) - np.where(member, u, 0).sum(1).max())
        return weights @ member / weights.sum()
    form = {
        "threshold": laplace,
        "sigmoid": special.expit,
        "clipped": lambda u: np.exp(np.minimum(u, 0)),
    }[method]
    threshold = optimize.brentq(lambda t: form(u - t).sum() - K, -3000, 3000, xtol=1e-11)
    return form(u - threshold)


def soft_sort(x, temperature):
    """From the smallest."""
    if np.isinf(x).any():
        finite = soft_sort(x[np.isfinite(x)], temperature)
        return np.concatenate([x[x == -np.inf], finite, x[x == np.inf]])
    weights = np.exp(-np.abs(np.sort(x)[:, None] - x[None]) / temperature)
    return np.sort(x) + (weights * (x[None] - np.sort(x)[:, None])).sum(1) / weights.sum(1)


def quantile(x, q, temperature):
    y, place = soft_sort(x, temperature), q * (len(x) - 1)
    low, high = y[math.floor(place)], y[math.ceil(place)]
    return low if low == high else (1 - place % 1) * low + place % 1 * high


def simplex(x, temperature):
    if (x == -np.inf).all():
        return np.zeros_like(x)
    u = difference(x, x.max()) / temperature
    falling = np.sort(u)[::-1]
    thresholds = [(falling[:k].sum() - 1) / k for k in range(1, len(u) + 1)]
    return np.maximum(u - max(thresholds), 0)


def reference(x, temperature):
    with np.errstate(over="ignore"):
        clipped = np.clip(x, -LARGEST, LARGEST)
        pairs = (clipped[None, :] - clipped[:, None]) / temperature
    v = np.abs(x) / temperature
    return {
        "abs": np.abs(x) + temperature * np.log1p(np.exp(-2 * v)),
        "sign": np.tanh(x / temperature),
        "step": special.expit(x / temperature),
        "clip": np.clip(x, -1, 2)
        + temperature * (np.log1p(np.exp(-np.abs(x + 1) / temperature)))
        - temperature * (np.log1p(np.exp(-np.abs(x - 2) / temperature))),
        "greater": special.expit((x - 1) / temperature),
        "equal": special.expit((1.5 - x) / temperature)
        * special.expit((x - 0.5) / temperature)
        / special.expit(0.5 / temperature) ** 2,
        "sort": soft_sort(x, temperature)[::-1],
        "quantile": quantile(x, 0.3, temperature),
        "simplex": simplex(x, temperature),
        "floor": stairs(x, temperature),
        "round": stairs(x + 0.5, temperature),
        **{f"relu {kernel}": relu(x, temperature, kernel) for kernel in KERNELS},
        "max": smooth_max(x, temperature),
        "min": -smooth_max(x, temperature),
        "one hot": soft_one_hot(x, temperature),
        "argmax": (
            np.nan if (x == -np.inf).all() else np.arange(len(x)) @ soft_one_hot(x, temperature)
        ),
        "rank": 0.5 + special.expit(pairs).sum(-1),
        **{method: soft_top_k(x, temperature, method) for method in METHODS},
    }


def items(dtype, size=6):
    """Rows of ties, neighbours, tiny, huge and infinite numbers."""
    width, largest = 8 * np.dtype(dtype).itemsize, float(np.finfo(dtype).max)
    special_ones = [0.0, 1.0, -1.0, 1.5, 0.5, largest, -largest, np.inf, -np.inf, largest / 2]
    element = st.one_of(
        st.sampled_from(special_ones),
        st.floats(-5, 5, width=width),
        st.floats(width=width, allow_nan=False),
    )
    return st_np.arrays(dtype, size, elements=element)


def assert_matches(found, x, temperature):
    dtype = x.dtype
    limits = np.finfo(dtype)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = reference(wide, float(temperature))
    coarse = max(float(limits.eps), float(np.finfo(np.float32).eps))
    for name, own in found.items():
        y, z = np.asarray(own, np.float64), np.asarray(expected[name])
        assert own.dtype == dtype, name
        finite = wide[np.isfinite(wide)]
        if name == "recursive" and finite.size and np.ptp(finite) > 100 * temperature:
            continue  # its shift by the smallest keeps no digits, or overflows
        # Beside the largest finite number either side may have overflowed.
        edge = np.abs(z) >= 0.999 * float(limits.max)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(z), err_msg=name)
        kept = np.isfinite(z) & ~edge
        with np.errstate(over="ignore", invalid="ignore"):
            assert (np.abs(y[edge]) >= 0.99 * float(limits.max)).all(), name
        wide_ones = ("max", "min", "relu", "clip")
        size = 1 + np.abs(z) + (temperature if name.startswith(wide_ones) else 0)
        if name in ("max", "min", "sort", "quantile"):
            size = size + np.where(np.isfinite(wide), np.abs(wide), 0).max()
        # An argument x/τ is known to its rounding, and no better.
        error = np.abs(y[kept] - z[kept]) / np.broadcast_to(size, np.shape(z))[kept]
        assert (error <= 40 * coarse).all(), (name, x, temperature, y, z)


@given(x=items(np.float32), temperature=st.sampled_from(TEMPERATURES))
def test_values_in_single_precision(x, temperature):
    assert_matches(values(x, np.float32(temperature)), x, np.float32(temperature))


@pytest.mark.slow
@given(x=items(np.float16), temperature=st.sampled_from(TEMPERATURES))
def test_values_in_half_precision(x, temperature):
    assert_matches(values(x, np.float32(temperature)), x, np.float32(temperature))


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
@given(x=items(np.float32), temperature=st.sampled_from(TEMPERATURES))
def test_derivatives_are_finite(x, temperature, order):
    found = dict(derivatives(x, np.float32(temperature), order))
    if np.isposinf(x).any() or np.isneginf(x).sum() >= len(x) - K:
        del found["recursive"]  # NaN, as it says
    finite = x[np.isfinite(x)].astype(np.float64)
    for name, (first, second) in found.items():
        if name == "recursive" and finite.size and np.ptp(finite) > 1e6 * temperature:
            continue  # its slopes are products of K numbers as large as that
        for slope in first:
            assert np.isfinite(slope).all(), (name, "first", x, temperature)
        if temperature > 1e-18:  # else they are beyond the largest number themselves
            for slope in second:
                assert np.isfinite(slope).all(), (name, "second", x, temperature)


def short_and_padded(function, fill):
    """Values and derivatives of five items, and of the same with one that takes no part."""

    def of(x, temperature, size):
        def padded(x, temperature):
            y = function(jnp.concatenate([x, jnp.full(size, fill, x.dtype)]), temperature)
            return y[:5] if y.ndim else y[None]

        return jax.tree.map(jnp.asarray, every_derivative(padded, x, temperature))

    return lambda x, temperature: (of(x, temperature, 0), of(x, temperature, 1))


def every_derivative(function, x, temperature):
    def weighted(x, temperature):
        y = function(x, temperature)
        return jnp.sum(y * jnp.cos(1.0 + jnp.arange(y.size)).astype(x.dtype)), y

    first = jax.grad(weighted, argnums=(0, 1), has_aux=True)
    moves = jnp.cos(jnp.arange(x.size) * 1.0), jnp.ones_like(temperature)
    slopes, second, y = jax.jvp(first, (x, temperature), moves, has_aux=True)
    return y, slopes, second


def masked_metric(function):
    return lambda p, t, where: function(p, LABELS, where=where)


LABELS = np.array([1, 0, 1, 1, 0, 1])
WITH_MASKS = {
    "max": lambda x, t, where: smooth.smooth_max(x, temperature=t, where=where),
    "min": lambda x, t, where: smooth.smooth_min(x, temperature=t, where=where),
    "auc": lambda x, t, where: smooth.smooth_auc(x, LABELS, temperature=t, where=where),
    "accuracy": masked_metric(smooth.smooth_accuracy),
    "precision": masked_metric(smooth.smooth_precision),
    "recall": masked_metric(smooth.smooth_recall),
    "f1": masked_metric(smooth.smooth_f1),
    "streaming": lambda p, t, where: streaming_f1(streaming_f1_init(), p, LABELS, where=where)[1],
}


@pytest.mark.parametrize("name", WITH_MASKS)
def test_masked_entries_reach_no_value_and_no_derivative(name):
    @quick_jit
    def run(x, temperature, where):
        function = lambda x, t: WITH_MASKS[name](x, t, where)[None]  # noqa: E731
        return every_derivative(function, x, temperature)

    x = np.array([0.9, 0.2, 0.3, 0.6, 0.5, 0.0], np.float32)
    where = np.arange(6) < 5
    for temperature in (0.01, 1.0):
        expected = run(x, np.float32(temperature), where)
        for fill in (np.nan, np.inf, -np.inf, np.finfo(np.float32).max):
            found = run(np.where(where, x, np.float32(fill)), np.float32(temperature), where)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                assert np.isfinite(b).all()
                np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=str(fill))


@pytest.mark.parametrize("name", [n for n in ALONG_ITEMS if n != "min"])
def test_items_at_minus_infinity_take_no_part(name):
    function = lambda x, t: ALONG_ITEMS[name](x, temperature=t)  # noqa: E731
    both = quick_jit(short_and_padded(function, -jnp.inf))
    huge = 1.0 if name == "recursive" else 1e30  # whose slopes grow with the numbers
    for x in ([0.3, -1.0, 2.0, 0.0, 2.0], [huge, 0.0, -huge, huge, 5.0]):
        for temperature in (1e-3, 0.7):
            short, padded = both(np.array(x, np.float32), np.float32(temperature))
            for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(padded), strict=True):
                assert np.isfinite(a).all()
                np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max())


@pytest.mark.slow
@pytest.mark.parametrize("place", range(6))
def test_nan_is_never_swallowed(place):
    x = np.where(np.arange(6) == place, np.nan, np.arange(6)).astype(np.float32)
    for name, found in values(x, np.float32(0.5)).items():
        expected = np.isnan(x) if name in ELEMENTWISE else True
        np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(expected, found.shape), name)
    where = np.ones(6, bool)
    for name, function in WITH_MASKS.items():
        assert np.isnan(function(x / 6, 0.5, where)).all(), name
    assert np.isnan(smooth.soft_top_k(x, 6)).all()  # not one for everything


@quick_jit
def metrics(p, labels, where):
    averages = {
        f"{average} {name}": getattr(smooth, f"smooth_{name}")(
            p, labels, average=average, where=where
        )
        for name in ("precision", "recall", "f1")
        for average in ("macro", "micro")
    }
    return averages | {"accuracy": smooth.smooth_accuracy(p, labels, where=where)}


@given(
    p=st_np.arrays(np.float32, (5, 3), elements=st.floats(0, 1, width=32)),
    labels=st_np.arrays(np.uint8, 5, elements=st.integers(0, 2)),
    where=st_np.arrays(bool, 5),
)
def test_metrics(p, labels, where):
    q, t = p.astype(np.float64)[where], np.eye(3)[labels][where]
    q[np.abs(q) < np.finfo(np.float32).tiny] = 0  # as the processor takes them
    found = metrics(p, labels, where)
    expected = {"accuracy": (q * t).sum() / max(len(q), 1)}
    for average, axis in (("macro", 0), ("micro", None)):
        hits, predicted, actual = (t * q).sum(axis), q.sum(axis), t.sum(axis)
        parts = {"precision": predicted, "recall": actual, "f1": (predicted + actual) / 2}
        for name, total in parts.items():
            share = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
            expected[f"{average} {name}"] = share.mean()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@quick_jit
def auc_and_loss(scores, labels, temperature):
    auc = smooth.smooth_auc(scores, labels, temperature=temperature)
    loss = smooth.multilabel_cross_entropy
    return auc, loss(scores, labels), jax.grad(lambda s: jnp.nan_to_num(loss(s, labels)))(scores)


@given(
    x=items(np.float32),
    labels=st_np.arrays(np.float32, 6, elements=st.sampled_from([0.0, 1.0, 0.25])),
    temperature=st.sampled_from(TEMPERATURES),
)
def test_auc_and_multilabel_cross_entropy(x, labels, temperature):
    temperature, wide = np.float32(temperature), x.astype(np.float64)
    auc, loss, slope = auc_and_loss(x, labels, temperature)
    with np.errstate(over="ignore"):
        clipped = np.clip(wide, -LARGEST, LARGEST)
        won = special.expit((clipped[:, None] - clipped[None, :]) / float(temperature))
    pairs = labels.sum() * (1 - labels).sum()
    expected = labels @ won @ (1 - labels) / pairs if pairs else 0.5
    np.testing.assert_allclose(auc, expected, atol=1e-5)

    def log_one_plus(weights, s):
        with np.errstate(divide="ignore"):
            terms = np.append(np.log(weights) + np.where(weights > 0, s, 0), 0.0)
        return np.logaddexp.reduce(terms)

    expected = log_one_plus(1 - labels, wide) + log_one_plus(labels, -wide)
    if not 3e38 < expected < np.inf:
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    if np.isfinite(expected):
        assert np.isfinite(slope).all()


def test_an_infinite_logit_on_the_wrong_side_is_an_infinite_loss():
    loss = quick_jit(jax.value_and_grad(smooth.multilabel_cross_entropy))
    for s, t, expected, slope in (
        ([np.inf, 1], [0, 1], np.inf, [1, -0.26894143]),
        ([-np.inf, 1], [1, 1], np.inf, [-1, 0]),
        ([-np.inf, 1], [0, 1], 0.31326169, [0, -0.26894143]),
        ([np.inf, 1], [1, 1], 0.31326169, [0, -0.26894143]),
    ):
        value, gradient = loss(np.array(s, np.float32), np.array(t))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, slope, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64, np.uint32])
def test_labels_of_every_integer_dtype(dtype):
    # As many classes as none of the narrow ones counts.
    p = np.linspace(0, 1, 900, dtype=np.float32).reshape(3, 300)
    labels = np.array([0, 5, 127])
    for function in (
        smooth.smooth_accuracy,
        functools.partial(smooth.smooth_f1, average="macro"),
        functools.partial(smooth.smooth_precision, average="micro"),
    ):
        np.testing.assert_array_equal(function(p, labels.astype(dtype)), function(p, labels))


def test_scalars_of_every_kind():
    x = np.arange(5, dtype=np.float32)
    for kind in (float, np.float32, np.float64, jnp.float32):
        for name, function in FUNCTIONS.items():
            shape = jax.eval_shape(functools.partial(function, temperature=kind(0.5)), x).shape
            assert shape in ((), x.shape), name
            for wrong in (0.0, -1.0, np.nan, np.inf, 1e-40):
                with pytest.raises(ValueError, match=r"temperature must be one finite number > 0"):
                    function(x, temperature=kind(wrong))
    for kind in (np.int64, np.uint8, jnp.int32):
        assert smooth.soft_top_k(x, kind(2), axis=kind(0)).sum() == pytest.approx(2)
        assert smooth.soft_one_hot(x, axis=kind(0)).sum() == pytest.approx(1)


def test_single_items_and_empty_batches():
    alone = [
        (smooth.smooth_max, 3.0),
        (smooth.smooth_min, 3.0),
        (smooth.soft_one_hot, 1.0),
        (smooth.smooth_argmax, 0.0),
        (smooth.soft_rank, 1.0),
        *((functools.partial(smooth.soft_top_k, k=1, method=m), 1.0) for m in METHODS[:-1]),
    ]
    found = quick_jit(lambda x: [function(x) for function, _ in alone])(jnp.full((1, 1), 3.0))
    for y, (function, expected) in zip(found, alone, strict=True):
        np.testing.assert_array_equal(y.ravel(), [expected])
        for shape in ((0, 3), (2, 0, 1)):
            assert jax.eval_shape(function, jnp.zeros(shape)).shape in (shape, shape[:-1])


def test_no_items_and_no_classes():
    nothing = jnp.zeros((2, 0))
    np.testing.assert_array_equal(smooth.smooth_max(nothing), [-np.inf] * 2)
    np.testing.assert_array_equal(smooth.smooth_min(nothing), [np.inf] * 2)
    np.testing.assert_array_equal(smooth.multilabel_cross_entropy(nothing, nothing), [0, 0])
    labels = jnp.zeros(2, int)
    for function in (smooth.smooth_accuracy, functools.partial(smooth.smooth_f1, average="macro")):
        with pytest.raises(ValueError, match="at least one class"):
            function(nothing, labels)
        assert function(jnp.zeros((0, 3)), jnp.zeros(0, int)) == 0
    with pytest.raises(ValueError, match="at least 1 and at most 0"):
        smooth.soft_top_k(nothing, 1)
    with pytest.raises(ValueError, match="num_classes"):
        streaming_f1_init(0)


def test_where_must_be_a_mask():
    for where in ([1, 1, 0], np.ones(3), np.ones(2, bool), np.ones((2, 3), bool)):
        with pytest.raises(ValueError, match="where must be bool"):
            smooth.smooth_max(jnp.ones(3), where=where)
        with pytest.raises(ValueError, match="where must be bool"):
            smooth.smooth_f1(jnp.ones(3), jnp.ones(3, int), where=where)
    assert smooth.smooth_max(jnp.arange(3.0), where=[True, False, False]) == 0


@pytest.mark.parametrize("method", METHODS[:-1])
def test_sum_of_many_ties(method):
    # Some of the items tie for the last places, or all of them.
    count = 100_000
    for k in (10,) if method in ("gradient", "clipped") else (10, 500, count - 10):
        found = quick_jit(functools.partial(smooth.soft_top_k, k=k, method=method))
        for x in (np.zeros(count), np.append(np.zeros(count - 3), [1.0, 2.0, -1.0])):
            total = np.asarray(found(x.astype(np.float32)), np.float64).sum()
            assert total == pytest.approx(k, rel=1e-5)


def test_best_ranks_of_a_million_have_their_digits():
    best = 2.0 * np.array([3, 2, 1, 0.5], np.float32) + 10
    x = np.concatenate([best, np.zeros(10**6, np.float32)])
    ranks = quick_jit(smooth.soft_rank)(x)[:4]
    pairs = (best[None, :] - best[:, None]).astype(np.float64)
    expected = 0.5 + special.expit(pairs).sum(1) + 1e6 * special.expit(-best.astype(np.float64))
    np.testing.assert_allclose(ranks, expected, rtol=1e-5)


def test_derivative_of_ranks_in_the_temperature_beside_outliers():
    # Far out there the place x/τ itself has no digits.
    x = np.array([0.0, 1.0, 2.0, 1e8, 1e8 + 8, 1e8 + 24], np.float32)
    pairs = (x[None, :] - x[:, None]).astype(np.float64)
    weights = np.cos(np.arange(6.0))

    @quick_jit
    @jax.grad
    def slope(temperature):
        return jnp.dot(weights.astype(x.dtype), smooth.soft_rank(x, temperature=temperature))

    s = special.expit(pairs / 8)
    expected = weights @ (-s * (1 - s) * pairs / 64).sum(1)
    np.testing.assert_allclose(slope(np.float32(8)), expected, rtol=1e-4)
