"""Values by module path, lists of values, and their gradients: all without touching the model."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from tests.battery import quick_jit
from tests.capture.programs import X, tapped
from tests.capture.test_capture import assert_close, assert_same, weighted_sum
from zoo.capture import capture, inject, list_values, tap


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(3, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.linear(self.norm(x)))


class Network(nnx.Module):
    """Modules in a list, one that changes its state, one that is called twice, one that is not."""

    def __init__(self, rngs):
        self.layers = nnx.List([Block(rngs) for _ in range(2)])
        self.batch_norm = nnx.BatchNorm(3, rngs=rngs)
        self.head, self.unused = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.head(self.batch_norm(x)))

    def loss(self, x):
        return (self(x) ** 2).sum()


INPUT = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)


@pytest.fixture(scope="module")
def network():
    return nnx.jit(lambda: Network(nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def by_hand(network):
    model = nnx.clone(network)
    first = model.layers[0](INPUT)
    normed = model.layers[1].norm(first)
    linear = model.layers[1].linear(normed)
    last = model.batch_norm(first + jnp.tanh(linear))
    once = model.head(last)
    values = {"layers/0": first, "layers/1/norm": normed, "layers/1/linear": linear}
    return values | {"batch_norm": last, "head#0": once, "head#1": model.head(once)}


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x, **o: capture(m, **o)(x),
        lambda m, x, **o: capture(nnx.jit(lambda a, b: a(b)), **o)(m, x),
        lambda m, x, **o: capture(jax.jit(lambda a, b: a["model"](b)), **o)({"model": m}, x),
        lambda m, x, **o: capture(m.__call__, **o)(x),
    ],
    ids=["module", "nnx.jit", "tree", "method"],
)
def test_modules_of_nnx_by_path(network, by_hand, call):
    before = nnx.to_pure_dict(nnx.state(network)), type(network.head)
    paths = ["layers.0", "layers.1.*", "batch_norm", "head"]
    output, values = call(network, INPUT, paths=paths)
    assert list(values) == list(by_hand)
    assert_close(values, by_hand, 1e-5)
    assert_close(output, by_hand["head#1"], 1e-5)
    assert type(network.head) is before[1]
    assert not hasattr(network.head, "_capture_path")
    assert_same(nnx.to_pure_dict(nnx.state(network)), before[0])


def test_paths_may_be_replaced(network, by_hand):
    zeros = inject(network, {"layers.1.linear": jnp.zeros_like}, paths="layers.1.linear")
    expected = network.head(network.head(nnx.clone(network).batch_norm(by_hand["layers/0"])))
    assert_close(zeros(INPUT), expected, 1e-5)


def test_what_is_compiled_with_taps_is_not_found_without(network):
    run = jax.jit(lambda model, x: model.layers[0](x))
    assert list(capture(run, paths="layers.0.norm")(network, INPUT)[1]) == ["layers/0/norm"]
    assert list(capture(run, paths="layers.0.linear")(network, INPUT)[1]) == ["layers/0/linear"]
    assert capture(run)(network, INPUT)[1] == {}


def test_stacked_layers_give_one_value_per_layer():
    @nnx.vmap
    def make(key):
        return Block(nnx.Rngs(key))

    class Stacked(nnx.Module):
        def __init__(self):
            self.layers = make(jax.random.split(jax.random.key(0), 4))

        def __call__(self, x):
            graph, state = nnx.split(self.layers)
            return lax.scan(lambda x, part: (nnx.merge(graph, part)(x), None), x, state)[0]

    model = Stacked()
    _, values = capture(model, paths=["layers.linear", "layers"])(INPUT)
    graph, state = nnx.split(model.layers)
    x = INPUT
    for i in range(4):
        layer = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))
        np.testing.assert_allclose(values["layers/linear"][i], layer.linear(layer.norm(x)), 1e-5)
        x = layer(x)
        np.testing.assert_allclose(values["layers"][i], x, rtol=1e-5)


def test_a_backbone_inside_of_another_module(network):
    def features(model, x):
        y, values = capture(model.layers[0], paths="linear")(x)
        return (y + values["linear"]).sum()

    def by_hand(model, x):
        block = model.layers[0]
        return (block(x) + block.linear(block.norm(x))).sum()

    found, expected = (nnx.grad(f)(network, INPUT) for f in (features, by_hand))
    assert_close(nnx.to_pure_dict(found), nnx.to_pure_dict(expected), 1e-5)


def test_modules_of_linen_by_path():
    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(3, name="first")(x))
            return nn.Dense(2)(nn.remat(nn.LayerNorm)(name="norm")(x))

    model = Encoder()
    variables = quick_jit(model.init)(jax.random.key(0), INPUT)
    run = jax.jit(model.apply)
    run(variables, INPUT)  # what was compiled before has no taps
    output, values = capture(run, paths=["first", "norm"])(variables, INPUT)
    _, sown = model.apply(variables, INPUT, capture_intermediates=True)
    for name in ("first", "norm"):
        np.testing.assert_allclose(values[name], sown["intermediates"][name]["__call__"][0], 1e-5)
    np.testing.assert_allclose(output, model.apply(variables, INPUT), rtol=1e-5)


@pytest.mark.parametrize(
    ("paths", "error", "message"),
    [
        ("layers.7", ValueError, r"got 'layers/7'; called are: layers/0/norm, .*, head\. A module"),
        ("unused", ValueError, "paths must be of modules that are called, got 'unused'"),
        (["head", "head"], ValueError, r"paths must be different, got \['head'\] twice"),
        (3, TypeError, "paths must be a string or several, got 3"),
    ],
)
def test_paths_that_are_refused(network, paths, error, message):
    with pytest.raises(error, match=message):
        capture(network, paths=paths)(INPUT)


def test_lists_of_values(network):
    listing = list_values(network)(jax.ShapeDtypeStruct((2, 3), "float32"))
    layers = [f"layers/{i}{part}" for i in range(2) for part in ("/norm", "/linear", "")]
    assert [row.name for row in listing] == [*layers, "batch_norm", "head#0", "head#1"]
    assert {(row.shape, str(row.dtype)) for row in listing} == {((2, 3), "float32")}
    assert {row.source.rpartition(":")[0] for row in listing} == {"tests/capture/test_modules.py"}
    lines = repr(listing).splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "source"]
    assert len(lines) == len(listing) + 1

    def program(x):
        return lax.scan(lambda c, x: (tap(c * x, "c"), jnp.sin(x)), 1.0, x)

    names = [row.name for row in list_values(program, where=lambda e: True)(X)]
    assert {"mul", "c", "sin"} <= {*names}
    assert names.count("scan") == 2  # one row per output


def total(name):
    return lambda x: weighted_sum(tapped(name)(x))


@pytest.mark.parametrize(
    "name", ["remat", "custom_vjp", "scan_in_scan", "switch_in_scan", "scan_in_shard_map"]
)
def test_gradients_are_those_of_a_shift(name):
    """The sum over the entries of a loop, against shifts by one number through a function."""
    function = total(name)
    output, values, gradients = quick_jit(capture(function, gradients=True))(X)
    assert_close(output, function(X), 1e-5)
    assert values.keys() == gradients.keys()

    @quick_jit
    @jax.grad
    def by_shift(shifts):
        return inject(function, {n: lambda v, s=s: v + s for n, s in shifts.items()})(X)

    found = by_shift({n: jnp.float32(0) for n in gradients})
    assert_close({n: g.sum() for n, g in gradients.items()}, found, 1e-5)


def test_gradients_by_module_and_beside_custom_rules(network, by_hand):
    function = functools.partial(capture, paths="layers.0", gradients=True)
    loss, values, gradients = function(network.loss)(INPUT)
    rest = nnx.clone(network)

    def from_first(x):
        graph, state = nnx.split(rest)
        model = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
        return (model.head(model.head(model.batch_norm(model.layers[1](x)))) ** 2).sum()

    expected = jax.value_and_grad(from_first)(by_hand["layers/0"])
    assert_close((loss, gradients["layers/0"]), expected, 1e-4)

    @jax.custom_jvp
    def rounded(x):  # straight through
        return tap(jnp.round(x), "rounded")

    rounded.defjvps(lambda tangent, y, x: tangent)
    _, values, gradients = capture(
        lambda x: jnp.sum(3 * rounded(tap(2 * x, "twice"))), gradients=True
    )(X)
    assert list(values) == list(gradients) == ["twice", "rounded"]
    assert_close(gradients, {"twice": jnp.full(4, 3.0), "rounded": jnp.full(4, 3.0)})


def test_gradients_of_branches_integers_and_vectors():
    def function(x):
        count = tap(jnp.int32(3), "count")
        return count * lax.cond(x > 0, lambda x: tap(x * x, "square"), lambda x: x, x)

    _, values, gradients = capture(function, gradients=True)(jnp.float32(2))
    assert (list(gradients), float(gradients["square"])) == (["square"], 3)
    _, values, gradients = capture(function, gradients=True)(jnp.float32(-2))
    assert not values["square"].present
    assert gradients["square"] == 0
    with pytest.raises(ValueError, match=r"fn must return one floating scalar .* got float32\[4\]"):
        capture(lambda x: tap(x, "x"), gradients=True)(X)
