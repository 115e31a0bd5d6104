"""Battery rows of `zoo.smooth`."""

import functools

import jax.numpy as jnp
import numpy as np

from tests.battery import BadInput, Row
from zoo import smooth

CLASSES = 3
METHODS = ("gradient", "threshold", "sigmoid", "clipped", "recursive")


def normal(generator, shape, dtype):
    return jnp.asarray(generator.normal(size=shape), dtype)


def items(generator, batch, dtype):
    return (normal(generator, (*batch, 5), dtype),)


def hard_and_soft(generator, batch, dtype):
    (soft,) = items(generator, batch, dtype)
    return jnp.round(soft), soft


def hard_soft_and_weight(generator, batch, dtype):
    return *hard_and_soft(generator, batch, dtype), jnp.asarray(0.25, jnp.float32)


def shares(generator, shape, dtype):
    return jnp.asarray(generator.uniform(0.05, 0.95, size=shape), dtype)


def binary(generator, batch, dtype):
    labels = jnp.asarray(generator.integers(0, 2, batch), jnp.int32)
    return shares(generator, batch, dtype), labels


def classes(generator, batch, dtype):
    labels = jnp.asarray(generator.integers(0, CLASSES, batch), jnp.int32)
    return shares(generator, (*batch, CLASSES), dtype), labels


def scores(generator, batch, dtype):
    _, labels = binary(generator, batch, dtype)
    return normal(generator, batch, dtype), labels


def many_labels(generator, batch, dtype):
    labels = jnp.asarray(generator.integers(0, 2, (*batch, 4)), jnp.int32)
    return normal(generator, (*batch, 4), dtype), labels


def stream(generator, batch, dtype):
    # A state of earlier batches, as float32 as the state is.
    counts = smooth.Counts(*jnp.asarray(generator.uniform(1, 3, 3), jnp.float32))
    state = smooth.F1State(counts, jnp.asarray(8.0, jnp.float32))
    return state, *binary(generator, batch, dtype)


def bad_dtype(function, *arguments, name="x"):
    return BadInput(
        "integers",
        lambda: function(jnp.arange(3), *arguments),
        TypeError,
        argument=f"{function.__name__}: {name}",
        expected="floating-point",
        got="int32",
    )


def bad_temperatures(function, *arguments):
    return tuple(
        BadInput(
            f"temperature {temperature}",
            lambda temperature=temperature: function(*arguments, temperature=temperature),
            ValueError,
            argument=f"{function.__name__}: temperature",
            expected="positive number",
            got=f"got {temperature}",
        )
        for temperature in (0, -1.0, np.inf, np.nan)
    )


def bad_k(k, error, expected, method="gradient"):
    return BadInput(
        f"k = {k}, {method}",
        lambda: smooth.soft_top_k(jnp.ones(4), k, method=method),
        error,
        argument="soft_top_k: k",
        expected=expected,
        got=f"got {k}",
    )


def bad_average(function):
    return BadInput(
        "unknown average",
        lambda: function(jnp.ones(3), jnp.ones(3, int), average="weighted"),
        ValueError,
        argument="average",
        expected="binary, macro, micro",
        got="got 'weighted'",
    )


def bad_shapes(function, **options):
    ones = jnp.ones(3)
    return (
        BadInput(
            "labels of another length",
            lambda: function(ones, jnp.ones(4, int), **options),
            ValueError,
            argument="labels",
            expected=r"\(3,\)",
            got=r"got \(4,\)",
        ),
        BadInput(
            "a mask of numbers",
            lambda: function(ones, jnp.ones(3, int), where=ones, **options),
            ValueError,
            argument="where",
            expected="bool",
            got="got float32",
        ),
    )


BAD_CLASSES = (
    BadInput(
        "classes as floats",
        lambda: smooth.smooth_f1(jnp.ones((2, 3)), jnp.ones(2), average="macro"),
        TypeError,
        argument="labels",
        expected="integers",
        got="got float32",
    ),
    BadInput(
        "one probability a row for the mean over classes",
        lambda: smooth.smooth_f1(jnp.ones(2), jnp.ones(2, int), average="macro"),
        ValueError,
        argument="probabilities",
        expected=r"\[batch, classes\]",
        got=r"\(2,\)",
    ),
)


def bad_axis(function, *arguments):
    return BadInput(
        "no such axis",
        lambda: function(jnp.ones(3), *arguments, axis=1),
        ValueError,
        argument="axis",
        expected="an axis of x",
        got="axis=1",
    )


def operator(function, *, bad=(), variant="", out_axes=0, **options):
    """A row of a function of one array of items."""
    arguments = options.pop("arguments_of_bad", ())
    return Row(
        name=f"zoo.smooth.{function.__name__}",
        variant=variant,
        function=functools.partial(function, **options),
        arguments=items,
        axes=(0,),
        out_axes=out_axes,
        bad=(
            bad_dtype(function, *arguments),
            *bad_temperatures(function, jnp.ones(3), *arguments),
            *bad,
        ),
    )


def top_k(method):
    bad = (
        bad_k(0, ValueError, "from 1 to the 4 items"),
        bad_k(5, ValueError, "from 1 to the 4 items"),
        bad_k(2.0, TypeError, "integer"),
        BadInput(
            "an unknown method",
            lambda: smooth.soft_top_k(jnp.ones(4), 2, method="sort"),
            ValueError,
            argument="method",
            expected="gradient, threshold, sigmoid, clipped, recursive",
            got="got 'sort'",
        ),
        bad_axis(smooth.soft_top_k, 2),
        bad_k(4, ValueError, "less than the 4 items", method="recursive"),
    )
    return Row(
        name="zoo.smooth.soft_top_k",
        variant=method,
        function=lambda x: smooth.soft_top_k(x, 2, method=method),
        arguments=items,
        axes=(0,),
        # Above, the shift by the smallest overflows.
        extreme=0.4 if method == "recursive" else 1.0,
        bad=(
            bad_dtype(smooth.soft_top_k, 2),
            *bad_temperatures(smooth.soft_top_k, jnp.ones(3), 2),
            *bad,
        ),
    )


