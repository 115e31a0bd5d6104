"""Battery rows of `zoo.smooth`."""

import dataclasses
import functools

import jax.numpy as jnp

from tests.battery import BadInput, Row
from zoo import smooth
from zoo.smooth.hardening import harden
from zoo.smooth.logic import soft_xor
from zoo.smooth.metrics import Counts
from zoo.smooth.projections import project_permutahedron, project_simplex
from zoo.smooth.ranking import smooth_mrr, smooth_ndcg, smooth_spearman
from zoo.smooth.selection import soft_slice
from zoo.smooth.streaming import F1State, streaming_f1, streaming_f1_init

CLASSES = 3
ONES, LABELS = jnp.ones(3), jnp.ones(3, int)


def normal(generator, shape, dtype):
    return jnp.asarray(generator.normal(size=shape), dtype)


def items(generator, batch, dtype):
    return (normal(generator, (*batch, 5), dtype),)


def hard_and_soft(generator, batch, dtype):
    (soft,) = items(generator, batch, dtype)
    return jnp.round(soft), soft


def hard_soft_and_weight(generator, batch, dtype):
    return *hard_and_soft(generator, batch, dtype), jnp.asarray(0.25, jnp.float32)


def labels(generator, shape, classes=2):
    return jnp.asarray(generator.integers(0, classes, shape), jnp.int32)


def shares(generator, shape, dtype):
    return jnp.asarray(generator.uniform(0.05, 0.95, size=shape), dtype)


def binary(generator, batch, dtype):
    return shares(generator, batch, dtype), labels(generator, batch)


def classes(generator, batch, dtype):
    return shares(generator, (*batch, CLASSES), dtype), labels(generator, batch, CLASSES)


def scores(generator, batch, dtype):
    return normal(generator, batch, dtype), labels(generator, batch)


def many_labels(generator, batch, dtype):
    return normal(generator, (*batch, 4), dtype), labels(generator, (*batch, 4))


def two(generator, batch, dtype):
    return normal(generator, (*batch, 5), dtype), normal(generator, (*batch, 5), dtype)


def two_shares(generator, batch, dtype):
    return shares(generator, (*batch, 5), dtype), shares(generator, (*batch, 5), dtype)


def some_shares(generator, batch, dtype):
    return (shares(generator, (*batch, 5), dtype),)


def masked_items(generator, batch, dtype):
    mask = jnp.asarray(generator.random((*batch, 5)) < 0.7).at[..., -2:].set(True)
    return *items(generator, batch, dtype), mask


def masked_list(generator, batch, dtype):
    x, mask = masked_items(generator, batch, dtype)
    return x, labels(generator, (*batch, 5), 4).at[..., -1].set(1), mask


def with_bounds(generator, batch, dtype):
    low = jnp.asarray(-generator.uniform(size=5), dtype)
    return *items(generator, batch, dtype), low, low + jnp.asarray(1, dtype)


def choice(generator, batch, dtype):
    p = shares(generator, (*batch, 5), dtype)
    return p, *two(generator, batch, dtype)


def items_and_index(generator, batch, dtype):
    weights = generator.dirichlet(jnp.ones(5), (*batch, 3))
    return *items(generator, batch, dtype), jnp.asarray(weights, dtype)


def items_and_start(generator, batch, dtype):
    return *items(generator, batch, dtype), jnp.asarray(generator.dirichlet(jnp.ones(5)), dtype)


def stream(generator, batch, dtype):
    # A state of earlier batches, as float32 as the state is.
    counts = Counts(*jnp.asarray(generator.uniform(1, 3, 3), jnp.float32))
    return F1State(counts, jnp.asarray(8.0, jnp.float32)), *binary(generator, batch, dtype)


def bad_dtype(function, *arguments, name="x"):
    call = functools.partial(function, jnp.arange(3), *arguments)
    return BadInput("integers", call, TypeError, name, "floating-point", "int32")


def bad_temperature(function, *arguments):
    call = functools.partial(function, ONES, *arguments, temperature=0)
    return BadInput("temperature 0", call, ValueError, "temperature", "> 0", "got 0")


def bad_axis(function):
    call = functools.partial(function, ONES, axis=1)
    return BadInput("no such axis", call, ValueError, "axis", "an axis of", "got 1")


def bad_top_k(label, error, argument, expected, got, k=2, **options):
    call = functools.partial(smooth.soft_top_k, jnp.ones(4), k, **options)
    return BadInput(label, call, error, argument, expected, got)


def bad_metric(label, error, argument, expected, got, p=ONES, t=LABELS, **options):
    function = options.pop("function", smooth.smooth_f1)
    call = functools.partial(function, p, t, **options)
    return BadInput(label, call, error, argument, expected, got)


