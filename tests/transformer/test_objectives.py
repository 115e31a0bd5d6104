"""Masking, next tokens, cut prefixes, packing and the loss."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.battery import data_mesh, quick_jit
from zoo.transformer import (
    mask_tokens,
    masked_cross_entropy,
    next_tokens,
    pack_sentences,
    split_prefix,
)
from zoo.transformer.loss import cross_entropy_sums

VOCAB, MASK, SPECIAL = 50, 4, (0, 2, 3)
IDS = jnp.arange(4)[None]


@quick_jit
def masked(seed, ids, word_starts=None, **rates):
    """One program for all rates and seeds."""
    options = {"vocab_size": VOCAB, "mask_id": MASK, "special_ids": SPECIAL}
    return mask_tokens(jax.random.key(seed), ids, word_starts=word_starts, **options, **rates)


def within(count, total, share, sigmas=4):
    """Whether a count is one of ``total`` draws with this share."""
    return abs(count - total * share) <= sigmas * np.sqrt(total * share * (1 - share))


def test_shares_of_whole_words():
    """15 % of words, 80/10/10 of their tokens; independent, so binomial."""
    words, length = 20_000, 3
    ids = jnp.full((10, words * length // 10), 7, jnp.int32)
    starts = jnp.broadcast_to(jnp.arange(ids.shape[1]) % length == 0, ids.shape)
    example = masked(0, ids, starts)
    chosen = np.asarray(example.weights).reshape(-1, length)
    assert np.all(chosen.min(axis=1) == chosen.max(axis=1))  # all of a word, or nothing
    assert within(chosen[:, 0].sum(), words, 0.15)
    inputs = np.asarray(example.inputs)[np.asarray(example.weights) == 1]
    # Among 50 random tokens are [MASK] and the token itself.
    assert within(np.sum(inputs == MASK), len(inputs), 0.8 + 0.1 / VOCAB)
    assert within(np.sum(inputs == 7), len(inputs), 0.1 + 0.1 / VOCAB)
    assert set(range(VOCAB)) == set(inputs.tolist())
    np.testing.assert_array_equal(example.targets, ids)
    unchosen = np.asarray(example.weights) == 0
    np.testing.assert_array_equal(np.asarray(example.inputs)[unchosen], 7)


def test_single_tokens_are_drawn_one_by_one():
    ids = jnp.full((1, 30_000), 7, jnp.int32)
    example = masked(1, ids)
    chosen = np.asarray(example.weights)[0]
    assert within(chosen.sum(), chosen.size, 0.15)
    pairs = chosen[::2] * chosen[1::2]
    assert within(pairs.sum(), pairs.size, 0.15**2)


@hypothesis.given(
    st.lists(st.integers(0, VOCAB - 1), min_size=12, max_size=12), st.integers(0, 99), st.booleans()
)
def test_special_tokens_are_never_chosen_and_targets_restore(ids, seed, whole):
    ids = jnp.array([ids], jnp.int32)
    starts = jnp.arange(12)[None] % 4 == 1
    example = masked(seed, ids, starts if whole else jnp.ones_like(starts), rate=0.5)
    special = np.isin(np.asarray(ids), SPECIAL)
    assert not np.any(np.asarray(example.weights)[special])
    restored = np.where(example.weights == 1, example.targets, example.inputs)
    np.testing.assert_array_equal(restored, ids)


def test_extreme_rates():
    ids = jnp.arange(5, 15)[None]
    nothing, everything = (masked(0, ids, rate=rate) for rate in (0.0, 1.0))
    np.testing.assert_array_equal(nothing.inputs, ids)
    assert not nothing.weights.any()
    assert everything.weights.all()
    options = {"vocab_size": VOCAB, "mask_id": MASK, "mask_rate": 0.0, "random_rate": 0.0}
    kept = mask_tokens(jax.random.key(0), ids, word_starts=None, rate=1.0, **options)
    np.testing.assert_array_equal(kept.inputs, ids)


def test_next_tokens_stop_at_padding_and_at_documents():
    ids = jnp.array([[5, 6, 7, 8, 0]])
    example = next_tokens(ids, mask=ids != 0, document_ids=jnp.array([[1, 1, 2, 2, 0]]))
    np.testing.assert_array_equal(example.targets[0, :4], ids[0, 1:])
    np.testing.assert_array_equal(example.weights, [[1, 0, 1, 0, 0]])
    np.testing.assert_array_equal(next_tokens(ids).weights, [[1, 1, 1, 1, 0]])


def test_next_tokens_do_not_predict_the_first_token_from_left_padding():
    ids = jnp.array([[0, 0, 5, 6, 7]])
    np.testing.assert_array_equal(next_tokens(ids, mask=ids != 0).weights, [[0, 0, 1, 1, 0]])


NARROW = (np.uint8, *(pytest.param(d, marks=pytest.mark.slow) for d in (np.int8, np.uint32)))


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.__name__)
def test_ids_of_every_integer_dtype_are_those_numbers(dtype):
    """Special ids, random ids and vocabularies that the dtype of the ids does not hold."""
    options = {"vocab_size": 70_000, "mask_id": 60_000, "special_ids": (0, 261)}
    ids, key = np.array([[5, 6, 100, 0]]), jax.random.key(0)
    narrow, wide = jnp.asarray(ids.astype(dtype)), jnp.asarray(ids, jnp.int32)

    def examples(ids):
        given = ids != 0
        yield mask_tokens(key, ids, word_starts=None, rate=1.0, random_rate=0.2, **options)
        yield split_prefix(key, ids, sep_id=60_001, mask=given)
        yield next_tokens(ids, mask=given, document_ids=ids)

    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 70_000)), jnp.float32)

    @quick_jit
    def everything(ids):
        losses = [
            cross_entropy_sums(logits[:, :size], ids[0, 1:3], jnp.ones(2))
            for size in (300, 256, 70_000)
        ]
        return *examples(ids), losses

    jax.tree.map(np.testing.assert_array_equal, everything(narrow), everything(wide))
    packed = pack_sentences([ids[0].astype(dtype)], length=6, cls_id=60_000)
    np.testing.assert_array_equal(packed.ids, [[60_000, 5, 6, 100, 0, 102]])


def test_traced_rates_out_of_range_make_the_loss_nan():
    ids = jnp.arange(5, 15)[None]
    for rates in ({"rate": 1.5}, {"rate": -0.1}, {"rate": jnp.nan}, {"mask_rate": 0.95}):
        example = masked(0, ids, **rates)
        assert jnp.isnan(masked_cross_entropy(jnp.zeros((1, 10, VOCAB)), *example[1:3]))


def test_cut_rows_keep_their_length_and_lose_one_token():
    ids = jnp.broadcast_to(jnp.array([2, 11, 12, 13, 14, 15, 3, 0, 0]), (400, 9))
    cut = quick_jit(lambda ids: split_prefix(jax.random.key(0), ids, sep_id=3, mask=ids != 0))
    ids, example = np.asarray(ids), jax.tree.map(np.asarray, cut(ids))
    cuts = np.sum(example.segment_ids == 0, axis=1)
    for row in range(len(ids)):
        tokens = ids[row]
        s = int(np.argmax(example.inputs[row] != tokens))
        expected = np.concatenate([tokens[:s], [3], tokens[s:-1]])
        np.testing.assert_array_equal(example.inputs[row], expected)
        assert 1 <= s <= 5
        given = example.mask[row]
        np.testing.assert_array_equal(given, [True] * 8 + [False])
        segments = np.where((np.arange(9) > s) & given, 1, 0)
        np.testing.assert_array_equal(example.segment_ids[row], segments)
        np.testing.assert_array_equal(example.weights[row], [*segments[1:], 0])
        np.testing.assert_array_equal(example.targets[row, :8], example.inputs[row, 1:])
    assert len(set(cuts.tolist())) == 5  # every cut occurs
    full = quick_jit(lambda ids: split_prefix(jax.random.key(0), ids, sep_id=3))(ids[:, :7])
    assert full.mask is None
    assert not jnp.any(jnp.sum(full.inputs == 3, axis=1) != 1)  # the last [SEP] was dropped


def test_rows_of_padding_stay_rows_of_padding():
    @quick_jit
    def examples(ids):
        cut = split_prefix(jax.random.key(0), ids, sep_id=3, mask=ids != 0)
        return cut, next_tokens(ids, mask=ids != 0)

    ids = jnp.zeros((1, 6), jnp.int32)
    results = examples(ids)
    assert not results[0].mask.any()
    assert not any(example.weights.any() for example in (*results, masked(0, ids)))


def test_numbers_of_the_original_packing():
    """Recipe: bert4keras' pretraining/data_utils.py, L 12, ids 5 a to z, 31 ##a to ##z."""

    def encode(sentence):
        starts = [i == 0 for word in sentence.split() for i, _ in enumerate(word)]
        letters = [ord(letter) - ord("a") for letter in sentence if letter != " "]
        return [n + (5 if start else 31) for n, start in zip(letters, starts, strict=True)], starts

    encoded = [encode(s) for s in ("abc de f", "gh ijk", "lmnopqrstuvwxyz", "a b")]
    rows = pack_sentences(
        [ids for ids, _ in encoded],
        length=12,
        word_starts=[starts for _, starts in encoded],
        cls_id=2,
        sep_id=3,
        pad_id=0,
    )
    expected = [
        [2, 5, 32, 33, 8, 35, 10, 3, 0, 0, 0, 0],
        [2, 11, 38, 13, 40, 41, 3, 0, 0, 0, 0, 0],
        [2, 16, 43, 44, 45, 46, 47, 48, 49, 50, 51, 3],
        [2, 5, 6, 3, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(rows.ids, expected)
    np.testing.assert_array_equal(rows.word_starts[0], [0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(rows.document_ids, np.array(expected) != 0)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=12), st.integers(3, 12)
)
def test_packed_rows_hold_every_token_once_in_order(lengths, length):
    sizes = [size for size, _ in lengths]
    documents = sorted(number for _, number in lengths)
    tokens = iter(range(10, 1000))
    sentences = [[next(tokens) for _ in range(size)] for size in sizes]
    rows = pack_sentences(
        sentences, length=length, documents=documents, cls_id=1, sep_id=2, pad_id=0
    )
    kept = [token for sentence in sentences for token in sentence[: length - 2]]
    assert [token for token in rows.ids.ravel().tolist() if token >= 10] == kept
    of_token = {
        token: number
        for sentence, number in zip(sentences, documents, strict=True)
        for token in sentence
    }
    for ids, row_documents in zip(rows.ids, rows.document_ids, strict=True):
        used = np.sum(ids != 0)
        assert ids[0] == 1
        assert ids[used - 1] == 2
        assert np.sum(ids == 1) == np.sum(ids == 2) == 1
        np.testing.assert_array_equal(row_documents[used:], 0)
        inner = ids[1 : used - 1]
        changes = np.diff([of_token[token] for token in inner.tolist()]) != 0
        np.testing.assert_array_equal(np.diff(row_documents[1 : used - 1]), changes.astype(int))
        assert row_documents[0] == row_documents[1] == 1
        assert row_documents[used - 1] == row_documents[used - 2]


def test_loss_of_known_numbers():
    logits = jnp.log(jnp.array([[[0.2, 0.8], [0.5, 0.5]], [[0.1, 0.9], [0.3, 0.7]]]))
    targets = jnp.array([[0, 1], [1, -100]])
    weights = jnp.array([[1.0, 1.0], [2.0, 0.0]])
    expected = -(np.log(0.2) + np.log(0.5) + 2 * np.log(0.9)) / 4
    assert masked_cross_entropy(logits, targets, weights) == pytest.approx(expected, rel=1e-6)
    nothing = quick_jit(jax.value_and_grad(masked_cross_entropy))(
        logits, targets, jnp.zeros((2, 2))
    )
    assert nothing[0] == 0
    assert not nothing[1].any()
    assert jnp.isnan(masked_cross_entropy(logits, targets, jnp.ones((2, 2))))


def test_what_is_not_chosen_reaches_no_derivative():
    @quick_jit
    def evaluate(logits, targets, weights):
        def loss(x):
            return masked_cross_entropy(x, targets, weights)

        return *jax.value_and_grad(loss)(logits), jax.jvp(loss, (logits,), (logits,))[1]

    targets, weights = jnp.array([0, 77]), jnp.array([1.0, 0.0])
    p = np.exp([1.0, 2.0, 3.0]) / np.exp([1.0, 2.0, 3.0]).sum()
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.array([[1.0, 2.0, 3.0], [bad, 1.0, bad]], np.float32)
        loss, gradient, slope = evaluate(logits, targets, weights)
        assert loss == pytest.approx(-np.log(p[0]), rel=1e-6)
        np.testing.assert_allclose(gradient, [p - [1, 0, 0], [0] * 3], atol=1e-6)
        assert jnp.isfinite(slope)
        assert jnp.isnan(evaluate(logits, targets, jnp.ones(2))[0])  # chosen, it is NaN


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: next_tokens(IDS, mask=IDS), TypeError, "mask must be bool, got int32"),
        (lambda: pack_sentences([[2**40]], length=5), ValueError, "integers from 0 to 2147483647"),
        (lambda: pack_sentences([[-1]], length=5), ValueError, "integers from 0 to 2147483647"),
        (lambda: pack_sentences([[1.5]], length=5), ValueError, "integers .* of float64"),
        (lambda: pack_sentences([[1]], length=5, pad_id=-1), ValueError, "pad_id must be at least"),
        (
            lambda: split_prefix(jax.random.key(0), IDS, sep_id=-1),
            ValueError,
            "sep_id must be at least 0",
        ),
        (
            lambda: mask_tokens(jax.random.key(0), IDS, word_starts=IDS),
            TypeError,
            "word_starts must be bool, got int32",
        ),
    ],
)
def test_ids_and_masks_that_are_none_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_mean_over_devices_is_one_mean_and_not_a_mean_of_means():
    generator = np.random.default_rng(0)
    logits = jnp.asarray(generator.normal(size=(8, 5, 6)), jnp.float32)
    targets = jnp.asarray(generator.integers(6, size=(8, 5)), jnp.int32)
    weights = jnp.asarray(np.arange(5)[None] < np.array([1, 5, 2, 4, 3, 1, 5, 0])[:, None])
    expected = masked_cross_entropy(logits, targets, weights)

    def both(*arguments):
        exact = masked_cross_entropy(*arguments, axis_name="data")
        return exact, jax.lax.pmean(masked_cross_entropy(*arguments), "data")

    rows = PartitionSpec("data")
    mapped = jax.shard_map(
        both, mesh=data_mesh(), in_specs=(rows,) * 3, out_specs=(PartitionSpec(),) * 2
    )
    exact, of_means = quick_jit(mapped)(logits, targets, weights)
    assert exact == pytest.approx(float(expected), rel=1e-6)
    assert abs(of_means - expected) > 0.05
    parts = [
        cross_entropy_sums(logits[i : i + 2], targets[i : i + 2], weights[i : i + 2])
        for i in (0, 2, 4, 6)
    ]
    total, weight = (sum(column) for column in zip(*parts, strict=True))
    assert total / weight == pytest.approx(float(expected), rel=1e-6)
