"""Injected values against functions that are patched by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.battery import quick_jit
from tests.capture.programs import GRADIENTS, PAIRS, RICH, X, tapped
from tests.capture.test_capture import (
    CUSTOM,
    NOT_REVERSE,
    assert_close,
    assert_same,
    counted_compilations,
)
from zoo.capture import Conditional, capture, inject, tap


def bend(h):
    return 0.5 * h + 0.1


def patched(name):
    """The hand-written twin with ``bend`` at every tap."""
    return lambda x: PAIRS[name](x, lambda value, _: bend(value))[0]


@pytest.mark.parametrize("name", RICH)
def test_function_in_place_of_a_value_and_gradients_through_it(name):
    def derivatives(function):
        def total(x):
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(x)))

        def both(x):
            forward = jax.jvp(function, (x,), (jnp.arange(4.0),))
            return forward, () if name in NOT_REVERSE else jax.grad(total)(x)

        return quick_jit(both)(X)

    ours = derivatives(inject(tapped(name), {"*": bend}))
    assert_close(ours, derivatives(patched(name)), 1e-5)


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_rule_around_a_replaced_value_is_dropped(name):
    function = inject(tapped(name), {"h": lambda h: h * h})
    assert_close(jax.grad(function)(X), 2 * jnp.sin(X) * jnp.cos(X))
    other = inject(lambda x: tapped(name)(x) * tap(x[0], "out"), {"out": lambda y: 2 * y})
    expected = 2 * jnp.full(4, 100.0) * X[0] + jnp.zeros(4).at[0].set(2 * jnp.sum(jnp.sin(X)))
    assert_close(jax.grad(other)(X), expected, 1e-5)


# The last value of a while loop is not that of its other iterations.
@pytest.mark.parametrize("name", [n for n in RICH + GRADIENTS if n not in NOT_REVERSE])
def test_what_was_captured_can_be_put_back(name):
    """Values of one input patched into the run of another, as capture returned them."""

    @jax.jit
    def put_back(x):
        output, values = capture(tapped(name))(x)
        arrays = {
            name: value.value if isinstance(value, Conditional) else value
            for name, value in values.items()
        }
        return output, inject(tapped(name), arrays)(x)

    assert_same(*put_back(X))


def test_array_for_all_steps_of_a_scan_or_one_for_each():
    def function(x):
        return lax.scan(lambda c, t: (c + tap(c * t, "h"),) * 2, x, jnp.arange(3.0))[1]

    h = jnp.ones(4)
    assert_close(inject(function, {"h": h})(X), X[None] + jnp.outer(jnp.arange(1.0, 4), h))
    each = jnp.outer(jnp.array([1.0, 10, 100]), h)
    assert_close(inject(function, {"h": each})(X), X[None] + jnp.cumsum(each, axis=0))
    inner = PAIRS["scan_in_scan"]
    rows = jnp.arange(8.0).reshape(2, 4)
    ours = inject(lambda x: inner(x, tap)[0], {"h": rows})(X)
    assert_close(ours, X + 3 * rows.sum(0))


def test_gradient_with_respect_to_what_is_injected():
    function = tapped("scan")

    def loss(strength):
        return inject(function, {"h": lambda h: h * strength})(X)[0]

    def by_hand_loss(strength):
        return PAIRS["scan"](X, lambda h, _: h * strength)[0][0]

    assert_close(quick_jit(jax.grad(loss))(0.7), quick_jit(jax.grad(by_hand_loss))(0.7))
    ones = jnp.ones((4,))
    slope = jax.grad(lambda h: jnp.sum(inject(tapped("plain"), {"h": h})(X)))(ones)
    assert_close(slope, X)


def test_injection_belongs_inside_the_gradient():
    def loss(x):
        return jnp.sum(tap(jnp.sin(x), "h") ** 2)

    square = {"h": lambda h: h**2}
    assert_close(jax.grad(inject(loss, square))(X), 4 * jnp.sin(X) ** 3 * jnp.cos(X))
    # From outside, h is another number for the backward pass of the old program.
    assert_close(inject(jax.grad(loss), square)(X), 2 * jnp.sin(X) ** 2 * jnp.cos(X))


def test_numbered_hits_and_patterns_are_replaced_alone_or_together():
    inner = jax.jit(lambda x: tap(x + 1, "h"))

    def function(x):
        return tap(inner(inner(x)), "last")

    assert inject(function, {"h#0": lambda h: 10 * h})(1.0) == 21
    assert inject(function, {"h": lambda h: 10 * h})(1.0) == 210
    assert inject(function, {"h#1": jnp.float32(5), "last": lambda h: h / 2})(1.0) == 2.5
    assert inject(function, {})(1.0) == 3


def test_equations_without_a_tap_can_be_replaced():
    def function(x):
        return lax.scan(lambda c, x: (c + jnp.exp(x), None), 0.0, x)[0]

    is_exp = lambda e: e.primitive.name == "exp"  # noqa: E731
    assert_close(inject(function, {"exp": jnp.zeros_like}, where=is_exp)(X), jnp.float32(0))
    assert_close(inject(function, {"exp": jnp.ones(4)}, where=is_exp)(X), jnp.float32(4))

    def largest(x):
        values, indices = lax.top_k(x, 2)
        return values[1], indices[0]

    pair = inject(
        largest, {"top_k": lambda out: (2 * out[0], out[1] + 7)}, where=lambda e: "top_k" in str(e)
    )(X)
    assert_close(pair, (2 * jnp.float32(0.3), jnp.int32(9)))


def test_outer_capture_and_outer_injection_see_the_replacement():
    patch = inject(tapped("nested_jit"), {"h": jnp.zeros_like})
    _, values = capture(patch)(X)
    assert not values["h"].any()
    ones = inject(patch, {"h": jnp.ones_like})
    assert_close(ones(X), jnp.cumsum(X))


def jitted(x):
    return jax.jit(lambda x: 3 * tap(jnp.sin(x), "h"))(x)


def scanned(x):
    return lax.scan(lambda c, t: (tap(jnp.sin(c * t), "h"), None), x, jnp.arange(1.0, 3))[0]


def branched(x):
    inner = lambda x: jax.jit(lambda x: tap(2 * x, "h"))(x) + 1  # noqa: E731
    return lax.cond(jnp.sum(x) > 0, inner, lambda x: x, x)


def looped(x):
    return lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: tap(abs(c) + 1, "h"), x)


@pytest.mark.parametrize("function", [jitted, scanned, branched, looped])
@pytest.mark.parametrize("kind", [float, jnp.asarray, np.asarray])
def test_replacements_read_what_changes_and_compile_what_is_new(function, kind):
    """What a replacement closes over may be another at the next call: as without `jit`."""
    settings = {"scale": kind(1.0)}

    def scaled(h):
        return h * settings["scale"].astype(h.dtype) if kind is not float else h * settings["scale"]

    # A new model at every call, as in functions that make their jitted parts inside.
    patch, plain = inject(function, {"h": scaled}), inject(lambda x: jax.jit(function)(x), {})
    assert_close(patch(X), plain(X))
    for scale in (10.0, 1.0, 10.0):
        settings["scale"] = kind(scale)
        fresh = inject(function, {"h": lambda h, s=scale: h * jnp.float32(s)})
        with counted_compilations() as compilations:
            found = patch(X)
        assert_close(found, fresh(X))
    assert not compilations  # 10 was seen before
    steep = jax.grad(lambda s: jnp.sum(inject(jitted, {"h": lambda h: h * s})(X)))
    assert_close(steep(2.0), 3 * jnp.sum(jnp.sin(X)))


def test_injection_leaks_no_tracers():
    with jax.checking_leaks():
        jax.grad(lambda s: jnp.sum(inject(tapped("scan_in_scan"), {"h": lambda h: h * s})(X)))(0.5)


def test_vmap_over_injected_values():
    grid = jnp.outer(jnp.linspace(0, 1, 3), jnp.ones(4))
    out = jax.vmap(lambda h: inject(tapped("remat"), {"h": h})(X))(grid)
    assert_close(out, jnp.sin(grid))


@pytest.mark.parametrize(
    ("error", "message", "replacements"),
    [
        (TypeError, r"replacements must map names.*got list", ["h"]),
        (TypeError, r"names must be a string or several", {3: jnp.ones(4)}),
        (ValueError, r"names .* got 'x'; it reaches: 'h', 'total'", {"x": jnp.ones(4)}),
        (
            ValueError,
            r"a value once, got two for 'h', one of them by 'h\*'",
            {"h": bend, "h*": bend},
        ),
        (
            ValueError,
            r"'h' must have shape \(4,\) or \(2, 4\) or \(3, 2, 4\), got \(3, 4\).*zeros_like",
            {"h": jnp.ones((3, 4))},
        ),
        (ValueError, r"'h' must have shape .*, got \(\)", {"h": 0.0}),
        (TypeError, r"'h' must have dtype float32, got int32", {"h": jnp.ones(4, int)}),
        (TypeError, r"'h' must be an array.*got NoneType", {"h": None}),
        (TypeError, r"'h' must be an array.*got Conditional", {"h": Conditional(X, True)}),
        (ValueError, r"'h' must have shape \(4,\), got \(3,\)", {"h": lambda h: h[1:]}),
        (TypeError, r"'h' must have dtype float32, got bfl", {"h": lambda h: h.astype("bfloat16")}),
        (TypeError, r"'h' must be an array.*got tuple", {"h": lambda h: (h, h)}),
    ],
)
def test_bad_input(error, message, replacements):
    with pytest.raises(error, match=message):
        inject(tapped("scan_in_scan"), replacements)(X)


def test_several_outputs_need_several_arrays():
    pair = inject(lambda x: lax.top_k(x, 2), {"top_k": X}, where=lambda e: "top_k" in str(e))
    with pytest.raises(TypeError, match="must be a tuple of 2 arrays"):
        pair(X)