BAD_TOP_K = (
    bad_dtype(smooth.soft_top_k, 2),
    bad_temperature(smooth.soft_top_k, 2),
    bad_top_k("k = 0", ValueError, "k", "at least 1 and at most 4", "got 0", k=0),
    bad_top_k("k = 5", ValueError, "k", "at least 1 and at most 4", "got 5", k=5),
    bad_top_k("k a float", TypeError, "k", "integer", "got 2.0", k=2.0),
    bad_top_k("a method", ValueError, "method", "'gradient', 'thr", "got 'sort'", method="sort"),
    bad_top_k("no such axis", ValueError, "axis", "an axis of", "got 1", axis=1),
    bad_top_k("k = N", ValueError, "k", "less than the 4", "got 4", k=4, method="recursive"),
)
# The checks of the arguments are one for all metrics.
BAD_METRIC = (
    bad_dtype(smooth.smooth_f1, LABELS, name="probabilities"),
    bad_metric("average", ValueError, "average", "'macro', 'micro'", "got 'mean'", average="mean"),
    bad_metric("length", ValueError, "labels", r"\(3,\)", r"got \(4,\)", t=jnp.ones(4, int)),
    bad_metric("mask of numbers", ValueError, "where", "bool", "got float32", where=ONES),
)
BAD_MACRO = (
    bad_metric(
        "classes as floats",
        TypeError,
        "labels",
        "integers",
        "got float32",
        jnp.ones((3, 2)),
        ONES,
        average="macro",
    ),
    bad_metric("rank", ValueError, "prob", r"\[batch, classes\]", r"\[3\]", average="macro"),
)


def operator(function, *, bad=(), variant="", skip=(), **options):
    """A row of a function of one array of items."""
    return Row(
        name=f"zoo.smooth.{function.__name__}",
        variant=variant,
        function=functools.partial(function, **options),
        arguments=items,
        axes=(0,),
        pmap=function in (smooth.smooth_max, smooth.smooth_argmax),
        bad=(bad_dtype(function), bad_temperature(function), *bad) if not skip else (),
        skip=dict(skip),
    )


def metric(function, arguments, *, variant="", bad=(), extreme=0.005, skip=(), **options):
    # Sums of probabilities: 8 of the largest number must not overflow in float32, nor a product
    # with 2.
    return Row(
        name=f"zoo.smooth.{function.__name__}",
        variant=variant,
        function=functools.partial(function, **options),
        arguments=arguments,
        axes=(0, 0),
        out_axes=None,
        batch=(4,),
        axis_name=True,
        extreme=extreme,
        bad=bad,
        skip=dict(skip),
    )


def bad_relu():
    call = functools.partial(smooth.smooth_relu, ONES, kernel="cubic")
    return BadInput("a kernel", call, ValueError, "kernel", "'gaussian', 'square'", "got 'cubic'")


def bad_pair(function, *rest):
    call = functools.partial(function, jnp.arange(3), ONES, *rest)
    return (BadInput("another dtype", call, ValueError, "hard", "float32", "int32"),)


def masked(function, *, gradients_match_differences="", **options):
    """A row of a function of items of which some are masked."""

    def call(x, where):
        return function(x, where=where, **options)

    skip = dict.fromkeys(("finite_at_extremes", "shows_nan", "keeps_dtype"), "as without a mask")
    if gradients_match_differences:
        skip["gradients_match_differences"] = gradients_match_differences
    return Row(
        name=f"zoo.smooth.{function.__name__}",
        variant="masked",
        function=call,
        arguments=masked_items,
        axes=(0, 0),
        extreme_arguments=(),
        mask=(0, 1),
        skip=skip,
    )


def ranking(function, *, name, bad=(), **options):
    def call(scores, other, where):
        return function(scores, other, where=where, **options)

    return Row(
        name=f"zoo.smooth.ranking.{function.__name__}",
        variant=name,
        function=call,
        arguments=masked_list,
        axes=(0, 0, 0),
        mask=(0, 2),
        skip={"shows_nan": "the first entry may be masked: test_ranking"},
        bad=bad,
    )


def of_two(function, arguments=two, *, bad=(), module="", extreme=1.0, **fields):
    return Row(
        name=f"zoo.smooth.{module}{function.__name__}",
        function=function,
        arguments=arguments,
        axes=(0, 0),
        differentiable=(0, 1),
        extreme=extreme,
        bad=bad,
        **fields,
    )


def bad(label, function, error, argument, expected, got, *arguments, **options):
    call = functools.partial(function, *arguments, **options)
    return BadInput(label, call, error, argument, expected, got)


