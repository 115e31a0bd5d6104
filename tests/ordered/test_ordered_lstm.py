import json
import pathlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.ordered import (
    Depths,
    OnLstm,
    OnLstmCarry,
    OnLstmParams,
    cumax,
    initial_carry,
    master_gates,
    on_lstm,
    on_lstm_step,
)

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden" / "on_lstm_cell.json").read_text()
)


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


def random_layer(key, *, inputs=5, features=8, chunk_size=2, scale=1.0):
    columns = 4 * features + 2 * features // chunk_size
    shapes = OnLstmParams((inputs, columns), (features, columns), (columns,))
    keys = jax.random.split(key, 3)
    return OnLstmParams(
        *(scale * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))
    )


step = jax.jit(partial(on_lstm_step, chunk_size=2))
run = jax.jit(partial(on_lstm, chunk_size=2))
run_reverse = jax.jit(partial(on_lstm, chunk_size=2, master_input="reverse"))


def plain_loop(params, xs, carry):
    """The equations of the paper, one word and one unit of cumax at a time, in numpy."""
    hidden, cell = np.asarray(carry.hidden), np.asarray(carry.cell)
    batch, levels, chunk = cell.shape
    features = levels * chunk
    w, u, b = (np.asarray(p) for p in params)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)  # noqa: E731
    outputs = []
    for x in np.asarray(xs):
        z = x @ w + hidden @ u + b
        master_in = 1 - np.cumsum(softmax(z[:, :levels]), -1)
        master_forget = np.cumsum(softmax(z[:, levels : 2 * levels]), -1)
        o, candidate, i, f = np.split(z[:, 2 * levels :], 4, axis=-1)
        wide_in, wide_forget = (np.repeat(g, chunk, axis=-1) for g in (master_in, master_forget))
        overlap = wide_in * wide_forget
        kept = sigmoid(f) * overlap + wide_forget - overlap
        written = sigmoid(i) * overlap + wide_in - overlap
        flat = kept * cell.reshape(batch, features) + written * np.tanh(candidate)
        hidden = sigmoid(o) * np.tanh(flat)
        cell = flat.reshape(batch, levels, chunk)
        outputs.append((hidden, 1 - master_forget.mean(-1), master_in.mean(-1)))
    hiddens, forget, input_ = (np.stack(part) for part in zip(*outputs, strict=True))
    return hiddens, OnLstmCarry(hidden, cell), Depths(forget, input_)


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

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
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