def metric(function, arguments, *, variant="", bad=(), extreme=1.0, **options):
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
    )


# Sums of probabilities: 8 rows of the largest number must not overflow in float32, nor a product
# with 2.
RATIO = {"extreme": 0.005}

ROWS = [
    *(
        operator(function, out_axes=0)
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
    *(
        operator(
            smooth.smooth_relu,
            variant=kernel,
            kernel=kernel,
            bad=(
                BadInput(
                    "an unknown kernel",
                    lambda: smooth.smooth_relu(jnp.ones(3), kernel="cubic"),
                    ValueError,
                    argument="kernel",
                    expected="logistic, gaussian, square",
                    got="got 'cubic'",
                ),
            ),
        )
        for kernel in ("logistic", "gaussian", "square")
    ),
    *(
        operator(function, bad=(bad_axis(function),))
        for function in (smooth.soft_one_hot, smooth.smooth_argmax, smooth.soft_rank)
    ),
    *(top_k(method) for method in METHODS),
    Row(
        name="zoo.smooth.straight_through",
        function=smooth.straight_through,
        arguments=hard_and_soft,
        axes=(0, 0),
        differentiable=(0, 1),
        skip={"gradients_match_differences": "its gradient is another one on purpose"},
        bad=(
            BadInput(
                "another dtype",
                lambda: smooth.straight_through(jnp.arange(3), jnp.ones(3)),
                ValueError,
                argument="hard",
                expected="float32",
                got="int32",
            ),
        ),
    ),
    Row(
        name="zoo.smooth.harden",
        function=smooth.harden,
        arguments=hard_soft_and_weight,
        axes=(0, 0, None),
        differentiable=(0, 1),
        skip={"gradients_match_differences": "its gradient is another one on purpose"},
        bad=(
            BadInput(
                "another shape",
                lambda: smooth.harden(jnp.ones(2), jnp.ones(3), 0.5),
                ValueError,
                argument="hard",
                expected=r"\(3,\)",
                got=r"\(2,\)",
            ),
        ),
    ),
    metric(
        smooth.smooth_accuracy,
        classes,
        variant="classes",
        extreme=0.1,
        bad=(
            bad_dtype(smooth.smooth_accuracy, jnp.ones(3, int), name="probabilities"),
            *bad_shapes(smooth.smooth_accuracy),
        ),
    ),
    metric(smooth.smooth_accuracy, binary, variant="binary", extreme=0.1),
    *(
        metric(
            function,
            binary,
            bad=(
                bad_average(function),
                bad_dtype(function, jnp.ones(3, int), name="probabilities"),
                *bad_shapes(function),
            ),
            **RATIO,
        )
        for function in (smooth.smooth_precision, smooth.smooth_recall, smooth.smooth_f1)
    ),
    metric(smooth.smooth_f1, classes, variant="macro", average="macro", bad=BAD_CLASSES, **RATIO),
    metric(smooth.smooth_f1, classes, variant="micro", average="micro", **RATIO),
    metric(
        smooth.smooth_auc,
        scores,
        bad=(
            *bad_temperatures(smooth.smooth_auc, jnp.ones(3), jnp.array([0, 1, 1])),
            bad_dtype(smooth.smooth_auc, jnp.ones(3, int), name="scores"),
            *bad_shapes(smooth.smooth_auc),
        ),
    ),
    Row(
        name="zoo.smooth.multilabel_cross_entropy",
        function=smooth.multilabel_cross_entropy,
        arguments=many_labels,
        axes=(0, 0),
        extreme=0.4,  # two losses are added
        bad=(
            BadInput(
                "labels of another shape",
                lambda: smooth.multilabel_cross_entropy(jnp.ones((2, 3)), jnp.ones(2, int)),
                ValueError,
                argument="labels",
                expected=r"\(2, 3\)",
                got=r"got \(2,\)",
            ),
        ),
    ),
    Row(
        name="zoo.smooth.streaming_f1",
        function=smooth.streaming_f1,
        arguments=stream,
        axes=(None, 0, 0),
        out_axes=None,
        batch=(4,),
        differentiable=(1,),
        state=(0, 0),
        wide=(smooth.F1State(smooth.Counts(True, True, True), True), False),
        axis_name=True,
        skip={
            "gradients_match_differences": "the gradient is that of all rows, see test_streaming",
            "keeps_dtype": "the state is float32 whatever the probabilities are",
        },
        **RATIO,
        bad=(
            BadInput(
                "a decay above 1",
                lambda: smooth.streaming_f1(
                    smooth.streaming_f1_init(), jnp.ones(2), jnp.ones(2, int), decay=1.5
                ),
                ValueError,
                argument="decay",
                expected=r"\[0, 1\]",
                got="got 1.5",
            ),
            BadInput(
                "a state of another number of classes",
                lambda: smooth.streaming_f1(
                    smooth.streaming_f1_init(2),
                    jnp.ones((2, 3)),
                    jnp.ones(2, int),
                    average="macro",
                ),
                ValueError,
                argument="state",
                expected=r"\(3,\)",
                got=r"\(2,\)",
            ),
        ),
    ),
]

EXEMPT = {
    "zoo.smooth.streaming_f1_init": "zeros from static sizes, no array argument",
    "zoo.smooth.temperature_schedule": "returns a schedule; see test_annealing",
}
