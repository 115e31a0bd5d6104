"""Battery rows of `zoo.capture`: a model with a jitted part and a scan, read and changed.

What the functions refuse is in the unit tests.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tests.battery import Row
from zoo import capture


def features(generator, batch, dtype):
    return (jnp.asarray(generator.normal(size=(*batch, 3)), dtype),)


@jax.jit
def squash(x):
    return capture.tap(jnp.tanh(x), "hidden")


def step(total, x):
    total = capture.tap(jnp.cos(total + x), "total")
    return total, total


def model(x):
    total, _ = lax.scan(step, jnp.zeros_like(x[..., 0]), jnp.moveaxis(squash(x), -1, 0))
    return total


ROWS = [
    Row(
        name="zoo.capture.tap",
        function=functools.partial(capture.tap, name="hidden"),
        arguments=features,
        axes=(0,),
    ),
    Row(
        name="zoo.capture.capture",
        function=capture.capture(model),
        arguments=features,
        axes=(0,),
        out_axes=(0, {"hidden": 0, "total": 1}),
        extreme=0.1,
        pmap=True,
    ),
    Row(
        name="zoo.capture.inject",
        function=capture.inject(model, {"hidden": jnp.sin, "total": lambda total: 2 * total}),
        arguments=features,
        axes=(0,),
        extreme=0.1,
    ),
]

EXEMPT = {"zoo.capture.list_values": "gives names and shapes, tested in test_modules.py"}


def read(box):
    return lambda: capture.capture(lambda x: jax.jit(lambda x: capture.tap(box[0] * x, "h"))(x))(
        jnp.ones(2)
    )


def changed(box):
    """By a function and by an array, inside of a jitted program that does not change."""
    squashed = functools.partial(capture.inject, squash)
    by_function = squashed({"hidden": lambda h: box[0] * h})
    return lambda: (
        by_function(jnp.ones(2)),
        squashed({"hidden": jnp.full(2, box[0])})(jnp.ones(2)),
    )


CLOSURES = {"zoo.capture.capture": read, "zoo.capture.inject": changed}