def test_equals_the_equations_step_by_step(double_precision):
    params = random_layer(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (6, 3, 5))
    carry = OnLstmCarry(
        jax.random.normal(jax.random.key(2), (3, 8)),
        jax.random.normal(jax.random.key(3), (3, 4, 2)),
    )
    output = run(params, xs, carry)
    for ours, theirs in zip(
        jax.tree.leaves((output.hidden, output.carry, output.depths)),
        jax.tree.leaves(plain_loop(params, xs, carry)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_sequence_equals_steps_and_can_be_cut():
    params = random_layer(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (6, 3, 5))
    output = run(params, xs)
    carry = initial_carry(3, 8, chunk_size=2)
    for t in range(6):
        carry, depths = step(params, carry, xs[t])
        np.testing.assert_allclose(output.hidden[t], carry.hidden, atol=1e-6)
        np.testing.assert_allclose(output.depths.forget[t], depths.forget, atol=1e-6)
    first = run(params, xs[:3])
    second = run(params, xs[3:], first.carry)
    np.testing.assert_allclose(second.hidden, output.hidden[3:], atol=1e-6)


def test_gradient_equals_that_of_the_plain_loop(double_precision):
    # The derivative rule is ours: compare with autodiff through the equations written in jax.
    params = random_layer(jax.random.key(0), scale=0.5)
    xs = jax.random.normal(jax.random.key(1), (4, 2, 5))
    carry = OnLstmCarry(*(0.3 * jnp.ones(shape) for shape in ((2, 8), (2, 4, 2))))
    weights = jax.random.normal(jax.random.key(2), (4, 2, 8))

    def ours(params, xs, carry):
        output = on_lstm(params, xs, carry, chunk_size=2)
        return jnp.sum(weights * output.hidden) + jnp.sum(output.depths.forget * weights[..., 0])

    def plain(params, xs, carry):
        hidden, cell = carry.hidden, carry.cell.reshape(2, 8)
        total = 0.0
        for t in range(4):
            z = xs[t] @ params.input_kernel + hidden @ params.recurrent_kernel + params.bias[None]
            wide_in = jnp.repeat(1 - cumax(z[:, :4]), 2, axis=-1)
            forget = cumax(z[:, 4:8])
            wide_forget = jnp.repeat(forget, 2, axis=-1)
            o, candidate, i, f = jnp.split(z[:, 8:], 4, axis=-1)
            overlap = wide_in * wide_forget
            kept = jax.nn.sigmoid(f) * overlap + wide_forget - overlap
            written = jax.nn.sigmoid(i) * overlap + wide_in - overlap
            cell = kept * cell + written * jnp.tanh(candidate)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            total += jnp.sum(weights[t] * hidden)
            total += jnp.sum((1 - forget.mean(-1)) * weights[t, :, 0])
        return total

    gradients = [jax.jit(jax.grad(f, argnums=(0, 1, 2)))(params, xs, carry) for f in (ours, plain)]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    def directional(f):
        tangent = jax.tree.map(jnp.ones_like, (params, xs, carry))
        return jax.jit(lambda *args: jax.jvp(f, args, tangent)[1])(params, xs, carry)

    np.testing.assert_allclose(directional(ours), directional(plain), rtol=1e-9)
    curvature = [
        jax.jit(jax.grad(lambda x, f=f: jax.grad(f, argnums=1)(params, x, carry).sum()))(xs)
        for f in (ours, plain)
    ]
    np.testing.assert_allclose(*curvature, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_hard_limit_is_the_two_case_formula(reverse, double_precision):
    """With one-hot splits, units below, between and above d_f and d_i follow one rule each."""
    features, levels = 8, 8
    params = random_layer(jax.random.key(4), chunk_size=1)
    bias = np.array(params.bias)
    x = jax.random.normal(jax.random.key(5), (1, 5))
    carry = OnLstmCarry(*(jax.random.normal(jax.random.key(6), s) for s in ((1, 8), (1, 8, 1))))
    z = np.asarray(x @ params.input_kernel + carry.hidden @ params.recurrent_kernel)
    master_input = "reverse" if reverse else "complement"
    run_one = jax.jit(partial(on_lstm_step, chunk_size=1, master_input=master_input))
    for d_forget, d_input in [(2, 5), (5, 2), (3, 3), (0, 7), (7, 0)]:
        bias[:levels] = 1e3 * (np.arange(levels) == d_input) - z[0, :levels]
        bias[levels : 2 * levels] = (
            1e3 * (np.arange(levels) == d_forget) - z[0, levels : 2 * levels]
        )
        after, _ = run_one(params._replace(bias=jnp.asarray(bias)), carry, x)
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
    params = random_layer(jax.random.key(7))
    xs = jax.random.normal(jax.random.key(8), (20, 3, 5))
    assert (run(params, xs).carry.cell[:, -1] == 0).all()
    assert (run_reverse(params, xs).carry.cell[:, -1] != 0).all()


def test_depth_is_the_expected_split_off_by_one(double_precision):
    # E[d] = L - Σ f̃ + 1 with levels counted from 1: the paper's L - Σ f̃ is one too small.
    z = jnp.array([1.0, 2.0, 3.0, 0.0])
    expected = jnp.sum(jnp.arange(1, 5) * jax.nn.softmax(z))
    np.testing.assert_allclose(expected, 2.620887148, atol=1e-9)
    np.testing.assert_allclose(4 - jnp.sum(cumax(z)) + 1, expected, rtol=1e-12)


def test_units_of_a_chunk_are_interchangeable():
    features, levels = 8, 4
    params = random_layer(jax.random.key(9))
    xs = jax.random.normal(jax.random.key(10), (5, 3, 5))
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


def test_master_gates_explain_the_depths():
    params = random_layer(jax.random.key(11))
    xs = jax.random.normal(jax.random.key(12), (6, 3, 5))
    output = run(params, xs)
    before = jnp.concatenate([jnp.zeros((1, 3, 8)), output.hidden[:-1]])
    gates = master_gates(params, before, xs, chunk_size=2)
    np.testing.assert_allclose(1 - gates.forget.mean(-1), output.depths.forget, atol=1e-6)
    np.testing.assert_allclose(gates.input.mean(-1), output.depths.input, atol=1e-6)
    assert (gates.forget[..., -1] == 1).all()
    assert (gates.input[..., -1] == 0).all()


def run_masked(params, xs, lengths, *, reverse=False):
    mask = jnp.arange(len(xs))[:, None] < lengths[None]
    return jax.jit(partial(on_lstm, chunk_size=2, reverse=reverse))(params, xs, mask=mask)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_does_not_count(reverse):
    params = random_layer(jax.random.key(20))
    xs = jax.random.normal(jax.random.key(21), (6, 3, 5))
    lengths = jnp.array([6, 4, 0])
    output = run_masked(params, xs.at[4:, 1].set(jnp.nan), lengths, reverse=reverse)
    alone = on_lstm(params, xs[:4, 1:2], chunk_size=2, reverse=reverse)
    np.testing.assert_allclose(output.hidden[:4, 1:2], alone.hidden, atol=1e-6)
    np.testing.assert_allclose(output.carry.cell[1:2], alone.carry.cell, atol=1e-6)
    np.testing.assert_allclose(output.depths.forget[:4, 1:2], alone.depths.forget, atol=1e-6)
    assert (output.depths.forget[4:, 1] == 0).all()
    repeated = jnp.zeros(8) if reverse else output.carry.hidden[1]
    np.testing.assert_array_equal(output.hidden[5, 1], repeated)
    assert (output.carry.hidden[2] == 0).all()  # a sentence without words

    def loss(xs):
        return jnp.sum(run_masked(params, xs, lengths, reverse=reverse).hidden ** 2)

    gradient = jax.grad(loss)(xs)
    assert np.isfinite(gradient).all()
    assert (gradient[4:, 1] == 0).all()
    assert (gradient[:4, 1] != 0).all()


def test_reversed_reads_from_the_end_and_two_directions_see_everything():
    params = random_layer(jax.random.key(22))
    xs = jax.random.normal(jax.random.key(23), (6, 3, 5))
    backward = OnLstm(5, 8, chunk_size=2, reverse=True, rngs=nnx.Rngs(0))
    output = on_lstm(params, xs, chunk_size=2, reverse=True)
    np.testing.assert_allclose(output.hidden[::-1], run(params, xs[::-1]).hidden, atol=1e-6)
    np.testing.assert_allclose(output.hidden[0], output.carry.hidden, atol=0)

    def both(xs):
        forward = run(params, xs).hidden
        return jnp.concatenate([forward, backward(xs).hidden], axis=-1)

    changed = both(xs.at[2].add(1.0)) != both(xs)
    assert changed.any(axis=(1, 2)).all()


def test_without_master_gates_it_is_a_plain_lstm():
    params = random_layer(jax.random.key(24))
    xs = jax.random.normal(jax.random.key(25), (6, 3, 5))
    plain = OnLstmParams(*(p[..., 8:] for p in params))
    output = on_lstm(plain, xs, chunk_size=2, master_input="none")
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


def test_master_gates_stay_in_their_bounds_and_in_order():
    # 1 - cumax in float32 is negative in one draw of ten at this size.
    params = random_layer(jax.random.key(26), features=100, chunk_size=1, scale=2.0)
    xs = jax.random.normal(jax.random.key(27), (2000, 5))
    for master_input in ("complement", "reverse"):
        gates = master_gates(
            params, jnp.zeros((2000, 100)), xs, chunk_size=1, master_input=master_input
        )
        for gate in gates:
            assert (gate >= 0).all()
            assert (gate <= 1).all()
        assert (gates.forget[:, -1] == 1).all()
        assert (np.diff(gates.forget) >= -3e-7).all()
        assert (np.diff(gates.input) <= 3e-7).all()
        logits = xs @ params.input_kernel[:, :200] + params.bias[None, :200]
        np.testing.assert_allclose(gates.forget, cumax(logits[:, 100:]), atol=2e-6)
        reverse = cumax(logits[:, :100], reverse=True)
        if master_input == "reverse":
            np.testing.assert_allclose(gates.input, reverse, atol=2e-6)
            assert (gates.input[:, 0] == 1).all()
        else:
            np.testing.assert_allclose(gates.input[:, :-1], reverse[:, 1:], atol=2e-6)
            assert (gates.input[:, -1] == 0).all()


def test_no_step_is_the_identity():
    params = random_layer(jax.random.key(13))
    carry = OnLstmCarry(jnp.ones((3, 8)), jnp.ones((3, 4, 2)))
    output = on_lstm(params, jnp.zeros((0, 3, 5)), carry, chunk_size=2)
    assert output.hidden.shape == (0, 3, 8)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), output.carry, carry))


