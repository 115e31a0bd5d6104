"""Captured values against functions that return them by hand, in every kind of program."""

import contextlib
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from tests.battery import quick_jit
from tests.capture.programs import GRADIENTS, LOOPS, PAIRS, RICH, X, by_hand, mesh, tapped
from zoo.capture import Conditional, capture, inject, tap
from zoo.capture.interpreter import REMEMBERED

CUSTOM = ("custom_jvp", "custom_vjp")
NOT_REVERSE = (*LOOPS, "control_flow_in_shard_map")


def assert_same(actual, expected):
    """The same bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    kinds = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert kinds(actual) == kinds(expected)


def assert_close(actual, expected, tolerance=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_those_of_the_twin_and_outputs_do_not_change(name):
    function = tapped(name)
    twin = jax.jit(by_hand(name))(X)
    output, values = jax.jit(capture(function))(X)
    assert_close((output, values), twin)
    assert_same(output, twin[0])
    if name != "while_loop":
        # There XLA contracts a product and a sum to one instruction when nobody else reads the
        # product: a program with one more output, captured or by hand, can differ by a rounding.
        assert_same(output, jax.jit(function)(X))
    if not name.endswith("shard_map"):  # slow without jit
        output, values = capture(function)(X)
        assert_close((output, values), twin)
        assert_same(output, function(X))


def weighted_sum(tree):
    """A number that depends differently on every float of a tree."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    terms = (
        jnp.vdot(x, jnp.cos(1.0 + i + jnp.arange(x.size)).reshape(x.shape))
        for i, x in enumerate(floats)
    )
    return functools.reduce(operator.add, terms)


@pytest.mark.parametrize("name", RICH + GRADIENTS)
def test_values_have_gradients(name):
    direction = jnp.array([1.0, -0.5, 0.3, 2.0])

    def derivatives(function):
        def total(x):
            return weighted_sum(function(x))

        def both(x):
            forward = jax.jvp(total, (x,), (direction,))
            return forward, () if name in NOT_REVERSE else jax.grad(total)(x)

        return quick_jit(both)(X)

    assert_close(derivatives(capture(tapped(name))), derivatives(by_hand(name)), 1e-5)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [("custom_jvp", jax.jit), ("custom_vjp", lambda f: f), ("custom_vjp", jax.checkpoint)],
)
def test_custom_rules_stay_for_the_output_and_values_are_ordinary(name, wrap):
    captured = wrap(capture(tapped(name)))
    assert_close(jax.grad(lambda x: captured(x)[0])(X), jnp.full(4, 100.0))
    assert_close(jax.grad(lambda x: jnp.sum(captured(x)[1]["h"]))(X), jnp.cos(X))

    @quick_jit
    @jax.grad
    def in_scan(x):
        return lax.scan(lambda c, _: (c + captured(x)[0], captured(x)[1]["h"]), 0.0, None, 2)[0]

    assert_close(in_scan(X), jnp.full(4, 200.0))


def test_everything_inside_everything():
    @jax.custom_vjp
    def inner(x):
        return jax.vmap(lambda x: tap(jnp.sin(x), "h"))(x)

    inner.defvjp(lambda x: (inner(x), x), lambda x, g: (g,))

    @jax.jit
    @jax.checkpoint
    def function(x):
        def twice(x):
            def body(state):
                return jax.jit(inner)(state[0]), state[1] + 1

            return lax.while_loop(lambda state: state[1] < 2, body, (x, 0))[0]

        def step(x, goes):
            x = lax.cond(goes, twice, lambda x: -x, x)
            return x, x

        return lax.scan(step, x, jnp.array([True, False, True]))

    output, values = capture(function)(X)
    sines = [jnp.sin(jnp.sin(X)), jnp.zeros(4), -jnp.sin(jnp.sin(jnp.sin(jnp.sin(X))))]
    assert list(values) == ["h"]
    assert_close(values["h"].value, jnp.stack(sines))
    assert values["h"].present.tolist() == [True, False, True]
    assert_same(output, function(X))


def test_vmap_of_capture_has_a_leading_batch_axis_and_flags_per_entry():
    def function(x):
        y = lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: tap(c + 1, "last"), x)
        return lax.cond(x[0] > 0, lambda x: tap(2 * x, "h"), lambda x: x, y)

    batch = jnp.stack([X, -X, 2 * X])
    output, values = jax.vmap(capture(function), in_axes=1)(batch.T)
    each = [capture(function)(x) for x in batch]
    assert_close((output, values), jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
    assert values["h"].present.tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [float, int])
