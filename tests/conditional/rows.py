"""Battery rows of `zoo.conditional`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.battery import BadInput, Row
from zoo import conditional

UNITS, FEATURES, TIME = 4, 3, 2


def normal(generator, shape, dtype):
    return jnp.asarray(generator.normal(size=shape), dtype)


def layer_norm_arguments(generator, batch, dtype):
    x = normal(generator, (*batch, TIME, UNITS), dtype)
    condition = normal(generator, (*batch, FEATURES), dtype)
    vectors = normal(generator, (2, UNITS), dtype)
    kernels = normal(generator, (2, FEATURES, UNITS), dtype)
    return x, condition, *vectors, *kernels


def rms_norm_arguments(generator, batch, dtype):
    x, condition, scale, _, kernel, _ = layer_norm_arguments(generator, batch, dtype)
    return x, condition, scale, kernel


def drop_arguments(generator, batch, dtype):
    key = jax.random.key(int(generator.integers(100)))
    return key, normal(generator, (*batch, FEATURES), dtype)


def bad_inputs(function, make):
    x, condition, *parameters = make(np.random.default_rng(0), (2,), jnp.float32)

    def bad(label, error, argument, expected, got, **changed):
        x_, condition_ = changed.get("x", x), changed.get("condition", condition)
        parameters_ = changed.get("parameters", parameters)
        call = functools.partial(function, x_, condition_, *parameters_)
        return BadInput(label, call, error, argument, expected, got)

    rows = {"argument": "condition", "expected": r"leading axes of x, \(2, 2\)"}
    return (
        bad(
            "one feature too few",
            ValueError,
            "condition",
            "kernels have rows, 3",
            r"2 in shape \(2, 2\)",
            condition=condition[:, 1:],
        ),
        bad("another batch", ValueError, **rows, got=r"\(1, 3\)", condition=condition[:1]),
        bad(
            "more axes than x",
            ValueError,
            **rows,
            got=r"\(2, 1, 1, 3\)",
            condition=condition[:, None, None],
        ),
        bad("no condition", TypeError, "condition", r"an array \[B, E\]", "None", condition=None),
        bad(
            "labels",
            TypeError,
            "condition",
            "floating-point",
            "int32",
            condition=jnp.arange(2),
        ),
        bad("integer x", TypeError, "x", "floating-point", "int32", x=x.astype(int)),
        bad(
            "a scale of another width",
            ValueError,
            "scale",
            "D = 4",
            r"\(3,\)",
            parameters=[parameters[0][1:], *parameters[1:]],
        ),
        bad(
            "a kernel without rows",
            ValueError,
            "kernel",
            r"\[E, D\]",
            r"\(4,\)",
            parameters=[*parameters[:-1], parameters[-1][0]],
        ),
    )


_, DROPPED = drop_arguments(np.random.default_rng(0), (2,), jnp.float32)

ROWS = [
    *(
        Row(
            name=f"zoo.conditional.{function.__name__}",
            # The gradient of zeros is 1/√epsilon, which must be in the range of float16.
            function=functools.partial(function, epsilon=1e-5),
            arguments=make,
            axes=(0, 0, *(None,) * count),
            differentiable=tuple(range(2 + count)),
            extreme=1e-21,  # squares
            extreme_arguments=(0,),
            bad=bad_inputs(function, make),
        )
        for function, make, count in (
            (conditional.conditional_layer_norm, layer_norm_arguments, 4),
            (conditional.conditional_rms_norm, rms_norm_arguments, 2),
        )
    ),
    Row(
        name="zoo.conditional.drop_condition",
        function=functools.partial(conditional.drop_condition, rate=0.5),
        arguments=drop_arguments,
        axes=(None, 0),
        differentiable=(1,),
        random=True,
        skip={"shard_map_equals_unsharded": "each device draws for the samples that it sees"},
        bad=(
            BadInput(
                "a share of 15",
                lambda: conditional.drop_condition(jax.random.key(0), DROPPED, rate=15.0),
                ValueError,
                argument="rate",
                expected=r"\[0, 1\]",
                got="got 15",
            ),
        ),
    ),
]

EXEMPT = {
    "zoo.conditional.conditionalize": "takes and gives a module, tested in test_conversion.py",
    "zoo.conditional.conditioned_on": "a context, tested in test_conversion.py",
}