def test_bfloat16_keeps_its_dtype_and_counts_depths_finely():
    cast = partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
    params = random_layer(jax.random.key(14), scale=0.3)
    xs = jax.random.normal(jax.random.key(15), (6, 3, 5))
    output, exact = run(cast(params), cast(xs)), run(params, xs)
    assert output.hidden.dtype == output.carry.cell.dtype == jnp.bfloat16
    assert output.depths.forget.dtype == jnp.float32
    np.testing.assert_allclose(output.hidden.astype(float), exact.hidden, atol=0.03)


@pytest.mark.parametrize("time", [1, 3])
def test_gradient_in_bfloat16(time):
    params = random_layer(jax.random.key(14), scale=0.3)
    xs = jax.random.normal(jax.random.key(15), (time, 3, 5))
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
    xs = jax.random.normal(jax.random.key(16), (6, 3, 5))
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


def bad_calls():
    params = random_layer(jax.random.key(0))
    xs = jnp.zeros((6, 3, 5))
    carry = initial_carry(3, 8, chunk_size=2)
    narrow = params._replace(bias=params.bias[:-1])
    yield (
        "divide",
        lambda: on_lstm(params, xs, chunk_size=3),
        r"chunk_size must divide.*8, got 3.*1, 2, 4, 8",
    )
    yield "module", lambda: OnLstm(5, 8, chunk_size=5, rngs=nnx.Rngs(0)), r"must divide.*8, got 5"
    yield "params", lambda: on_lstm(narrow, xs, chunk_size=2), r"params must have shapes.*\(39,\)"
    yield (
        "inputs",
        lambda: on_lstm(params, xs[..., :4], chunk_size=2),
        r"xs must have 5 features.*\(6, 3, 4\)",
    )
    yield (
        "rank",
        lambda: on_lstm(params, xs[0], chunk_size=2),
        r"\[time, batch, features\].*\(3, 5\)",
    )
    yield (
        "carry",
        lambda: on_lstm(params, xs[:, :2], carry, chunk_size=2),
        r"carry must have shapes.*\(2, 8\).*got \(\(3, 8\).*initial_carry",
    )
    yield (
        "gate",
        lambda: on_lstm(params, xs, chunk_size=2, master_input="paper"),
        r"'complement', 'reverse' or 'none', got 'paper'",
    )
    yield (
        "master gates",
        lambda: master_gates(params, xs[0, :, :1], xs[0], chunk_size=2, master_input="none"),
        "has none",
    )
    for mask in (jnp.ones((5, 3), bool), jnp.ones((6, 3))):
        yield (
            f"mask {mask.dtype}",
            lambda mask=mask: on_lstm(params, xs, chunk_size=2, mask=mask),
            r"mask must be bool \[time, batch\] = \(6, 3\).*got (bool \(5, 3\)|float32 \(6, 3\))",
        )


@pytest.mark.parametrize(("call", "message"), [pytest.param(c, m, id=n) for n, c, m in bad_calls()])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"xs must be a floating-point array, got int32.*embedded"):
        on_lstm(random_layer(jax.random.key(0)), jnp.zeros((6, 3, 5), int), chunk_size=2)