BAD_SORT = (
    bad("a mask", smooth.soft_sort, ValueError, "where", "bool", "float32", ONES, where=ONES),
    bad(
        "values",
        smooth.soft_sort,
        ValueError,
        "values",
        r"\(3,\)",
        r"\(2,\)",
        ONES,
        values=ONES[:2],
    ),
)
BAD_QUANTILE = (
    bad("q", smooth.soft_quantile, ValueError, "q", r"\[0, 1\]", "got 50", ONES, 50),
    bad("items", smooth.soft_quantile, ValueError, "x", "one item", r"\(0,\)", ONES[:0], 0.5),
    bad(
        "method",
        smooth.soft_quantile,
        ValueError,
        "method",
        "'lower'",
        "'up'",
        ONES,
        0,
        method="up",
    ),
)
STRAIGHT_THROUGH = {
    "gradients_match_differences": "its gradient is another one on purpose",
    "shows_nan": "the soft one counts in the gradient alone",
}

ROWS = [
    *(
        operator(function)
        for function in (
            smooth.smooth_max,
            smooth.smooth_min,
            smooth.smooth_abs,
            smooth.smooth_sign,
            smooth.smooth_step,
            smooth.smooth_floor,
            smooth.smooth_round,
        )
    ),
    operator(smooth.smooth_relu, variant="logistic", bad=(bad_relu(),)),
    operator(smooth.smooth_relu, variant="gaussian", kernel="gaussian"),
    operator(smooth.smooth_relu, variant="square", kernel="square"),
    *(
        operator(function, bad=(bad_axis(function),))
        for function in (smooth.soft_one_hot, smooth.smooth_argmax, smooth.soft_rank)
    ),
    *(
        Row(
            name="zoo.smooth.soft_top_k",
            variant=method,
            function=functools.partial(smooth.soft_top_k, k=2, method=method),
            arguments=items,
            axes=(0,),
            # Above, the shift by the smallest overflows.
            extreme=0.4 if method == "recursive" else 1.0,
            bad=BAD_TOP_K if method == "gradient" else (),
        )
        # Not sigmoid, which is the code of threshold with another form.
        for method in ("gradient", "threshold", "clipped", "recursive")
    ),
    Row(
        name="zoo.smooth.straight_through",
        function=smooth.straight_through,
        arguments=hard_and_soft,
        axes=(0, 0),
        differentiable=(0, 1),
        skip=STRAIGHT_THROUGH | {"shows_nan": "the value is the first argument's to the last bit"},
        bad=bad_pair(smooth.straight_through),
    ),
    Row(
        name="zoo.smooth.hardening.harden",
        function=harden,
        arguments=hard_soft_and_weight,
        axes=(0, 0, None),
        differentiable=(0, 1),
        skip=STRAIGHT_THROUGH,
        bad=bad_pair(harden, 0.5),
    ),
    operator(smooth.soft_sort, bad=(*BAD_SORT, bad_axis(smooth.soft_sort))),
    operator(smooth.soft_argsort),
    operator(smooth.soft_median),
    Row(
        name="zoo.smooth.soft_quantile",
        function=functools.partial(smooth.soft_quantile, q=0.3),
        arguments=items,
        axes=(0,),
        bad=BAD_QUANTILE,
    ),
    masked(smooth.soft_sort, gradients_match_differences="inf where there is no item"),
    masked(smooth.soft_argsort, descending=True),
    masked(smooth.soft_median),
    masked(smooth.soft_rank),
    masked(smooth.soft_top_k, k=2),
    Row(
        name="zoo.smooth.smooth_clip",
        function=smooth.smooth_clip,
        arguments=with_bounds,
        axes=(0, None, None),
        differentiable=(0, 1, 2),
        extreme_arguments=(0,),
        bad=(
            bad(
                "kernel",
                smooth.smooth_clip,
                ValueError,
                "kernel",
                "'square'",
                "'x'",
                ONES,
                0,
                1,
                kernel="x",
            ),
            bad(
                "bound",
                smooth.smooth_clip,
                ValueError,
                "low",
                r"\(3,\)",
                r"\(2,\)",
                ONES,
                ONES[:2],
                1,
            ),
        ),
    ),
    of_two(
        smooth.soft_greater,
        bad=(
            bad(
                "shapes",
                smooth.soft_greater,
                ValueError,
                "x and y",
                "broadcast",
                r"\(2,\)",
                ONES,
                ONES[:2],
            ),
            bad("two integers", smooth.soft_greater, TypeError, "x", "floating", "int32", 1, 2),
        ),
    ),
    of_two(smooth.soft_less),
    of_two(
        smooth.soft_equal,
        bad=(
            bad(
                "tolerance",
                smooth.soft_equal,
                ValueError,
                "tolerance",
                "≥ 0",
                "-1",
                ONES,
                ONES,
                tolerance=-1,
            ),
        ),
    ),
    *(
        of_two(function, two_shares, module=module, extreme=0.01 / 3e38, extreme_arguments=())
        for function, module in (
            (smooth.soft_and, ""),
            (smooth.soft_or, ""),
            (soft_xor, "logic."),
        )
    ),
    *(
        Row(
            name=f"zoo.smooth.{function.__name__}",
            function=function,
            arguments=some_shares,
            axes=(0,),
            extreme_arguments=(),
            bad=(bad_dtype(function, name="p"),),
        )
        for function in (smooth.soft_not, smooth.soft_all, smooth.soft_any)
    ),
    Row(
        name="zoo.smooth.soft_where",
        function=smooth.soft_where,
        arguments=choice,
        axes=(0, 0, 0),
        differentiable=(0, 1, 2),
        extreme=0.4,
        extreme_arguments=(1, 2),
        bad=(bad_dtype(smooth.soft_where, ONES, ONES, name="p"),),
    ),
    of_two(
        smooth.soft_take,
        items_and_index,
        extreme=0.1,
        extreme_arguments=(0,),
        bad=(
            bad(
                "items", smooth.soft_take, ValueError, "weights", r"3\]", r"\(2,\)", ONES, ONES[:2]
            ),
        ),
    ),
    Row(
        name="zoo.smooth.selection.soft_slice",
        function=functools.partial(soft_slice, size=2),
        arguments=items_and_start,
        axes=(0, None),
        differentiable=(0, 1),
        extreme=0.1,
        extreme_arguments=(0,),
        bad=(bad("size", soft_slice, ValueError, "size", "at most 3", "got 4", ONES, ONES, 4),),
    ),
    dataclasses.replace(
        operator(project_simplex, bad=(bad_axis(project_simplex),)),
        name="zoo.smooth.projections.project_simplex",
    ),
    of_two(
        project_permutahedron,
        module="projections.",
        extreme=0.1,
        bad=(
            bad_dtype(project_permutahedron, ONES),
            bad(
                "axis",
                project_permutahedron,
                ValueError,
                "axis",
                "an axis",
                "got 1",
                ONES,
                ONES,
                axis=1,
            ),
        ),
    ),
    ranking(
        smooth_ndcg,
        name="",
        bad=(
            bad("k", smooth_ndcg, ValueError, "k", "at least 1", "got 0", ONES, ONES, k=0),
            bad("gain", smooth_ndcg, ValueError, "gain", "'linear'", "'x'", ONES, ONES, gain="x"),
            bad(
                "shape", smooth_ndcg, ValueError, "relevance", r"\(3,\)", r"\(2,\)", ONES, ONES[:2]
            ),
        ),
    ),
    ranking(smooth_ndcg, name="two places", k=2, gain="linear"),
    ranking(smooth_mrr, name=""),
    ranking(smooth_spearman, name=""),
    metric(
        smooth.smooth_accuracy,
        classes,
        extreme=0.1,
        skip={"shows_nan": "only the probability of the label counts"},
    ),
    metric(smooth.smooth_precision, binary),
    metric(smooth.smooth_recall, binary),
    metric(smooth.smooth_f1, binary, bad=BAD_METRIC),
    metric(smooth.smooth_f1, classes, variant="macro", average="macro", bad=BAD_MACRO),
    metric(
        smooth.smooth_auc,
        scores,
        extreme=1.0,
        bad=(
            bad_dtype(smooth.smooth_auc, LABELS, name="scores"),
            bad_temperature(smooth.smooth_auc, LABELS),
        ),
    ),
    Row(
        name="zoo.smooth.multilabel_cross_entropy",
        function=smooth.multilabel_cross_entropy,
        arguments=many_labels,
        axes=(0, 0),
        extreme=0.4,  # two losses are added
        bad=(
            bad_metric(
                "labels of another shape",
                ValueError,
                "labels",
                r"\(2, 3\)",
                r"got \(3,\)",
                jnp.ones((2, 3)),
                function=smooth.multilabel_cross_entropy,
            ),
        ),
    ),
    Row(
        name="zoo.smooth.streaming.streaming_f1",
        function=streaming_f1,
        arguments=stream,
        axes=(None, 0, 0),
        out_axes=None,
        batch=(4,),
        differentiable=(1,),
        state=(0, 0),
        wide=(F1State(Counts(True, True, True), True), False),
        axis_name=True,
        extreme=0.005,
        skip={
            "gradients_match_differences": "the gradient is that of all samples: test_streaming",
            "keeps_dtype": "the state is float32 whatever the probabilities are",
        },
        bad=(
            BadInput(
                "a decay above 1",
                lambda: streaming_f1(streaming_f1_init(), ONES, LABELS, decay=1.5),
                ValueError,
                argument="decay",
                expected="≤ 1",
                got="got 1.5",
            ),
            BadInput(
                "a state of another number of classes",
                lambda: streaming_f1(streaming_f1_init(2), ONES, LABELS),
                ValueError,
                argument="state",
                expected=r"shape \(\)",
                got=r"\(2,\)",
            ),
        ),
    ),
]

EXEMPT = {}
