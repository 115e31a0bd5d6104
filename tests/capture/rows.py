"""Battery rows of `zoo.capture`: a model with a jitted part and a scan, read and changed."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tests.battery import BadInput, Row
from zoo import capture

FEATURES = 3


def features(generator, batch, dtype):
    return (jnp.asarray(generator.normal(size=(*batch, FEATURES)), dtype),)


@jax.jit
def squash(x):
    return capture.tap(jnp.tanh(x), "hidden")


def step(total, x):
    total = capture.tap(jnp.cos(total + x), "total")
    return total, total


def model(x):
    total, _ = lax.scan(step, jnp.zeros_like(x[..., 0]), jnp.moveaxis(squash(x), -1, 0))
    return total


def bad(label, call, error, argument, expected, got):
    return BadInput(label, call, error, argument, expected, got)


X = jnp.ones((2, FEATURES))
ROWS = [
    Row(
        name="zoo.capture.tap",
        function=functools.partial(capture.tap, name="hidden"),
        arguments=features,
        axes=(0,),
        bad=(
            bad("a number", lambda: capture.tap(X, 1), TypeError, "name", "string", "got int"),
            bad("no name", lambda: capture.tap(X, ""), ValueError, "name", "not empty", "got ''"),
        ),
    ),
    Row(
        name="zoo.capture.capture",
        function=capture.capture(model),
        arguments=features,
        axes=(0,),
        out_axes=(0, {"hidden": 0, "total": 1}),
        extreme=0.1,
        bad=(
            bad(
                "a name nobody reaches",
                lambda: capture.capture(model, "attention")(X),
                ValueError,
                argument="names",
                expected="taps that the function reaches.*'hidden', 'total'",
                got="got 'attention'",
            ),
            bad(
                "a name twice",
                lambda: capture.capture(model, ["total", "total"]),
                ValueError,
                argument="names",
                expected="different",
                got=r"got \['total'\] twice",
            ),
            bad(
                "a predicate that matches nothing",
                lambda: capture.capture(model, where=lambda equation: False)(X),
                ValueError,
                argument="where",
                expected="at least one equation",
                got="got none",
            ),
        ),
    ),
    Row(
        name="zoo.capture.inject",
        function=capture.inject(model, {"hidden": jnp.sin, "total": lambda total: 2 * total}),
        arguments=features,
        axes=(0,),
        extreme=0.1,
        bad=(
            bad(
                "another shape",
                lambda: capture.inject(model, {"hidden": jnp.zeros(4)})(X),
                ValueError,
                argument="'hidden'",
                expected=r"must have shape \(2, 3\)",
                got=r"got \(4,\)",
            ),
            bad(
                "another dtype",
                lambda: capture.inject(model, {"hidden": jnp.zeros((2, 3), int)})(X),
                TypeError,
                argument="'hidden'",
                expected="must have dtype float32",
                got="got int32",
            ),
            bad(
                "a name nobody reaches",
                lambda: capture.inject(model, {"attention": X})(X),
                ValueError,
                argument="names",
                expected="'hidden', 'total'",
                got="got 'attention'",
            ),
        ),
    ),
]

EXEMPT: dict[str, str] = {}
