import json
import pathlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.ordered import OnLstm, OnLstmCarry, OnLstmParams, cumax, on_lstm, on_lstm_step
from zoo.ordered._loop import _master_gates as gates_by_products
from zoo.ordered.ordered_lstm import initial_carry, master_gates

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden" / "on_lstm_cell.json").read_text()
)
GATES = ("complement", "reverse", "none")


def golden_inputs():
    """The recipe of the golden file, in our layout."""

    def fill(shape, k):
        return 0.5 * np.sin(0.7 * np.arange(np.prod(shape)) + k).reshape(shape)

    params = OnLstmParams(fill((30, 3), 1).T, fill((30, 6), 3).T, fill(30, 2) + fill(30, 4))
    x = np.cos(np.arange(6)).reshape(2, 3)
    hidden = 0.1 * np.sin(np.arange(12)).reshape(2, 6)
    cell = 0.2 * np.cos(np.arange(12)).reshape(2, 3, 2)
    as_jax = partial(jax.tree.map, jnp.asarray)
    return as_jax(params), OnLstmCarry(*as_jax((hidden, cell))), jnp.asarray(x)


def normal(seed, shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


def random_layer(seed, *, inputs=5, features=8, chunk_size=2, scale=1.0):
    columns = 4 * features + 2 * features // chunk_size
    shapes = ((inputs, columns), (features, columns), (columns,))
    return OnLstmParams(*(normal((seed, i), shape, scale) for i, shape in enumerate(shapes)))


KINDS = ("chunk_size", "master_input")
step = partial(quick_jit(on_lstm_step, static_argnames=KINDS), chunk_size=2)
run = partial(quick_jit(on_lstm, static_argnames=(*KINDS, "reverse")), chunk_size=2)


def test_golden_values_and_gradients(double_precision):
    params, carry, x = golden_inputs()
    golden = GOLDEN["no_dropout"]
    after, depths = step(params, carry, x)
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    close(after.hidden, golden["hidden"])
    close(depths.forget, golden["depth_forget"])
    close(depths.input, golden["depth_input"])

    def loss(params):
        after, _ = on_lstm_step(params, carry, x, chunk_size=2)
        return jnp.sum(after.hidden) + jnp.sum(after.cell**2)

    value, gradient = quick_jit(jax.value_and_grad(loss))(params)
    close(value, golden["loss_sum_hidden_plus_sum_square_cell"])
    close(jnp.linalg.norm(gradient.input_kernel), golden["norm_gradient_W_ih"])
    close(jnp.linalg.norm(gradient.recurrent_kernel), golden["norm_gradient_W_hh"])
    rows = jnp.linalg.norm(gradient.input_kernel.T, axis=1)
    close(rows[:6], golden["row_norms_gradient_W_ih"])


def test_golden_values_with_changed_recurrent_weights(double_precision):
    params, carry, x = golden_inputs()
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    golden = GOLDEN["recurrent_weights_scaled_by_0.75"]
    scaled = params._replace(recurrent_kernel=0.75 * params.recurrent_kernel)
    after, depths = step(scaled, carry, x)
    close(after.hidden, golden["hidden"])
    close(after.cell[0].ravel(), golden["cell_row_0"])
    close(depths.forget, golden["depth_forget"])

    golden = GOLDEN["recurrent_weights_zero_where_flat_index_of_W_hh_is_a_multiple_of_4"]
    dropped = (np.arange(180) % 4 == 0).reshape(30, 6).T
    masked = params._replace(recurrent_kernel=jnp.where(dropped, 0, params.recurrent_kernel))
    close(step(masked, carry, x)[0].hidden[0], golden["hidden_row_0"])


def by_steps(params, xs, carry, mask, *, master_input, reverse):
    """What `on_lstm` computes, as a scan of `on_lstm_step`."""

    def body(carry, inputs):
        x, mask = inputs
        after, depths = on_lstm_step(params, carry, x, chunk_size=2, master_input=master_input)
        after, depths = jax.tree.map(
            lambda new, old: jnp.where(jnp.expand_dims(mask, tuple(range(1, new.ndim))), new, old),
            (after, depths),
            (carry, jax.tree.map(jnp.zeros_like, depths)),
        )
        return after, (after.hidden, depths)

    last, (hidden, depths) = jax.lax.scan(body, carry, (xs, mask), reverse=reverse)
    return hidden, last, depths


def by_loop(params, xs, carry, mask, **kinds):
    output = on_lstm(params, xs, carry, chunk_size=2, mask=mask, **kinds)
    return output.hidden, output.carry, output.depths


@pytest.fixture
def arguments(double_precision):
    carry = OnLstmCarry(normal(1, (3, 8)), normal(2, (3, 4, 2)))
    params = random_layer(0, scale=0.5)
    mask = jnp.arange(6)[:, None] < jnp.array([6, 4, 0])[None]
    return params, normal(3, (6, 3, 5)), carry, mask


def loss(function, *arguments, **kinds):
    output = function(*arguments, **kinds)
    leaves = jax.tree.leaves(output)
    return sum(jnp.vdot(jnp.sin(jnp.arange(x.size)), x.ravel()) for x in leaves), output


@pytest.mark.slow
@pytest.mark.parametrize(("master_input", "reverse"), [(gate, gate == "reverse") for gate in GATES])
def test_the_loop_equals_a_scan_of_the_step(master_input, reverse, arguments):
    """Values, gradient and directional derivative of the private fast form."""
    params, *rest, mask = arguments
    params = params if master_input != "none" else OnLstmParams(*(p[..., 8:] for p in params))

    @partial(quick_jit, static_argnums=0)
    def everything(function, *arguments):
        def scalar(*arguments):
            return loss(function, *arguments, mask, master_input=master_input, reverse=reverse)

        tangents = jax.tree.map(jnp.cos, arguments)
        slope = jax.jvp(scalar, arguments, tangents, has_aux=True)[1]
        return jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)(*arguments), slope

    ours, plain = (everything(function, params, *rest) for function in (by_loop, by_steps))
    for a, b in zip(*map(jax.tree.leaves, (ours, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_second_derivative_of_the_loop(arguments):
    params, xs, carry, mask = arguments

    def gradient(xs):
        function = lambda xs: loss(on_lstm, params, xs, carry, chunk_size=2, mask=mask)[0]  # noqa: E731
        return jax.grad(function)(xs)

    @quick_jit
    def both(xs, direction):
        return jax.jvp(gradient, (xs,), (direction,))

    direction = jnp.cos(xs)
    _, curvature = both(xs, direction)
    ahead, behind = (both(xs + step * direction, direction)[0] for step in (1e-5, -1e-5))
    np.testing.assert_allclose(curvature, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def test_a_sequence_can_be_cut():
    params = random_layer(0)
    xs = normal(1, (6, 3, 5))
    first = run(params, xs[:3])
    second = run(params, xs[3:], first.carry)
    np.testing.assert_allclose(second.hidden, run(params, xs).hidden[3:], atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_hard_limit_is_the_two_case_formula(reverse, double_precision):
    """With one-hot splits, units below, between and above d_f and d_i follow one rule each."""
    features, levels = 8, 8
    params = random_layer(4, chunk_size=1)
    bias = np.array(params.bias)
    x = normal(5, (1, 5))
    carry = OnLstmCarry(normal(6, (1, 8)), normal(7, (1, 8, 1)))
    z = np.asarray(x @ params.input_kernel + carry.hidden @ params.recurrent_kernel)
    master_input = "reverse" if reverse else "complement"
    for d_forget, d_input in [(2, 5), (5, 2), (3, 3), (0, 7), (7, 0)]:
        bias[:levels] = 1e3 * (np.arange(levels) == d_input) - z[0, :levels]
        bias[levels : 2 * levels] = (
            1e3 * (np.arange(levels) == d_forget) - z[0, levels : 2 * levels]
        )
        hard = params._replace(bias=jnp.asarray(bias))
        after, _ = step(hard, carry, x, chunk_size=1, master_input=master_input)
        f, i, candidate = (
            (z[0] + bias)[2 * levels + k * features : 2 * levels + (k + 1) * features]
            for k in (3, 2, 1)
        )
        candidate = np.tanh(candidate)
        mixed = 1 / (1 + np.exp(-f)) * carry.cell[0, :, 0] + 1 / (1 + np.exp(-i)) * candidate
        unit = np.arange(features)
        reads = unit <= d_input if reverse else unit < d_input
        keeps = unit >= d_forget
        expected = np.select(
            [reads & keeps, reads, keeps], [mixed, candidate, carry.cell[0, :, 0]], default=0
        )
        np.testing.assert_allclose(after.cell[0, :, 0], expected, atol=1e-9)


def test_top_chunk_is_dead_in_the_paper_and_alive_in_the_article():
    params = random_layer(7)
    xs = normal(8, (6, 3, 5))
    assert (run(params, xs).carry.cell[:, -1] == 0).all()
    assert (run(params, xs, master_input="reverse").carry.cell[:, -1] != 0).all()


def test_depth_is_the_expected_split_off_by_one(double_precision):
    # E[d] = L - Σ f̃ + 1 with levels counted from 1: the paper's L - Σ f̃ is one too small.
    z = jnp.array([1.0, 2.0, 3.0, 0.0])
    expected = jnp.sum(jnp.arange(1, 5) * jax.nn.softmax(z))
    np.testing.assert_allclose(expected, 2.620887148, atol=1e-9)
    np.testing.assert_allclose(4 - jnp.sum(cumax(z)) + 1, expected, rtol=1e-12)


def test_units_of_a_chunk_are_interchangeable():
    features, levels = 8, 4
    params = random_layer(9)
    xs = normal(10, (6, 3, 5))
    order = np.array([1, 0, 2, 3, 5, 4, 6, 7])  # swaps inside chunks only
    columns = np.concatenate(
        [np.arange(2 * levels)] + [2 * levels + k * features + order for k in range(4)]
    )
    permuted = OnLstmParams(
        params.input_kernel[:, columns],
        params.recurrent_kernel[order][:, columns],
        params.bias[columns],
    )
    np.testing.assert_allclose(
        run(permuted, xs).hidden, run(params, xs).hidden[..., order], atol=1e-5
    )


@pytest.mark.slow
def test_what_stands_at_padding_has_no_influence():
    params = random_layer(20)
    xs = normal(21, (6, 3, 5)).at[4:, 1].set(jnp.nan)
    mask = jnp.arange(6)[:, None] < jnp.array([6, 4, 0])[None]

    def loss(xs):
        output = on_lstm(params, xs, chunk_size=2, mask=mask)
        return jnp.sum(output.hidden**2), output

    gradient, output = quick_jit(jax.grad(loss, has_aux=True))(xs)
    alone = run(params, xs[:4, 1:2])
    np.testing.assert_allclose(output.hidden[:4, 1:2], alone.hidden, atol=1e-6)
    np.testing.assert_allclose(output.carry.cell[1:2], alone.carry.cell, atol=1e-6)
    np.testing.assert_array_equal(output.hidden[5, 1], output.carry.hidden[1])
    assert (output.depths.forget[4:, 1] == 0).all()
    assert (output.carry.hidden[2] == 0).all()  # a sentence without words
    assert (gradient[4:, 1] == 0).all()
    assert (gradient[:4, 1] != 0).all()


def test_reversed_reads_from_the_end():
    params = random_layer(22)
    xs = normal(23, (6, 3, 5))
    output = run(params, xs, reverse=True)
    np.testing.assert_allclose(output.hidden[::-1], run(params, xs[::-1]).hidden, atol=1e-6)
    np.testing.assert_array_equal(output.hidden[0], output.carry.hidden)


@pytest.mark.slow
def test_without_master_gates_it_is_a_plain_lstm():
    params = random_layer(24)
    xs = normal(25, (6, 3, 5))
    plain = OnLstmParams(*(p[..., 8:] for p in params))
    output = run(plain, xs, master_input="none")
    order = np.array([2, 3, 1, 0])  # Flax: input, forget, candidate, output
    lstm = nnx.OptimizedLSTMCell(5, 8, rngs=nnx.Rngs(0))
    kernels = [p.reshape(*p.shape[:-1], 4, 8)[..., order, :] for p in plain]
    lstm.dense_i.kernel[...] = kernels[0].reshape(5, 32)
    lstm.dense_h.kernel[...] = kernels[1].reshape(8, 32)
    lstm.dense_h.bias[...] = kernels[2].reshape(32)
    zeros = jnp.zeros((3, 8))
    theirs = nnx.RNN(lstm, time_major=True)(xs, initial_carry=(zeros, zeros))
    np.testing.assert_allclose(output.hidden, theirs, atol=1e-5)
    forget = jax.nn.sigmoid(xs[0] @ plain.input_kernel + plain.bias[None])[:, 24:]
    np.testing.assert_allclose(output.depths.forget[0], 1 - forget.mean(-1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("master_input", ["complement", "reverse"])
def test_master_gates_stay_in_their_bounds_and_in_order(master_input):
    # 1 - cumsum in float32 is negative in one draw of ten at this size.
    logits = 3 * normal(26, (500, 200))
    gates = quick_jit(partial(master_gates, master_input=master_input))(logits)
    products = quick_jit(partial(gates_by_products, master_input=master_input))(logits.T)
    for (gate, product), falling in zip(zip(gates, products, strict=True), (0, 1), strict=True):
        product = np.asarray(product[:, 0].T)
        np.testing.assert_allclose(product, gate, atol=2e-6)
        for values, rounding in ((np.asarray(gate), 0), (product, 3e-7)):
            assert ((values >= 0) & (values <= 1)).all()
            rising = values[:, ::-1] if falling else values
            assert (np.diff(rising) >= -rounding).all()
        end, value = (-1, 0) if falling and master_input == "complement" else (-1 + falling, 1)
        assert (gate[:, end] == value).all()
        assert (product[:, end] == value).all()


def test_no_step_is_the_identity():
    carry = OnLstmCarry(jnp.ones((3, 8)), jnp.ones((3, 4, 2)))
    output = run(random_layer(13), jnp.zeros((0, 3, 5)), carry)
    assert output.hidden.shape == (0, 3, 8)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), output.carry, carry))


@pytest.mark.slow
def test_gradient_in_bfloat16():
    params = random_layer(14, scale=0.3)
    xs = normal(15, (1, 3, 5))  # in a loop of one step XLA merges the transpose
    gradient = jax.jit(
        jax.grad(
            lambda *arguments: jnp.sum(
                on_lstm(*arguments, chunk_size=2).hidden.astype(jnp.float32) ** 2
            ),
            argnums=(0, 1),
        )
    )
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, xs))
    pairs = zip(
        jax.tree.leaves(gradient(*narrow)), jax.tree.leaves(gradient(params, xs)), strict=True
    )
    for ours, exact in pairs:
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            ours.astype(jnp.float32), exact, atol=0.02 * float(jnp.abs(exact).max())
        )


def test_module_and_its_use_from_linen():
    layer = OnLstm(5, 8, chunk_size=2, rngs=nnx.Rngs(0))
    xs = normal(16, (6, 3, 5))
    np.testing.assert_array_equal(layer(xs).hidden, on_lstm(layer.params, xs, chunk_size=2).hidden)
    bound = 5**-0.5
    assert 0.9 * bound < jnp.abs(layer.params.input_kernel).max() <= bound

    class Tagger(nn.Module):
        @nn.compact
        def __call__(self, xs):
            layer = nnx.bridge.to_linen(OnLstm, 5, 8, chunk_size=2, name="reader")
            return nn.Dense(2)(layer(xs).hidden)

    variables = Tagger().init(jax.random.key(17), xs)
    tags = Tagger().apply(variables, xs)
    assert tags.shape == (6, 3, 2)
    reader = variables["params"]["reader"]
    params = OnLstmParams(*(reader[name] for name in OnLstmParams._fields))
    dense = variables["params"]["Dense_0"]
    expected = on_lstm(params, xs, chunk_size=2).hidden @ dense["kernel"]
    np.testing.assert_allclose(tags, expected, atol=1e-5)


def test_a_chunk_that_does_not_divide_the_units_is_refused_at_once():
    with pytest.raises(ValueError, match=r"must divide.*8, got 5"):
        OnLstm(5, 8, chunk_size=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"master_input must be one of .*; got 'none'"):
        master_gates(jnp.zeros((3, 4)), master_input="none")
    with pytest.raises(ValueError, match=r"must divide.*8, got 3"):
        initial_carry(3, 8, chunk_size=3)
