"""Tapped functions beside their hand-written twins, which return what is tapped.

Every pair takes one vector of 4 and covers one kind of equation.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from zoo.capture import Conditional, tap

X = jnp.array([0.3, -0.7, 1.1, 0.2])


def mesh(size=2):
    devices = jax.devices()[:size]
    return jax.make_mesh((size,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def plain(x, tap):
    h = tap(jnp.sin(x), "h")
    return jnp.sum(h * x), {"h": h}


def nested_jit(x, tap):
    def inner(x):
        h = tap(jnp.sin(x), "h")
        return h * x, h

    y, h = jax.jit(jax.jit(inner))(x)
    return jnp.cumsum(y), {"h": h}


def vmap(x, tap):
    def one(x):
        h = tap(jnp.sin(x), "h")
        return h * x, h

    y, h = jax.vmap(one)(x)
    return y, {"h": h}


def scan(x, tap):
    def step(carry, x):
        h = tap(jnp.sin(carry + x), "h")
        return jnp.tanh(h), (2 * h, h)

    carry, (ys, h) = lax.scan(step, jnp.float32(0.5), x, reverse=True, unroll=2)
    return (carry, ys), {"h": h}


def scan_in_scan(x, tap):
    weights = jnp.arange(6.0).reshape(3, 2) / 6

    def outer(carry, row):
        def inner(carry, weight):
            h = tap(jnp.sin(carry * weight), "h")
            return carry + h, h

        carry, h = lax.scan(inner, carry, row)
        total = tap(jnp.sum(carry), "total")
        return carry, (total, h)

    carry, (total, h) = lax.scan(outer, x, weights)
    return carry, {"h": h, "total": total}


def while_loop(x, tap):
    def condition(state):
        return jnp.sum(state[0]) < 9

    def body(state):
        h = tap(state[0] * state[0], "h")
        return state[0] + h, h

    x, h = lax.while_loop(condition, body, (x, x))
    return x, {"h": h}


def condition_of_while(x, tap):
    def condition(state):
        return tap(jnp.sum(state[0]), "total") < 9

    def body(state):
        x = state[0] + 1
        return x, jnp.sum(x)

    x, total = lax.while_loop(condition, body, (x, jnp.sum(x)))
    return x, {"total": total}


def branches(x, tap):
    def yes(name):
        def branch(x):
            h = tap(jnp.sin(x), name)
            return 2 * h, Conditional(h, jnp.array(True))

        return branch

    x, taken = lax.cond(jnp.sum(x) > 0, yes("taken"), lambda x: (x, absent(x)), x)
    y, other = lax.cond(jnp.sum(x) < 0, yes("not taken"), lambda x: (x, absent(x)), x)
    return y, {"taken": taken, "not taken": other}


def switch_in_scan(x, tap):
    def step(carry, i):
        def first(c):
            h = tap(jnp.sin(c), "h")
            return h, Conditional(h, jnp.array(True)), absent(jnp.float32(0))

        def second(c):
            total = tap(jnp.sum(c), "total")
            return c + total, absent(c), Conditional(total, jnp.array(True))

        def third(c):
            return 2 * c, absent(c), absent(jnp.float32(0))

        y, h, total = lax.switch(i, [first, second, third], carry)
        return y, (h, total)

    y, (h, total) = lax.scan(step, x, jnp.array([2, 0, 1, 0]))
    return y, {"h": h, "total": total}


def remat(x, tap):
    def inner(x):
        h = tap(jnp.sin(x), "h")
        return jnp.sin(h), h

    y, h = jax.checkpoint(inner)(x)
    return y, {"h": h}


def gradient_of_remat(x, tap):
    def inner(x):
        h = tap(jnp.sin(x), "h")
        return jnp.sum(jnp.sin(h)), h

    slope, h = jax.grad(jax.checkpoint(inner), has_aux=True)(x)
    return slope, {"h": h}


def gradient_of_scan(x, tap):
    def loss(x):
        def step(carry, x):
            h = tap(jnp.sin(carry + x), "h")
            return jnp.sin(h), h

        return lax.scan(jax.checkpoint(step), jnp.float32(0), x)

    slope, h = jax.grad(loss, has_aux=True)(x)
    return slope, {"h": h}


def custom_jvp(x, tap):
    @jax.custom_jvp
    def inner(x):
        return jnp.sum(tap(jnp.sin(x), "h"))

    inner.defjvp(lambda primals, tangents: (inner(*primals), 100 * jnp.sum(tangents[0])))
    return inner(x), {"h": jnp.sin(x)}


def custom_vjp(x, tap):
    @jax.custom_vjp
    def inner(x):
        return jnp.sum(tap(jnp.sin(x), "h"))

    inner.defvjp(lambda x: (inner(x), x), lambda x, g: (jnp.full_like(x, 100 * g),))
    return inner(x), {"h": jnp.sin(x)}


def shard_map(x, tap):
    def local(x):
        h = tap(jnp.sin(x), "h")
        total = tap(lax.psum(jnp.sum(h), "data"), "total")
        part = tap(jnp.sum(x), "part")
        return h * total, (h, total, part[None])

    split, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        local, mesh=mesh(), in_specs=split, out_specs=(split, (split, whole, split))
    )
    y, (h, total, part) = mapped(x)
    return y, {"h": h, "total": total, "part": part}


def scan_in_shard_map(x, tap):
    def local(x):
        def step(carry, t):
            h = tap(carry * t, "h")
            return carry + h, h

        return lax.scan(step, x, jnp.arange(3.0))

    split = PartitionSpec("data")
    mapped = jax.shard_map(
        local,
        mesh=mesh(),
        in_specs=split,
        out_specs=(split, PartitionSpec(None, "data")),
        check_vma=False,
    )
    y, h = mapped(x)
    return y, {"h": h}


def control_flow_in_shard_map(x, tap):
    def local(x):
        def yes(x):
            h = tap(2 * x, "h")
            return h, h, True

        def no(x):
            return x, jnp.zeros_like(x), False

        x, h, present = lax.cond(jnp.sum(x) > 0, yes, no, x)

        def body(state):
            last = tap(state[0] * state[0] + 1, "last")
            return last, last

        y, last = lax.while_loop(lambda state: jnp.sum(state[0]) < 99, body, (x, x))
        return y, (h, present[None], last)

    split = PartitionSpec("data")
    y, (h, present, last) = jax.shard_map(
        local, mesh=mesh(), in_specs=split, out_specs=(split, (split,) * 3)
    )(x)
    return y, {"h": Conditional(h, present), "last": last}


def absent(x):
    return Conditional(jnp.zeros_like(x), jnp.array(False))


PAIRS = {
    function.__name__: function
    for function in (
        *(plain, nested_jit, vmap, scan, scan_in_scan, while_loop, condition_of_while),
        *(branches, switch_in_scan, remat, gradient_of_remat, gradient_of_scan),
        *(custom_jvp, custom_vjp, shard_map, scan_in_shard_map, control_flow_in_shard_map),
    )
}
# Those that contain the simpler ones; derivatives and replacements are tested on them.
GRADIENTS = ("gradient_of_remat", "gradient_of_scan")
SHARDED = ("shard_map", "scan_in_shard_map", "control_flow_in_shard_map")
LOOPS = ("while_loop", "condition_of_while")
RICH = ("nested_jit", "vmap", "scan_in_scan", "switch_in_scan", "remat", *LOOPS, *SHARDED)


def tapped(name):
    """The function with taps, which returns only its output."""
    return lambda x: PAIRS[name](x, tap)[0]


def by_hand(name):
    """The function without taps, which returns what would be tapped as well."""
    return lambda x: PAIRS[name](x, lambda value, _: value)
