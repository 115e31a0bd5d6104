"""Cases of `zoo.smooth`: top-k, ranks, elementwise operators, metrics.

A gradient case is a weighted sum of the outputs and its gradient with respect to x. softjax is a
rival in speed wherever it has an operator for the same task; only where its formula is ours are the
numbers compared too (its ranks, maximum and top-k are other functions).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import smooth
from zoo.extras import require
from zoo.smooth.hardening import harden
from zoo.smooth.streaming import streaming_f1, streaming_f1_init

from ..case import Case, Floor, forward_and_gradient, make_case, normal

Function = Callable[..., jax.Array]
T = 0.1  # temperature


def softjax() -> Any:
    return require("softjax", "bench")


def numbers(*, rows: int, items: int, **_: int) -> list[np.ndarray]:
    return [normal(0, rows, items)]


FIELDS: dict[str, Any] = {"count": lambda rows, items, **_: rows * items, "unit": "entries"}


# Elementwise and along one axis.


class Operator(NamedTuple):
    """The usual JAX formula for an operator and softjax's, of x and the temperature."""

    naive: Function | None = None
    softjax: Function | None = None  # of the library too
    same: bool = True  # softjax's formula is ours
    own: Function | None = None  # ours, if not the function of the name before the space


ALONG = {"axis": -1, "standardize": False}
OPERATORS = {
    "smooth_max": Operator(
        lambda x, t: t * jax.nn.logsumexp(x / t, axis=-1),
        lambda sj, x, t: sj.max(x, softness=t, **ALONG),
        same=False,
    ),
    "smooth_min": Operator(
        lambda x, t: -t * jax.nn.logsumexp(-x / t, axis=-1),
        lambda sj, x, t: sj.min(x, softness=t, **ALONG),
        same=False,
    ),
    "smooth_abs": Operator(
        lambda x, t: t * jnp.logaddexp(x / t, -x / t),
        lambda sj, x, t: sj.abs(x, softness=t),
        same=False,
    ),
    "smooth_sign": Operator(
        lambda x, t: jnp.tanh(x / t),
        lambda sj, x, t: sj.sign(x, softness=t / 2),
    ),
    "smooth_step": Operator(
        lambda x, t: jax.nn.sigmoid(x / t),
        lambda sj, x, t: sj.heaviside(x, softness=t),
    ),
    "smooth_relu logistic": Operator(
        lambda x, t: t * jax.nn.softplus(x / t),
        lambda sj, x, t: sj.relu(x, softness=t),
    ),
    "smooth_relu gaussian": Operator(
        lambda x, t: x * jax.scipy.special.ndtr(x / t) + t * jax.scipy.stats.norm.pdf(x / t),
        own=lambda x, t: smooth.smooth_relu(x, temperature=t, kernel="gaussian"),
    ),
    "smooth_relu square": Operator(
        lambda x, t: t * jax.nn.squareplus(x / t, 4 * np.log(2) ** 2),
        own=lambda x, t: smooth.smooth_relu(x, temperature=t, kernel="square"),
    ),
    "smooth_floor": Operator(),
    "smooth_round": Operator(softjax=lambda sj, x, t: sj.round(x, softness=t)),
    "soft_one_hot": Operator(
        lambda x, t: jax.nn.softmax(x / t, axis=-1),
        lambda sj, x, t: sj.argmax(x, softness=t, **ALONG),
    ),
    "smooth_argmax": Operator(
        lambda x, t: jax.nn.softmax(x / t, axis=-1) @ jnp.arange(x.shape[-1], dtype=x.dtype),
    ),
    "straight_through": Operator(
        lambda x, t: jnp.tanh(x) + lax.stop_gradient(jnp.sign(x) - jnp.tanh(x)),
        own=lambda x, t: smooth.straight_through(jnp.sign(x), jnp.tanh(x)),
    ),
    "harden": Operator(
        lambda x, t: jnp.tanh(x) + lax.stop_gradient(0.5 * (jnp.sign(x) - jnp.tanh(x))),
        own=lambda x, t: harden(jnp.sign(x), jnp.tanh(x), 0.5),
    ),
}


