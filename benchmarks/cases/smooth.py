"""Cases of `zoo.smooth`: top-k, ranks, elementwise operators, metrics.

A gradient case is a weighted sum of the outputs and its gradient with respect to x. softjax is a
rival in speed wherever it has an operator for the same task; only where its formula is ours are the
numbers compared too (its ranks, maximum and top-k are other functions).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.case import Case, Floor, Program
from zoo import smooth
from zoo.extras import require

Function = Callable[..., jax.Array]
TEMPERATURE = 0.1


def softjax() -> Any:
    return require("softjax", "bench")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def forward(make: Callable[[], Function], *, rows: int, items: int, **options: int) -> Program:
    """``make`` imports what the program needs and returns x -> y."""
    return functools.partial(make(), **options), (normal(0, rows, items),)


def gradient(make: Callable[[], Function], *, rows: int, items: int, **options: int) -> Program:
    function = functools.partial(make(), **options)
    x = normal(0, rows, items)
    weights = normal(1, *jax.eval_shape(function, x).shape)

    def loss(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.vdot(function(x), weights)

    return jax.value_and_grad(loss), (x, weights)


def entries(rows: int, items: int, **_: int) -> int:
    return rows * items


def at_temperature(function: Function, **options: Any) -> Callable[[], Function]:
    return lambda: functools.partial(function, temperature=TEMPERATURE, **options)


def by_softjax(call: Callable[..., jax.Array]) -> Callable[[], Function]:
    """``call(softjax, x, **options)`` as a program."""

    def make() -> Function:
        return functools.partial(call, softjax())

    return make


def case(
    name: str,
    ours: Callable[[], Function],
    rivals: dict[str, Callable[[], Function]],
    *,
    build: Callable[..., Program] = gradient,
    **options: Any,
) -> Case:
    """A case of a function of one array; every entry costs an exponential and some sums."""
    operations, arrays = (10, 3) if build is gradient else (5, 2)
    return Case(
        name=f"smooth.{name}" + (" gradient" if build is gradient else ""),
        build=functools.partial(build, ours),
        rivals={rival: functools.partial(build, make) for rival, make in rivals.items()},
        count=entries,
        unit="entries",
        floor=lambda rows, items, **_: Floor(operations * rows * items, 4 * arrays * rows * items),
        **options,
    )


# Top-k: the least any method must do is to weigh every entry.

TOP_K_SIZES = {
    "few": {"rows": 1, "items": 10_000, "k": 10},
    "many": {"rows": 1, "items": 10_000, "k": 100},
    "experts": {"rows": 4096, "items": 64, "k": 8},
}


def log_space_top_k(x: jax.Array, *, k: int) -> jax.Array:
    """The subset law by its recursion in logarithms, one step an item, differentiated."""

    def log_sum(x: jax.Array) -> jax.Array:
        def step(sums: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
            shifted = jnp.concatenate([jnp.full(1, -1e30), sums[:-1]])
            return jnp.logaddexp(sums, shifted + value), None

        start = jnp.full(k + 1, -1e30).at[0].set(0)
        return lax.scan(step, start, x)[0][-1]

    return jax.vmap(jax.grad(log_sum))(x / TEMPERATURE)


def softjax_top_k(method: str) -> Callable[[], Function]:
    def call(library: Any, x: jax.Array, *, k: int) -> jax.Array:
        _, indices = library.top_k(x, k, softness=TEMPERATURE, method=method, standardize=False)
        return jnp.sum(indices, axis=-2)

    return by_softjax(call)


def top_k_case(method: str, build: Callable[..., Program]) -> Case:
    rivals = {name: softjax_top_k(name) for name in ("softsort", "neuralsort")}
    rivals = {f"softjax {name}": make for name, make in rivals.items()}
    equal = ()
    if method == "gradient":
        # Compared on the short rows: on the long ones its float32 is off by 4e-4.
        rivals["recursion in logarithms"] = lambda: log_space_top_k
        equal = ("recursion in logarithms",)
    return case(
        f"soft_top_k {method}",
        at_temperature(smooth.soft_top_k, method=method),
        rivals,
        build=build,
        sizes=TOP_K_SIZES,
        small=("experts", "few"),
        equal=equal,
    )


# Ranks.

RANK_SIZES = {
    "short": {"rows": 1024, "items": 64},
    "long": {"rows": 1, "items": 10_000},
}


def all_pairs_rank(x: jax.Array) -> jax.Array:
    pairs = jax.nn.sigmoid((x[:, None, :] - x[:, :, None]) / TEMPERATURE)
    return 0.5 + jnp.sum(pairs, axis=-1)


def softjax_rank(method: str) -> Callable[[], Function]:
    return by_softjax(
        lambda library, x: library.rank(
            x, axis=-1, softness=TEMPERATURE, method=method, standardize=False
        )
    )


def rank_case(build: Callable[..., Program]) -> Case:
    methods = ("fast_soft_sort", "softsort", "neuralsort")
    return case(
        "soft_rank",
        at_temperature(smooth.soft_rank),
        {
            "all pairs": lambda: all_pairs_rank,
            **{f"softjax {method}": softjax_rank(method) for method in methods},
        },
        build=build,
        sizes=RANK_SIZES,
        small=("short", "long"),
        equal=("all pairs",),
    )


# Elementwise and along one axis.

SIZES = {"narrow": {"rows": 4096, "items": 64}, "wide": {"rows": 1024, "items": 16_384}}


def plain(
    name: str,
    ours: Callable[[], Function],
    *,
    naive: Function | None = None,
    rival: Callable[..., jax.Array] | None = None,
    same: bool = True,
) -> Case:
    """Against the usual JAX formula and, ``same`` or not, softjax."""
    rivals, equal = {}, []
    if naive is not None:
        rivals["naive JAX"] = lambda: naive
        equal.append("naive JAX")
    if rival is not None:
        rivals["softjax"] = by_softjax(rival)
        equal += ["softjax"] if same else []
    return case(name, ours, rivals, sizes=SIZES, small=("narrow",), equal=tuple(equal))


T = TEMPERATURE
PLAIN = [
    plain(
        "smooth_max",
        at_temperature(smooth.smooth_max),
        naive=lambda x: T * jax.nn.logsumexp(x / T, axis=-1),
        rival=lambda sj, x: sj.max(x, axis=-1, softness=T, standardize=False),
        same=False,
    ),
    plain(
        "smooth_min",
        at_temperature(smooth.smooth_min),
        naive=lambda x: -T * jax.nn.logsumexp(-x / T, axis=-1),
        rival=lambda sj, x: sj.min(x, axis=-1, softness=T, standardize=False),
        same=False,
    ),
    plain(
        "smooth_abs",
        at_temperature(smooth.smooth_abs),
        naive=lambda x: T * jnp.logaddexp(x / T, -x / T),
        rival=lambda sj, x: sj.abs(x, softness=T),
        same=False,
    ),
    plain(
        "smooth_sign",
        at_temperature(smooth.smooth_sign),
        naive=lambda x: jnp.tanh(x / T),
        rival=lambda sj, x: sj.sign(x, softness=T / 2),
    ),
    plain(
        "smooth_step",
        at_temperature(smooth.smooth_step),
        naive=lambda x: jax.nn.sigmoid(x / T),
        rival=lambda sj, x: sj.heaviside(x, softness=T),
    ),
    plain(
        "smooth_relu logistic",
        at_temperature(smooth.smooth_relu),
        naive=lambda x: T * jax.nn.softplus(x / T),
        rival=lambda sj, x: sj.relu(x, softness=T),
    ),
    plain(
        "smooth_relu gaussian",
        at_temperature(smooth.smooth_relu, kernel="gaussian"),
        naive=lambda x: x * jax.scipy.special.ndtr(x / T) + T * jax.scipy.stats.norm.pdf(x / T),
    ),
    plain(
        "smooth_relu square",
        at_temperature(smooth.smooth_relu, kernel="square"),
        naive=lambda x: T * jax.nn.squareplus(x / T, 4 * np.log(2) ** 2),
    ),
    plain("smooth_floor", at_temperature(smooth.smooth_floor)),
    plain(
        "smooth_round",
        at_temperature(smooth.smooth_round),
        rival=lambda sj, x: sj.round(x, softness=T),
    ),
    plain(
        "soft_one_hot",
        at_temperature(smooth.soft_one_hot),
        naive=lambda x: jax.nn.softmax(x / T, axis=-1),
        rival=lambda sj, x: sj.argmax(x, axis=-1, softness=T, standardize=False),
    ),
    plain(
        "smooth_argmax",
        at_temperature(smooth.smooth_argmax),
        naive=lambda x: jax.nn.softmax(x / T, axis=-1) @ jnp.arange(x.shape[-1], dtype=x.dtype),
    ),
    plain(
        "straight_through",
        lambda: lambda x: smooth.straight_through(jnp.sign(x), jnp.tanh(x)),
        naive=lambda x: jnp.tanh(x) + lax.stop_gradient(jnp.sign(x) - jnp.tanh(x)),
    ),
    plain(
        "harden",
        lambda: lambda x: smooth.harden(jnp.sign(x), jnp.tanh(x), 0.5),
        naive=lambda x: jnp.tanh(x) + lax.stop_gradient(0.5 * (jnp.sign(x) - jnp.tanh(x))),
    ),
]


# Metrics: probabilities or scores of fixed labels.


def metric(
    name: str,
    ours: Callable[..., jax.Array],
    naive: Callable[..., jax.Array],
    *,
    sizes: dict[str, dict[str, int]],
    shaped: bool = False,
) -> Case:
    """``ours(x, labels)`` with one label a row, or with ``shaped`` one an entry."""

    def build(function: Callable[..., jax.Array], *, rows: int, items: int) -> Program:
        x = 1 / (1 + np.exp(-normal(0, rows, items)))
        shape, largest = ((rows, items), 2) if shaped else ((rows,), items)
        labels = np.random.default_rng(1).integers(0, largest, shape).astype(np.int32)
        return jax.value_and_grad(lambda x, t: jnp.sum(function(x, t))), (x, labels)

    return Case(
        name=f"smooth.{name} gradient",
        build=functools.partial(build, ours),
        rivals={"naive JAX": functools.partial(build, naive)},
        sizes=sizes,
        small=tuple(sizes)[:1],
        equal=("naive JAX",),
        count=entries,
        unit="entries",
        floor=lambda rows, items: Floor(6 * rows * items, 8 * rows * items),
    )


def naive_accuracy(p: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(p * jax.nn.one_hot(t, p.shape[-1]), axis=-1))


def naive_f1(p: jax.Array, t: jax.Array) -> jax.Array:
    t = jax.nn.one_hot(t, p.shape[-1])
    return jnp.mean(2 * jnp.sum(t * p, axis=0) / jnp.sum(t + p, axis=0))


def naive_precision(p: jax.Array, t: jax.Array) -> jax.Array:
    t = jax.nn.one_hot(t, p.shape[-1])
    return jnp.mean(jnp.sum(t * p, axis=0) / jnp.sum(p, axis=0))


def naive_recall(p: jax.Array, t: jax.Array) -> jax.Array:
    t = jax.nn.one_hot(t, p.shape[-1])
    return jnp.mean(jnp.sum(t * p, axis=0) / jnp.sum(t, axis=0))


def naive_auc(x: jax.Array, t: jax.Array) -> jax.Array:
    x, t = x[:, 0], t[:, 0].astype(x.dtype)
    won = jax.nn.sigmoid((x[:, None] - x[None, :]) / TEMPERATURE)
    return t @ won @ (1 - t) / (jnp.sum(t) * jnp.sum(1 - t))


def our_auc(x: jax.Array, t: jax.Array) -> jax.Array:
    return smooth.smooth_auc(x[:, 0], t[:, 0], temperature=TEMPERATURE)


def naive_multilabel(x: jax.Array, t: jax.Array) -> jax.Array:
    nothing = jnp.zeros((len(x), 1))
    absent = jnp.concatenate([nothing, jnp.where(t == 1, -1e12, x)], axis=-1)
    present = jnp.concatenate([nothing, jnp.where(t == 1, -x, -1e12)], axis=-1)
    return jax.nn.logsumexp(absent, axis=-1) + jax.nn.logsumexp(present, axis=-1)


def our_stream(p: jax.Array, t: jax.Array) -> jax.Array:
    state = smooth.streaming_f1_init(p.shape[-1])
    return smooth.streaming_f1(state, p, t, decay=0.0, average="macro")[1]


macro = functools.partial(functools.partial, average="macro")
METRIC_SIZES = {"small": {"rows": 1024, "items": 100}, "large": {"rows": 65_536, "items": 1000}}
METRICS = [
    metric("smooth_accuracy", smooth.smooth_accuracy, naive_accuracy, sizes=METRIC_SIZES),
    metric("smooth_precision", macro(smooth.smooth_precision), naive_precision, sizes=METRIC_SIZES),
    metric("smooth_recall", macro(smooth.smooth_recall), naive_recall, sizes=METRIC_SIZES),
    metric("smooth_f1", macro(smooth.smooth_f1), naive_f1, sizes=METRIC_SIZES),
    metric("streaming_f1", our_stream, naive_f1, sizes=METRIC_SIZES),
    metric(
        "multilabel_cross_entropy",
        smooth.multilabel_cross_entropy,
        naive_multilabel,
        sizes=METRIC_SIZES,
        shaped=True,
    ),
    metric(
        "smooth_auc",
        our_auc,
        naive_auc,
        sizes={"small": {"rows": 1024, "items": 1}, "large": {"rows": 10_000, "items": 1}},
        shaped=True,
    ),
]

CASES = [
    *(
        top_k_case(method, build)
        for method in ("gradient", "threshold", "sigmoid", "clipped", "recursive")
        for build in (forward, gradient)
    ),
    *(rank_case(build) for build in (forward, gradient)),
    *PLAIN,
    *METRICS,
]