def test_loop_that_never_runs_gives_nan_or_zero(dtype):
    def function(x):
        return lax.while_loop(lambda c: jnp.sum(c) < -9, lambda c: tap(c + 1, "last"), x)

    _, values = capture(function)(X.astype(dtype))
    assert (jnp.isnan(values["last"]) if dtype is float else values["last"] == 0).all()


def test_loop_of_known_length_is_stacked():
    _, values = capture(lambda x: lax.fori_loop(0, 3, lambda _, x: tap(jnp.sin(x), "h"), x))(X)
    sines = [jnp.sin(X), jnp.sin(jnp.sin(X)), jnp.sin(jnp.sin(jnp.sin(X)))]
    assert_close(values, {"h": jnp.stack(sines)})


def test_hits_are_numbered_in_program_order_and_chosen_by_number_or_pattern():
    inner = jax.jit(lambda x: tap(x + 1, "h"))

    def function(x):
        return tap(inner(inner(x)) * tap(2 * x, "twice"), "h")

    _, values = capture(function)(1.0)
    assert list(values) == ["h#0", "h#1", "twice", "h#2"]
    assert [float(v) for v in values.values()] == [2, 3, 2, 6]
    assert list(capture(function, "h")(1.0)[1]) == ["h#0", "h#1", "h#2"]
    assert list(capture(function, ["twice", "h#1"])(1.0)[1]) == ["h#1", "twice"]
    assert list(capture(function, "h#*")(1.0)[1]) == ["h#0", "h#1", "h#2"]
    assert capture(function, [])(1.0) == (6, {})


def test_tap_is_checkpoint_name_and_vanishes_when_compiled():
    tree = {"a": X, "b": (X, None)}
    ours = jax.make_jaxpr(lambda x: tap(x, "h"))(tree)
    assert str(ours) == str(jax.make_jaxpr(lambda x: checkpoint_name(x, "h"))(tree))
    assert tap((), "h") == ()

    def function(x, tap):
        return lax.scan(lambda c, x: (tap(jnp.sin(c + x), "h"),) * 2, 0.0, x)

    def lowered(tap):
        return jax.jit(lambda x: function(x, tap)).lower(X).as_text()

    assert lowered(tap) == lowered(lambda x, _: x)


def test_names_of_others_work_and_policies_obey_ours(capsys):
    def function(x):
        return jnp.sum(jnp.sin(tap(jnp.sin(checkpoint_name(jnp.sin(x), "theirs")), "ours")))

    assert list(capture(function)(X)[1]) == ["theirs", "ours"]
    policy = jax.checkpoint_policies.save_only_these_names("ours")
    saving = jax.checkpoint(function, policy=policy)
    jax.ad_checkpoint.print_saved_residuals(lambda x: capture(saving, "theirs")(x)[0], X)
    saved = capsys.readouterr().out
    assert "named 'ours'" in saved
    assert "named 'theirs'" not in saved


@pytest.mark.parametrize("name", ["scan_in_scan", "remat", "shard_map"])
def test_captured_costs_what_a_hand_written_output_costs(name):
    ours = jax.jit(capture(tapped(name))).lower(X).compile().cost_analysis()
    twin = jax.jit(by_hand(name)).lower(X).compile().cost_analysis()
    for count in ("flops", "transcendentals", "bytes accessed"):
        assert ours.get(count) == twin.get(count)


