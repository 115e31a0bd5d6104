"""Battery rows of `zoo.conditional`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.battery import BadInput, Row
from zoo.conditional import conditional_layer_norm
from zoo.conditional.guidance import guided
from zoo.conditional.layer_norm import conditional_gate, conditional_rms_norm, drop_condition

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


def ones(*shape):
    return jnp.ones(shape)


def bad(label, error, name, value, expected, got):
    """The call of conditional_layer_norm with one argument replaced."""
    names = ("x", "condition", "scale", "bias", "scale_kernel", "bias_kernel")
    values = layer_norm_arguments(np.random.default_rng(0), (2,), jnp.float32)
    arguments = dict(zip(names, values, strict=True)) | {name: value}
    call = functools.partial(conditional_layer_norm, **arguments)
    return BadInput(label, call, error, name, expected, got)


LEADING = r"leading axes of x, \(2, 2\)"
BAD = (
    bad("a feature less", ValueError, "condition", ones(2, 2), "kernels have rows, 3", r"\(2, 2\)"),
    bad("another batch", ValueError, "condition", ones(1, 3), LEADING, r"\(1, 3\)"),
    bad("more axes than x", ValueError, "condition", ones(2, 2, 1, 3), LEADING, r"\(2, 2, 1, 3\)"),
    bad("no condition", TypeError, "condition", None, r"an array \[B, E\]", "None"),
    bad("labels", TypeError, "condition", jnp.arange(2), "floating-point", "int32"),
    bad("integer x", TypeError, "x", ones(2, 2, 4).astype(int), "floating-point", "int32"),
    bad("another width", ValueError, "scale", ones(3), "D is 4", r"\[3\]"),
    bad("a vector as kernel", ValueError, "bias_kernel", ones(4), r"\[E, D\]", r"\[4\]"),
)

# The gradient at zeros is 1/√epsilon, which must be in the range of float16.
NORM = {"extreme": 1e-21, "extreme_arguments": (0,)}  # sums of squares
ROWS = [
    Row(
        name="zoo.conditional.conditional_layer_norm",
        function=functools.partial(conditional_layer_norm, epsilon=1e-5),
        arguments=layer_norm_arguments,
        axes=(0, 0, None, None, None, None),
        differentiable=(0, 1, 2, 3, 4, 5),
        pmap=True,
        bad=BAD,
        **NORM,
    ),
    Row(
        name="zoo.conditional.layer_norm.conditional_rms_norm",
        function=functools.partial(conditional_rms_norm, epsilon=1e-5),
        arguments=rms_norm_arguments,
        axes=(0, 0, None, None),
        differentiable=(0, 1, 2, 3),
        **NORM,
    ),
    Row(
        name="zoo.conditional.layer_norm.conditional_gate",
        function=conditional_gate,
        arguments=rms_norm_arguments,
        axes=(0, 0, None, None),
        differentiable=(1, 2, 3),
        extreme=1e-20,  # products
        bad=(
            BadInput(
                "a vector as kernel",
                lambda: conditional_gate(ones(2, 4), ones(2, 3), ones(4), ones(4)),
                ValueError,
                argument="gate_kernel",
                expected=r"\[E, D\]",
                got=r"\[4\]",
            ),
        ),
    ),
    Row(
        name="zoo.conditional.guidance.guided",
        function=functools.partial(guided, scale=2.0),
        arguments=lambda *a: (layer_norm_arguments(*a)[0], layer_norm_arguments(*a)[0]),
        axes=(0, 0),
        differentiable=(0, 1),
        extreme=0.1,
    ),
    Row(
        name="zoo.conditional.layer_norm.drop_condition",
        function=functools.partial(drop_condition, rate=0.5),
        arguments=drop_arguments,
        axes=(None, 0),
        differentiable=(1,),
        random=True,
        skip={"shard_map_equals_unsharded": "each device draws for the samples that it sees"},
        bad=(
            BadInput(
                "a share of 15",
                lambda: drop_condition(jax.random.key(0), jnp.ones((2, 3)), rate=15.0),
                ValueError,
                argument="rate",
                expected="≤ 1",
                got="got 15",
            ),
        ),
    ),
]

EXEMPT = {"zoo.conditional.conditionalize": "converts a module, tested in test_conversion.py"}