def our_operator(name: str, x: jax.Array, t: float) -> jax.Array:
    """Ours, of x and the temperature."""
    own = OPERATORS[name].own
    return own(x, t) if own else getattr(smooth, name.split()[0])(x, temperature=t)


def operator_case(name: str, operator: Operator) -> Case:
    rivals, equal = {}, []
    if operator.naive is not None:
        rivals["naive JAX"] = functools.partial(operator.naive, t=T)
        equal.append("naive JAX")
    if operator.softjax is not None:
        rivals["softjax"] = lambda x: operator.softjax(softjax(), x, T)
        equal += ["softjax"] * operator.same
    return make_case(
        f"smooth.{name}",
        functools.partial(our_operator, name, t=T),
        rivals,
        numbers,
        gradient=True,
        sizes={"narrow": {"rows": 4096, "items": 64}, "wide": {"rows": 1024, "items": 16_384}},
        equal=tuple(equal),
        **FIELDS,
    )


# Top-k and ranks.


def log_space_top_k(x: jax.Array, *, k: int) -> jax.Array:
    """The distribution of subsets by its recursion in logarithms, one step per item."""

    def log_sum(x: jax.Array) -> jax.Array:
        def step(sums: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
            before = jnp.concatenate([jnp.full(1, -1e30), sums[:-1]])
            return jnp.logaddexp(sums, before + value), None

        start = jnp.full(k + 1, -1e30).at[0].set(0)
        return lax.scan(step, start, x)[0][-1]

    return jax.vmap(jax.grad(log_sum))(x / T)


def softjax_top_k(method: str, x: jax.Array, *, k: int, t: float = T) -> jax.Array:
    _, indices = softjax().top_k(x, k, softness=t, method=method, standardize=False)
    return jnp.sum(indices, axis=-2)


def top_k_cases(method: str) -> list[Case]:
    names = ("softsort", "neuralsort")
    rivals = {f"softjax {name}": functools.partial(softjax_top_k, name) for name in names}
    options: dict[str, Any] = {"equal": ()}
    if method == "gradient":
        # Compared on the short rows: on the long ones its float32 is off by 4e-4.
        rivals["recursion in logarithms"] = log_space_top_k
        options["equal"] = ("recursion in logarithms",)
        # The least any method must do is to weigh every entry.
        options["floor"] = lambda rows, items, k: Floor(10 * rows * items, 12 * rows * items)
    return forward_and_gradient(
        f"smooth.soft_top_k {method}",
        functools.partial(smooth.soft_top_k, temperature=T, method=method),
        rivals,
        numbers,
        options=("k",),
        sizes={
            "few": {"rows": 1, "items": 10_000, "k": 10},
            "many": {"rows": 1, "items": 10_000, "k": 100},
            "experts": {"rows": 4096, "items": 64, "k": 8},
        },
        small=("experts", "few"),
        **options,
        **FIELDS,
    )


def all_pairs_rank(x: jax.Array) -> jax.Array:
    pairs = jax.nn.sigmoid((x[:, None, :] - x[:, :, None]) / T)
    return 0.5 + jnp.sum(pairs, axis=-1)


def softjax_rank(method: str, x: jax.Array, t: float = T) -> jax.Array:
    return softjax().rank(x, softness=t, method=method, **ALONG)


SOFTJAX_RANKS = {
    f"softjax {method}": functools.partial(softjax_rank, method)
    for method in ("fast_soft_sort", "softsort", "neuralsort")
}


# Sorting and comparisons, beside softjax's fastest methods in one direction and in the other.

ORDERED = {"short": {"rows": 4096, "items": 64}, "long": {"rows": 1, "items": 10_000}}
SOFTJAX_SORTS = {
    "softjax sorting_network": {"method": "sorting_network"},
    "softjax fast_soft_sort": {"method": "fast_soft_sort", "mode": "c0"},
}


def naive_quantile(x: jax.Array) -> jax.Array:
    low, high = jnp.split(jnp.quantile(x, jnp.array([0.25, 0.75]), axis=-1, method="lower"), 2)
    weights = (jax.nn.softmax(-jnp.abs(edge[0][:, None] - x) / T, axis=-1) for edge in (low, high))
    return jnp.stack([jnp.sum(w * x, axis=-1) for w in weights])


def softjax_sorted(name: str, options: dict[str, str], x: jax.Array, **more: Any) -> jax.Array:
    return getattr(softjax(), name)(x, softness=T, **ALONG, **options, **more)


def ordered_case(name: str, ours: Function, rivals: dict[str, Function], equal: str) -> list[Case]:
    return forward_and_gradient(
        f"smooth.{name}",
        ours,
        rivals,
        numbers,
        sizes=ORDERED,
        small=("short", "long"),
        equal=(equal,),
        **FIELDS,
    )


def softjax_sorts(name: str, **more: Any) -> dict[str, Function]:
    return {
        rival: functools.partial(softjax_sorted, name, options, **more)
        for rival, options in SOFTJAX_SORTS.items()
    }


QUARTILES = {"method": "lower"}
EDGE = 0.25  # what is compared with; clipped to ± it
ORDERED_CASES = [
    *ordered_case(
        "soft_sort",
        functools.partial(smooth.soft_sort, temperature=T),
        {
            "softjax softsort": functools.partial(softjax_sorted, "sort", {"method": "softsort"}),
            **softjax_sorts("sort"),
        },
        "softjax softsort",  # the same formula
    ),
    *ordered_case(
        "soft_quantile",
        lambda x: smooth.soft_quantile(x, jnp.array([0.25, 0.75]), temperature=T, **QUARTILES),
        {
            "naive JAX": naive_quantile,
            **softjax_sorts("quantile", q=np.float32([0.25, 0.75]), quantile_method="lower"),
        },
        "naive JAX",
    ),
    *ordered_case(
        "soft_greater",
        lambda x: smooth.soft_greater(x, EDGE, temperature=T),
        {
            "naive JAX": lambda x: jax.nn.sigmoid((x - EDGE) / T),
            "softjax": lambda x: softjax().greater(x, EDGE, softness=T),
        },
        "softjax",
    ),
    *ordered_case(
        "soft_equal",
        lambda x: smooth.soft_equal(x, EDGE, temperature=T),
        {
            "naive JAX": lambda x: 1 - jnp.tanh((x - EDGE) / (2 * T)) ** 2,
            "softjax": lambda x: softjax().equal(x, jnp.full_like(x, EDGE), softness=T),
        },
        "naive JAX",
    ),
    *ordered_case(
        "smooth_clip",
        lambda x: smooth.smooth_clip(x, -EDGE, EDGE, temperature=T),
        {
            "naive JAX": lambda x: (
                T * (jax.nn.softplus((x + EDGE) / T) - jax.nn.softplus((x - EDGE) / T)) - EDGE
            ),
            "softjax": lambda x: softjax().clip(x, -EDGE, EDGE, softness=T),
        },
        "softjax",
    ),
]


# Metrics: probabilities or scores of fixed labels.


def per_row(*, rows: int, items: int) -> list[np.ndarray]:
    """Probabilities, and a label per row."""
    labels = np.random.default_rng(1).integers(0, items, rows).astype(np.int32)
    return [1 / (1 + np.exp(-normal(0, rows, items))), labels]


def per_entry(*, rows: int, items: int) -> list[np.ndarray]:
    """Probabilities, and a label 0 or 1 per entry."""
    labels = np.random.default_rng(1).integers(0, 2, (rows, items)).astype(np.int32)
    return [1 / (1 + np.exp(-normal(0, rows, items))), labels]


def naive_ratio(numerator: Callable[..., Any], denominator: Callable[..., Any]) -> Function:
    """The mean over classes of a ratio of sums over the batch."""

    def function(p: jax.Array, t: jax.Array) -> jax.Array:
        t = jax.nn.one_hot(t, p.shape[-1])
        return jnp.mean(jnp.sum(numerator(p, t), axis=0) / jnp.sum(denominator(p, t), axis=0))

    return function


def naive_accuracy(p: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(p * jax.nn.one_hot(t, p.shape[-1]), axis=-1))


def naive_auc(x: jax.Array, t: jax.Array) -> jax.Array:
    x, t = x[:, 0], t[:, 0].astype(x.dtype)
    won = jax.nn.sigmoid((x[:, None] - x[None, :]) / T)
    return t @ won @ (1 - t) / (jnp.sum(t) * jnp.sum(1 - t))


def our_auc(x: jax.Array, t: jax.Array) -> jax.Array:
    return smooth.smooth_auc(x[:, 0], t[:, 0], temperature=T)


def naive_multilabel(x: jax.Array, t: jax.Array) -> jax.Array:
    nothing = jnp.zeros((len(x), 1))
    absent = jnp.concatenate([nothing, jnp.where(t == 1, -1e12, x)], axis=-1)
    present = jnp.concatenate([nothing, jnp.where(t == 1, -x, -1e12)], axis=-1)
    return jax.nn.logsumexp(absent, axis=-1) + jax.nn.logsumexp(present, axis=-1)


def our_stream(p: jax.Array, t: jax.Array) -> jax.Array:
    state = streaming_f1_init(p.shape[-1])
    return streaming_f1(state, p, t, decay=0.0, average="macro")[1]


macro = functools.partial(functools.partial, average="macro")
naive_f1 = naive_ratio(lambda p, t: 2 * t * p, lambda p, t: t + p)
naive_precision = naive_ratio(lambda p, t: t * p, lambda p, t: p)
naive_recall = naive_ratio(lambda p, t: t * p, lambda p, t: t)
LABELS = {"small": {"rows": 1024, "items": 100}, "large": {"rows": 65_536, "items": 1000}}
SCORES = {"small": {"rows": 1024, "items": 1}, "large": {"rows": 10_000, "items": 1}}
METRICS: dict[str, tuple[Function, Function, Any, Any]] = {
    "smooth_accuracy": (smooth.smooth_accuracy, naive_accuracy, per_row, LABELS),
    "smooth_precision": (macro(smooth.smooth_precision), naive_precision, per_row, LABELS),
    "smooth_recall": (macro(smooth.smooth_recall), naive_recall, per_row, LABELS),
    "smooth_f1": (macro(smooth.smooth_f1), naive_f1, per_row, LABELS),
    "streaming_f1": (our_stream, naive_f1, per_row, LABELS),
    "multilabel_cross_entropy": (
        smooth.multilabel_cross_entropy,
        naive_multilabel,
        per_entry,
        LABELS,
    ),
    "smooth_auc": (our_auc, naive_auc, per_entry, SCORES),
}


def metric_case(name: str, ours: Function, naive: Function, inputs: Any, sizes: Any) -> Case:
    rivals = {"naive JAX": naive}
    return make_case(f"smooth.{name}", ours, rivals, inputs, gradient=True, sizes=sizes, **FIELDS)


CASES = [
    *(
        case
        for method in ("gradient", "threshold", "sigmoid", "clipped", "recursive")
        for case in top_k_cases(method)
    ),
    *forward_and_gradient(
        "smooth.soft_rank",
        functools.partial(smooth.soft_rank, temperature=T),
        {"all pairs": all_pairs_rank, **SOFTJAX_RANKS},
        numbers,
        sizes={"short": {"rows": 1024, "items": 64}, "long": {"rows": 1, "items": 10_000}},
        small=("short", "long"),
        equal=("all pairs",),
        **FIELDS,
    ),
    *ORDERED_CASES,
    *(operator_case(name, operator) for name, operator in OPERATORS.items()),
    *(metric_case(name, *row) for name, row in METRICS.items()),
]
