"""The Transformer: golden numbers, masks, packed rows, variants that must agree, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.transformer import Transformer, TransformerConfig, load_bert
from zoo.transformer.config import TAGS
from zoo.transformer.layers import LayerNorm

TINY = TransformerConfig(
    vocab_size=17,
    features=8,
    num_layers=2,
    num_heads=2,
    feedforward_features=12,
    max_positions=10,
)
BATCH, TIME = 2, 7


def build(config=TINY, make_norm=LayerNorm):
    """A model with all parameters random, without compiling anything."""

    @nnx.eval_shape
    def abstract():
        return Transformer(config, make_norm=make_norm, rngs=nnx.Rngs(0))

    generator = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(generator.normal(size=leaf.shape, scale=0.4), leaf.dtype)

    graph, state = nnx.split(abstract)
    return nnx.merge(graph, jax.tree.map(draw, state))


def changed(**changes):
    return dataclasses.replace(TINY, **changes)


@pytest.fixture(scope="module")
def ids():
    return jax.random.randint(jax.random.key(1), (BATCH, TIME), 1, TINY.vocab_size)


# One program for all calls of one config with the same shapes.
RUN = quick_jit(lambda graph, p, ids, k: nnx.merge(graph, p)(ids, **k), static_argnums=0)
ENCODE = quick_jit(lambda graph, p, ids, k: nnx.merge(graph, p).encode(ids, **k), static_argnums=0)


def run(model, ids, **keywords):
    return RUN(*nnx.split(model), ids, keywords)


def test_numbers_of_the_original():
    """The weights and numbers of bert4keras, whose j-th array is 0.1 sin(0.7 i + j), + 1 at scales.

    Recipe: bert4keras under TensorFlow 2.15, V 61, hidden 16, 2 layers, 2 heads, feed-forward 32,
    12 positions, 2 segments, erf gelu, with_mlm linear.
    """
    config = TransformerConfig(
        vocab_size=61,
        features=16,
        num_layers=2,
        num_heads=2,
        feedforward_features=32,
        max_positions=12,
    )

    def dense(name, inner=16, outer=16):
        return {f"{name}/kernel": (inner, outer), f"{name}/bias": (outer,)}

    def norm(name):
        return {f"{name}/LayerNorm/beta": (16,), f"{name}/LayerNorm/gamma": (16,)}

    sizes = {"word": 61, "token_type": 2, "position": 12}
    shapes = {f"bert/embeddings/{name}_embeddings": (size, 16) for name, size in sizes.items()}
    shapes |= norm("bert/embeddings")
    for layer in ("bert/encoder/layer_0", "bert/encoder/layer_1"):
        for name in ("self/query", "self/key", "self/value", "output/dense"):
            shapes |= dense(f"{layer}/attention/{name}")
        shapes |= norm(f"{layer}/attention/output")
        shapes |= dense(f"{layer}/intermediate/dense", 16, 32)
        shapes |= dense(f"{layer}/output/dense", 32, 16) | norm(f"{layer}/output")
    head = "cls/predictions/transform"
    shapes |= dense(f"{head}/dense") | norm(head) | {"cls/predictions/output_bias": (61,)}
    tensors = {
        name: (0.1 * np.sin(0.7 * np.arange(np.prod(shape)) + j)).reshape(shape)
        + name.endswith("gamma")
        for j, (name, shape) in enumerate(shapes.items())
    }
    model, _ = load_bert(tensors, config=config)
    ids = jnp.array(
        [[2, 5, 6, 4, 8, 3] + [0] * 6, [2, 9, 4, 11, 12, 13, 14, 3] + [0] * 4], jnp.int32
    )
    logits = run(model, ids, segment_ids=jnp.zeros_like(ids), mask=ids != 0)
    np.testing.assert_allclose(
        logits[0, 3, :4], [-0.045694, -1.274937, -0.557048, 0.936410], atol=2e-6
    )
    np.testing.assert_allclose(
        logits[1, 2, :4], [0.133167, -1.250664, -0.726054, 0.843519], atol=2e-6
    )
    squares = jnp.sum(jnp.where((ids != 0)[..., None], logits, 0) ** 2)
    assert squares == pytest.approx(558.552, abs=1e-3)
    likelihoods = jax.nn.log_softmax(logits)
    assert -(likelihoods[0, 3, 7] + likelihoods[1, 2, 10]) / 2 == pytest.approx(4.857132, abs=2e-6)


def influence(model, ids, **keywords):
    """[T, T] bool: whether the hidden state i changes with the token j."""

    changed = (ids + jnp.eye(ids.shape[1], dtype=ids.dtype)) % model.config.vocab_size
    rows = jnp.concatenate([ids, changed])
    keywords = {name: jnp.repeat(value, len(rows), axis=0) for name, value in keywords.items()}
    hidden = np.asarray(ENCODE(*nnx.split(model), rows, keywords))
    return (np.abs(hidden[1:] - hidden[:1]) > 1e-6).any(axis=-1).T


def test_masks_let_exactly_the_allowed_positions_attend(ids):
    order = np.arange(TIME)
    both = influence(build(), ids[:1])
    assert both.all()
    causal = influence(build(changed(mask="causal")), ids[:1])
    np.testing.assert_array_equal(causal, order[:, None] >= order[None])
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1]])
    prefix = influence(build(changed(mask="prefix")), ids[:1], segment_ids=segments)
    np.testing.assert_array_equal(prefix, (order[:, None] >= order[None]) | (order[None] < 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "norm_position"), [("bidirectional", "post"), ("causal", "pre"), ("prefix", "post")]
)
def test_packed_and_padded_documents_are_what_they_are_alone(ids, mask, norm_position):
    model = build(changed(mask=mask, norm_position=norm_position))
    ids, segments = ids[:, :3], jnp.array([[0, 0, 1], [0, 1, 1]])
    alone = run(model, ids, segment_ids=segments)

    def joined(rows):
        return jnp.pad(rows.reshape(1, 6), ((0, 0), (0, 2)))

    packed = run(
        model,
        joined(ids),
        segment_ids=joined(segments),
        document_ids=jnp.array([[4, 4, 4, 2, 2, 2, 0, 0]]),
        mask=jnp.arange(8)[None] < 6,
    )
    np.testing.assert_allclose(packed[0, :6].reshape(alone.shape), alone, atol=2e-6)
    padded, given = (jnp.pad(x, ((0, 0), (0, 2))) for x in (ids, jnp.ones((BATCH, 3), bool)))
    found = run(model, padded, segment_ids=jnp.pad(segments, ((0, 0), (0, 2))), mask=given)
    np.testing.assert_allclose(found[:, :3], alone, atol=2e-6)


def loss_and_gradients(config, ids, key=None):
    graph, parameters = nnx.split(build(config))

    def loss(parameters):
        logits = nnx.merge(graph, parameters)(ids, key=key)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2)

    value, gradients = quick_jit(jax.value_and_grad(loss))(parameters)
    return value, nnx.to_pure_dict(gradients)


@pytest.mark.slow
def test_unrolled_and_rematerialised_layers_give_the_same(ids):
    key = jax.random.key(3)  # the same dropout too
    base = changed(norm_position="pre", dropout=0.2)
    expected = loss_and_gradients(base, ids, key)
    for variant in ({"scan_layers": False, "remat": "dots"}, {"remat": ("attention", "hidden")}):
        actual = loss_and_gradients(dataclasses.replace(base, **variant), ids, key)
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, atol=2e-6, rtol=1e-5), actual, expected
        )


def test_values_of_interest_are_tagged(ids):
    text = str(jax.make_jaxpr(build())(ids))
    assert {name for name in TAGS if f"name={name}" in text} == set(TAGS)


def test_dropout_is_there_with_a_key_only(ids):
    model = build(changed(dropout=0.5))
    plain = run(model, ids)
    np.testing.assert_array_equal(plain, run(model, ids))
    one, two = (run(model, ids, key=jax.random.key(seed)) for seed in (0, 1))
    assert not np.allclose(one, plain)
    assert not np.allclose(one, two)


def test_logits_at_chosen_positions(ids):
    """Whatever their dtype: none counts from the end, none wraps around."""
    model = build()
    everywhere = run(model, ids)
    positions = np.array([[5, -1, 2, TIME], [2, -TIME, 0, 100]], np.int8)
    chosen = np.asarray(run(model, ids, positions=jnp.asarray(positions)))
    for row in range(BATCH):
        expected = everywhere[row, positions[row, ::2]]
        np.testing.assert_allclose(chosen[row, ::2], expected, atol=1e-6)
    assert np.isnan(chosen[:, 1::2]).all()
    unsigned = jax.eval_shape(lambda p: model(ids, positions=p), positions.astype(np.uint8))
    assert unsigned.shape == chosen.shape


@pytest.mark.parametrize("dtype", ["int8", pytest.param("uint8", marks=pytest.mark.slow)])
def test_narrow_ids_are_those_numbers(dtype):
    """300 tokens, segments and documents of 8 bits count beyond 127 and 255."""
    config = changed(vocab_size=400, max_positions=300, mask="prefix")
    model, long = build(config), jnp.arange(300)[None] % 120
    segments, documents = (jnp.minimum(long * 0 + jnp.arange(300)[None], 1), long // 7)
    wide = run(model, long, segment_ids=segments, document_ids=documents)
    narrow = [x.astype(dtype) for x in (long, segments, documents)]
    found = run(model, narrow[0], segment_ids=narrow[1], document_ids=narrow[2])
    np.testing.assert_allclose(found, wide, atol=1e-6)


@pytest.mark.slow
def test_what_padding_holds_reaches_nothing(ids):
    """Ids that are none, segments and documents longer than the model, in values and gradients.

    The last row is padding alone.
    """
    graph, parameters = nnx.split(build())
    given = jnp.arange(12)[None] < jnp.array([[5], [3], [0]])
    padded = jnp.pad(ids[:, :5], ((0, 1), (0, 7)))

    def loss(parameters, padded, segments):
        hidden = nnx.merge(graph, parameters).encode(
            padded, mask=given, segment_ids=segments, document_ids=given.astype(int)
        )
        finite = jnp.isfinite(hidden).all()
        return jnp.where(finite, jnp.sum(jnp.where(given[..., None], hidden, 0) ** 3), jnp.nan)

    evaluate = quick_jit(jax.value_and_grad(loss))
    expected = evaluate(parameters, padded, padded * 0)
    found = evaluate(parameters, jnp.where(given, padded, -100), jnp.where(given, 0, 7))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(expected))


def test_packed_rows_may_be_longer_than_the_longest_document(ids):
    model = build()
    rows = jnp.concatenate([ids, ids], axis=1)
    documents = jnp.repeat(jnp.arange(2), TIME)[None].repeat(BATCH, axis=0)
    assert rows.shape[1] > TINY.max_positions
    packed = run(model, rows, document_ids=documents)
    np.testing.assert_allclose(packed, jnp.tile(run(model, ids), (1, 2, 1)), atol=2e-6)
    assert jnp.isnan(run(model, rows, document_ids=documents * 0)).any()  # a document of 14


def test_rows_padded_on_the_left_are_what_they_are_alone(ids):
    model = build(changed(mask="causal"))
    padded = jnp.pad(ids, ((0, 0), (3, 0)), constant_values=-1)
    given = padded >= 0
    found = run(model, padded, mask=given, document_ids=given.astype(int))
    np.testing.assert_allclose(found[:, 3:], run(model, ids), atol=2e-6)


@pytest.mark.slow
def test_ids_outside_the_vocabulary_give_nan_in_their_row(ids):
    model = build()
    for wrong in (TINY.vocab_size, -1, -TINY.vocab_size - 1):
        places = jnp.arange(TIME)[None]
        hidden = model._embed(ids.at[0, 3].set(wrong), None, None, places)
        np.testing.assert_array_equal(
            jnp.isnan(hidden).all(axis=-1), jnp.zeros((BATCH, TIME), bool).at[0, 3].set(True)
        )
    logits = run(model, ids.at[0, 3].set(TINY.vocab_size))
    assert jnp.isnan(logits[0]).all()
    assert jnp.isfinite(logits[1]).all()


def test_tokens_read_one_by_one_give_the_same_logits(ids):
    model = build(changed(mask="causal", norm_position="pre"))
    graph, parameters = nnx.split(model)
    expected = run(model, ids)

    @quick_jit
    def decode(parameters, ids):
        model = nnx.merge(graph, parameters)
        prompt, cache = model.decode(ids[:, :3], model.init_cache(BATCH, TIME))

        def step(cache, column):
            logits, cache = model.decode(column[:, None], cache)
            return cache, logits[:, 0]

        cache, rest = jax.lax.scan(step, cache, ids[:, 3:].T)
        full, _ = model.decode(ids[:, :1], cache)
        return jnp.concatenate([prompt, rest.swapaxes(0, 1)], axis=1), cache.length, full

    actual, length, full = decode(parameters, ids)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    np.testing.assert_array_equal(length, [TIME] * TINY.num_layers)
    assert jnp.isnan(full).all()  # no room left


@pytest.mark.slow
def test_a_prefix_and_its_continuation_may_be_read_in_one_call(ids):
    graph, parameters = nnx.split(build(changed(mask="prefix")))
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])

    @quick_jit
    def decode(parameters, ids):
        model = nnx.merge(graph, parameters)
        cache, parts = model.init_cache(BATCH), []
        for part in (slice(0, 4), slice(4, 6), slice(6, 7)):
            logits, cache = model.decode(ids[:, part], cache, segment_ids=segments[:, part])
            parts.append(logits)
        return jnp.concatenate(parts, axis=1), model(ids, segment_ids=segments)

    np.testing.assert_allclose(*decode(parameters, ids), atol=2e-6)


@pytest.mark.slow
def test_an_unstacked_model_computes_the_same(ids):
    graph, parameters = nnx.split(build(changed(dropout=0.3)))

    @quick_jit
    def both(parameters, key):
        model = nnx.merge(graph, parameters)
        return [one.encode(ids, key=key) for one in (model, model.unstacked())]

    np.testing.assert_allclose(*both(parameters, jax.random.key(0)), atol=2e-6)
    unstacked = build(changed(remat="full")).unstacked()
    slopes = nnx.eval_shape(nnx.grad(lambda model: jnp.sum(model(ids))), unstacked)
    assert all(leaf.shape for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    "mask",
    ["causal", *(pytest.param(p, marks=pytest.mark.slow) for p in ("bidirectional", "prefix"))],
)
def test_float16_runs_on_a_cpu_and_stays_near_float32(ids, mask):
    graph, parameters = nnx.split(build(changed(mask=mask, norm_position="pre")))
    segments = ids * 0
    apply = quick_jit(lambda p: nnx.merge(graph, p).encode(ids, segment_ids=segments))
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), parameters)
    assert apply(low).dtype == jnp.float16
    np.testing.assert_allclose(apply(low).astype(jnp.float32), apply(parameters), atol=0.02)


def test_batches_without_rows():
    model = build(changed(mask="prefix", dropout=0.2))
    none = jnp.zeros((0, 4), jnp.int32)
    options = {"segment_ids": none, "mask": none > 0, "document_ids": none}

    @nnx.eval_shape
    def shapes():
        logits = model(none, **options, positions=none[:, :2], key=jax.random.key(0))
        return logits, model.decode(none, model.init_cache(0), segment_ids=none)[0]

    assert [leaf.shape for leaf in shapes] == [(0, n, TINY.vocab_size) for n in (2, 4)]


class ShiftedNorm(LayerNorm):
    """A norm with a condition: what conditional generation puts in."""

    def __init__(self, num_features, *, epsilon, rngs):
        super().__init__(num_features, epsilon=epsilon, rngs=rngs)
        self.condition_kernel = nnx.Param(jax.random.normal(rngs.params(), (3, num_features)))

    def __call__(self, x, condition):
        return super().__call__(x) + (condition @ self.condition_kernel[...])[:, None]


@pytest.mark.parametrize("norm_position", ["post", pytest.param("pre", marks=pytest.mark.slow)])
def test_every_norm_can_be_replaced_and_gets_the_condition(ids, norm_position):
    model = build(changed(norm_position=norm_position), make_norm=ShiftedNorm)
    condition = np.random.default_rng(2).normal(size=(BATCH, 3)).astype(np.float32)
    kernels = [
        leaf for path, leaf in nnx.to_flat_state(nnx.state(model)) if path[-1] == "condition_kernel"
    ]
    count = sum(kernel.shape[0] if kernel.ndim == 3 else 1 for kernel in kernels)
    assert count == 2 * TINY.num_layers + 2  # embeddings or last, head, two a layer
    before = run(model, ids, condition=condition)
    other = run(model, ids, condition=condition * [[1], [2]])
    np.testing.assert_array_equal(other[0], before[0])  # the condition of one row reaches no other
    assert not np.allclose(other[1], before[1])
    for kernel in kernels:  # each counts
        kernel[...] = 2 * kernel[...]
        after = run(model, ids, condition=condition)
        assert not np.allclose(after, before)
        before = after


def test_linen_can_use_it(ids):
    linen = nnx.bridge.to_linen(Transformer, TINY)
    variables = jax.eval_shape(linen.init, jax.random.key(0), ids)
    assert jax.eval_shape(linen.apply, variables, ids).shape == (BATCH, TIME, TINY.vocab_size)


@pytest.mark.slow
def test_bfloat16_stays_near_float32(ids):
    graph, parameters = nnx.split(build())
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters)
    apply = quick_jit(lambda parameters: nnx.merge(graph, parameters).encode(ids))
    assert apply(low).dtype == jnp.bfloat16
    np.testing.assert_allclose(apply(low).astype(jnp.float32), apply(parameters), atol=0.15)
    logits = jax.eval_shape(lambda parameters: nnx.merge(graph, parameters)(ids), low)
    assert logits.dtype == jnp.float32


def test_layer_norm_of_constant_rows_is_its_bias():
    """The float32 mean of 768 equal numbers is another number for each of these values."""
    norm = LayerNorm(768, epsilon=1e-12)
    norm.bias[...] = jnp.arange(768.0)
    values = jnp.array([[0.1], [3.3], [1e5], [-7.7e16]])
    x = jnp.concatenate([jnp.broadcast_to(values, (4, 768)), jnp.arange(768.0)[None]])
    graph, parameters = nnx.split(norm)

    @quick_jit
    def evaluate(parameters, x, cotangent):
        out, pull_back = jax.vjp(lambda p, x: nnx.merge(graph, p)(x), parameters, x)
        return out, *pull_back(cotangent)

    cotangent = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), x.dtype)
    out, of_parameters, of_x = evaluate(parameters, x, cotangent.at[4].set(0))
    np.testing.assert_array_equal(out[:4], jnp.broadcast_to(norm.bias[...], (4, 768)))
    assert not np.allclose(out[4], norm.bias[...])
    np.testing.assert_array_equal(of_parameters["scale"][...], 0)
    expected = 1e6 * (cotangent - cotangent.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(of_x[:4], expected[:4], atol=10)


@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (1e4, 1e-3), (-1e6, 0.1), (1e-3, 1e-9)])
def test_layer_norm_keeps_its_digits_at_large_means(mean, spread):
    """Against float64, for the rounded numbers that it is given."""
    x = jnp.asarray(mean + spread * np.random.default_rng(0).normal(size=(4, 768)), jnp.float32)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    norm = LayerNorm(768, epsilon=1e-12)
    found, pull_back = jax.vjp(norm, x)
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
    expected, c = centred / deviation, np.asarray(cotangent, np.float64)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    along = (c * expected).mean(axis=1, keepdims=True) * expected
    gradient = (c - c.mean(axis=1, keepdims=True) - along) / deviation
    np.testing.assert_allclose(pull_back(cotangent)[0], gradient, atol=2e-6 / deviation.min())


def test_pooler_reads_the_first_position():
    model = build(changed(pooler=True, head="none"))
    hidden = jnp.ones((2, 3, 8)) * jnp.arange(3.0)[None, :, None]
    expected = jnp.broadcast_to(jnp.tanh(model.pooler_bias[...]), (2, 8))
    np.testing.assert_allclose(model.pool(hidden), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide features, got num_heads=3 and features=8"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_segments": -1}, "num_segments must be at least 0, got -1"),
        ({"mask": "left"}, "mask must be one of .*'causal'.*got 'left'"),
        ({"activation": "swish"}, "activation must be one of .*got 'swish'"),
        ({"dropout": 1.0}, "dropout must be .* < 1, got 1.0"),
        ({"epsilon": 0.0}, "epsilon must be .* > 0, got 0.0"),
        ({"remat": "some"}, "remat must be one of None, 'full', 'dots'; got 'some'"),
        ({"remat": ("logit",)}, "remat must be one of .*'logits'; got 'logit'"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(**changes)


def test_calls_that_make_no_sense_are_refused(ids):
    model, causal = build(), build(changed(mask="causal"))
    long = jnp.zeros((1, 11), jnp.int32)
    for error, message, call in (
        (ValueError, "11 positions, but the model has max_positions=10", lambda: model(long)),
        (TypeError, "ids must be .*integers, got float32", lambda: model(ids.astype(float))),
        (ValueError, r"ids must have shape \[B, T\], got \[2\]", lambda: model(ids[:, 0])),
        (TypeError, "mask must be bool, .* got int32", lambda: model(ids, mask=ids)),
        (
            ValueError,
            r"segment_ids must have shape \[B, T\], where T is 7 in ids; got \[2, 6\]",
            lambda: model(ids, segment_ids=ids[:, 1:]),
        ),
        (
            ValueError,
            "segment_ids must be given for mask='prefix'",
            lambda: build(changed(mask="prefix"))(ids),
        ),
        (
            ValueError,
            "segment_ids must be None for a model with num_segments=0",
            lambda: build(changed(num_segments=0))(ids, segment_ids=ids * 0),
        ),
        (
            ValueError,
            "decode needs mask='causal' or 'prefix', got 'bidirectional'",
            lambda: model.decode(ids, model.init_cache(BATCH)),
        ),
        (ValueError, "length must be .* at most 10, got 11", lambda: model.init_cache(1, 11)),
        (
            ValueError,
            "mask needs a cache with a place for it: init_cache",
            lambda: causal.decode(ids, causal.init_cache(BATCH), mask=ids > 0),
        ),
        (
            TypeError,
            "mask must be bool, .* got int32",
            lambda: causal.decode(ids, causal.init_cache(BATCH, 11, padded=True), mask=ids),
        ),
        (TypeError, "segment_ids must be .*integers", lambda: model(ids, segment_ids=ids > 0)),
        (TypeError, "document_ids must be .*integers", lambda: model(ids, document_ids=ids / 2)),
        (TypeError, "positions must be .*integers", lambda: model(ids, positions=ids / 2)),
        (
            ValueError,
            r"positions must have shape \[B, P\], where B is 2 in ids; got \[1, 7\]",
            lambda: model(ids, positions=ids[:1]),
        ),
        (
            ValueError,
            "cache must come from init_cache of this model, a model with stacked layers; got that",
            lambda: causal.decode(ids, causal.unstacked().init_cache(BATCH)),
        ),
        (
            ValueError,
            "cache must come from init_cache of this model, an unstacked model",
            lambda: causal.unstacked().decode(ids, causal.init_cache(BATCH)),
        ),
        (
            ValueError,
            "cache must have shape .*where B is 2 in ids",
            lambda: causal.decode(ids, causal.init_cache(BATCH + 1)),
        ),
        (
            ValueError,
            "ids have 7 positions, but the cache has room for 6",
            lambda: causal.decode(ids, causal.init_cache(BATCH, 6)),
        ),
        (ValueError, "head='none'", lambda: build(changed(head="none"))(ids)),
        (ValueError, "no pooler", lambda: model.pool(jnp.ones((1, 2, 8)))),
    ):
        with pytest.raises(error, match=message):
            call()