@contextlib.contextmanager
def counted_compilations():
    compilations = []

    def listener(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_traced_once_under_jit_and_compiled_once_without():
    traces = []
    step = lambda c, x: (tap(jnp.sin(c + x), "h"), c)  # noqa: E731

    @jax.jit
    def model(x):
        return tap(jnp.exp(x), "exp")

    def function(x):
        traces.append(1)
        y, _ = lax.scan(step, jnp.float32(0), x)
        return lax.cond(y > 0, model, jnp.cos, x) + model(x)

    jitted = jax.jit(capture(function))
    jitted(X)
    jitted(X + 1)
    assert len(traces) == 1

    capture(function)(X)
    with counted_compilations() as compilations:
        capture(function)(X + 1)
    assert not compilations


def test_one_block_at_many_places_is_compiled_once_and_all_are_remembered():
    """Their names differ, the program does not; and thousands do not push each other out."""
    block = jax.jit(lambda x: tap(jnp.sin(x), "h"))
    blocks = [jax.jit(lambda x, i=i: tap(x + i, "own")) for i in range(3)]

    def function(x):
        for _ in range(300):
            x = block(x)
        return sum(own(x) for own in blocks)

    with counted_compilations() as compilations:
        values = capture(function)(X)[1]
    assert len(values) == 303
    assert len(compilations) < 10
    assert REMEMBERED > 1000
    with counted_compilations() as compilations:
        capture(function)(X)
    assert not compilations


def one_of_a_batch(x):
    """A loop whose length differs between entries, and whose condition is read too."""

    def body(state):
        h = tap(state[0] * 2, "h")
        return h, state[1] + 1, jax.random.fold_in(state[2], state[1])

    start = x, 0, jax.random.key(0)
    x, steps, key = lax.while_loop(lambda state: tap(jnp.sum(state[0]), "total") < 9, body, start)
    return x, steps, jax.random.uniform(key)


def test_batched_predicates_of_loops():
    batch = jnp.abs(jnp.stack([X, 3 * X, 100 * X]))
    function = jax.vmap(one_of_a_batch)
    for transform in (lambda f: f, jax.jit):
        output, values = transform(capture(function))(batch)
        assert_close(output, function(batch))
        assert output[1].tolist() == [2, 1, 0]
        assert_close(values["total"], jnp.sum(output[0], axis=1))
        assert values["h"].shape == batch.shape
        assert_close(values["h"][0], output[0][0])  # the one that ran longest
        halved = transform(inject(function, {"h": lambda h: h * 0.75}))(batch)
        by_hand = jax.vmap(inject(one_of_a_batch, {"h": lambda h: h * 0.75}))(batch)
        assert_close(halved, by_hand)
    tangents = jax.jvp(lambda x: capture(function)(x)[0][0], (batch,), (jnp.ones_like(batch),))[1]
    assert_close(tangents, 2.0 ** output[1][:, None] * jnp.ones((1, 4)))


def test_options_of_jit_stay():
    split = NamedSharding(mesh(4), PartitionSpec("data"))
    options = {"in_shardings": split, "out_shardings": (None, split), "donate_argnums": 0}

    @functools.partial(jax.jit, **options)
    def function(x):
        return tap(2 * x, "h") + 1, jnp.ones(4)

    x, twin = jax.device_put(X, split), jax.device_put(X, split)
    outputs, values = capture(function)(x)
    assert_same(outputs, function(twin))
    assert outputs[1].sharding.is_equivalent_to(split, 1)
    assert x.is_deleted() == twin.is_deleted()
    assert_close(values, {"h": 2 * X})


def test_branch_that_only_some_shards_take():
    """A constant differs between shards if whether it is there does."""

    def local(x):
        yes = lambda x: x + tap(jnp.float32(3), "three")  # noqa: E731
        return lax.cond(jnp.sum(x) > 0, yes, lambda x: x, x)

    split = PartitionSpec("data")
    function = jax.shard_map(local, mesh=mesh(), in_specs=split, out_specs=split)
    _, values = jax.jit(capture(function))(X)
    assert values["three"].present.tolist() == [False, True]
    assert values["three"].value.tolist() == [0, 3]


def test_mesh_with_explicit_axes():
    explicit = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    x = jax.device_put(X, NamedSharding(explicit, PartitionSpec("data")))

    def function(x):
        x = lax.cond(jnp.sum(x) > 0, lambda x: tap(2 * x, "h"), lambda x: x, x)
        return lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: tap(x + 1, "last"), x)

    with jax.set_mesh(explicit):
        output, values = jax.jit(capture(function))(x)
        changed = jax.jit(inject(function, {"h": np.ones(4, np.float32)}))(x)
    assert_close(output, 2 * X + 2)
    assert_close(values, {"h": Conditional(2 * X, jnp.array(True)), "last": 2 * X + 2})
    assert_close(changed, jnp.full(4, 3.0))
    assert values["last"].sharding.is_equivalent_to(x.sharding, 1)


def test_pmap_is_a_shard_map():
    _, values = capture(jax.pmap(lambda x: tap(2 * x, "h")))(jnp.stack([X, -X]))
    assert_close(values, {"h": jnp.concatenate([2 * X, -2 * X])})


def test_reads_what_the_function_reads_now():
    weights = {"w": jnp.float32(2)}

    def function(x):
        return tap(x * weights["w"], "h")

    captured = capture(function)
    assert captured(3.0)[1]["h"] == 6
    weights["w"] = jnp.float32(5)
    assert captured(3.0)[1]["h"] == 15


def test_arguments_that_are_no_arrays_pass_as_they_are():
    def function(x, *, train, mode="sum", tree):
        assert mode in ("sum", "mean")
        scale = 2.0 if train else 1.0
        return {"y": tap(scale * x + tree["b"], "h"), "none": tree["none"]}

    tree = {"b": np.float32(1), "none": None, "text": "t"}
    output, values = capture(function)(X, train=True, tree=tree)
    assert_close(output, {"y": 2 * X + 1, "none": None})
    assert_close(values, {"h": 2 * X + 1})
    assert capture(lambda: ())() == ((), {})


def test_trees_keys_and_integers_can_be_tapped():
    def function(key):
        new = tap(jax.random.key_data(key), "bits")
        pair = tap({"a": new.astype(jnp.int32), "k": key}, "pair")
        keys = lax.cond(new[0] > 0, lambda k: tap(k, "key"), lambda k: k, pair["k"])
        return jax.random.uniform(keys, (2,))

    key = jax.random.key(3)
    output, values = capture(function)(key)
    assert_same(output, jax.random.uniform(key, (2,)))
    assert list(values) == ["bits", "pair#0", "pair#1", "key"]
    assert values["key"].value.dtype == key.dtype
    assert not values["key"].present


def test_captures_of_captures():
    function = tapped("scan")
    (output, inner), outer = capture(capture(function, "h"))(X)
    assert_same(inner["h"], outer["h"])
    assert_same(output, function(X))


def test_memory_of_dead_values_is_freed_on_the_way():
    """As many arrays as the plain call keeps, not one per equation."""
    x = jnp.ones((8, 128))

    def function(x, probe):
        for _ in range(10):
            x = jnp.sin(x)
        jax.debug.callback(probe)
        return tap(x, "h")

    def peak(call):
        counts = []
        call(lambda: counts.append(sum(a.shape == x.shape for a in jax.live_arrays())))
        jax.effects_barrier()
        return max(counts)

    plain = peak(lambda probe: function(x, probe))
    assert peak(lambda probe: capture(functools.partial(function, probe=probe))(x)) <= plain + 1


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "name must be a string, got int", lambda: tap(X, 3)),
        (ValueError, "name .* '#'.* and not empty, got ''", lambda: tap(X, "")),
        (ValueError, "name .* '#'.*, got 'h#0'", lambda: tap(X, "h#0")),
        (ValueError, r"name .* '#'.*, got 'h\*'", lambda: tap(X, "h*")),
        (TypeError, "fn must be callable, got int", lambda: capture(3)),
        (TypeError, "where must be callable, got str", lambda: capture(abs, where="a")),
        (TypeError, "names must be a string.*got 3.*where=", lambda: capture(abs, 3)),
        (TypeError, "names must be a string", lambda: capture(abs, ["a", None])),
        (ValueError, r"different, got \['h'\] twice", lambda: capture(abs, ["h", "a", "h"])),
        (
            ValueError,
            "names .*got 'x'; it reaches: 'h', 'total'$",
            lambda: capture(tapped("scan_in_scan"), "x")(X),
        ),
        (ValueError, "got 'h'; it reaches: none", lambda: capture(lambda: tap((), "h"), "h")()),
        (
            ValueError,
            "where must select at least one equation, got none; jax.make_jaxpr",
            lambda: capture(jnp.sin, where=lambda e: e.primitive.name == "cos")(X),
        ),
    ],
)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_what_cannot_be_reached_is_said():
    @jax.custom_batching.custom_vmap
    def rule(x):
        return tap(x, "in a rule")

    rule.def_vmap(lambda size, batched, x: (x, batched[0]))

    def function(x):
        total = lax.reduce(rule(x), 0.0, lambda a, b: tap(a + b, "in a reducer"), (0,))
        return tap(total, "after")

    with pytest.raises(ValueError, match=r"'in a rule' lies inside '\w+', whose .*name the taps"):
        capture(function)(X)
    lost = (
        r"got 'x'; it reaches: 'after'; out of reach: 'in a rule' in \w+, 'in a reducer' in reduce"
    )
    with pytest.raises(ValueError, match=lost):
        capture(function, "x")(X)
    with pytest.raises(ValueError, match="'in a reducer' lies inside 'reduce'"):
        inject(function, {"in a reducer": jnp.sin})(X)
    assert_close(capture(function, "after")(X)[1], {"after": jnp.sum(X)})
