import jax
import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.ordered import OnLstmLanguageModel

IDS = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
MODEL = {"vocab_size": 7, "embed_features": 4, "hidden_features": 6, "chunk_size": 2}


def make(**options):
    return OnLstmLanguageModel(**MODEL, num_layers=2, rngs=nnx.Rngs(0), **options)


@pytest.fixture(scope="module")
def model():
    return make()


@quick_jit
def _read(model, ids, carries, key, mask):
    return nnx.merge(*model)(ids, carries, key=key, mask=mask)


def read(model, ids, carries=None, key=None, mask=None):
    """The model's output, from zero carries, with as few programs as can be."""
    carries = model.initial_carries(len(ids)) if carries is None else carries
    return _read(nnx.split(model), ids, carries, key, mask)


def test_shapes_and_tied_weights(model):
    output = read(model, IDS)
    assert output.logits.shape == (2, 6, 7)
    assert output.depths.forget.shape == (2, 2, 6)
    assert [carry.hidden.shape for carry in output.carries] == [(2, 6), (2, 4)]
    expected = output.features @ model.embedding[...].T
    np.testing.assert_allclose(output.logits, expected, atol=1e-6)
    # V·E + V, and (I + D + 1)(4D + 2L) per layer.
    layers = (4 + 6 + 1) * 30 + (6 + 4 + 1) * 20
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == 7 * 4 + 7 + layers


def test_reads_from_left_to_right_only(model):
    changed = IDS.copy()
    changed[0, 3] = 0
    before, after = read(model, IDS).logits, read(model, changed).logits
    np.testing.assert_array_equal(before[0, :3], after[0, :3])
    np.testing.assert_array_equal(before[1], after[1])
    assert (before[0, 3:] != after[0, 3:]).any(axis=-1).all()


def test_text_can_be_cut_anywhere_and_padding_is_not_read(model):
    complete = read(model, IDS)
    first = read(model, IDS[:, :3])
    second = read(model, IDS[:, 3:], first.carries)
    np.testing.assert_allclose(second.logits, complete.logits[:, 3:], atol=1e-6)
    mask = np.array([[True] * 6, [True] * 3 + [False] * 3])
    padded = np.where(mask, IDS, 0)
    output = read(model, padded, mask=mask)
    np.testing.assert_allclose(output.logits[mask], complete.logits[mask], atol=1e-6)
    for ours, theirs in zip(output.carries, first.carries, strict=True):
        np.testing.assert_allclose(ours.cell[1], theirs.cell[1], atol=1e-6)


def test_dropout_needs_a_key_and_depends_on_it(model):
    keys = jax.random.split(jax.random.key(0), 2)
    a, b, again = (read(model, IDS, key=key).logits for key in (keys[0], keys[1], keys[0]))
    np.testing.assert_array_equal(a, again)
    assert (a != b).any()
    assert (a != read(model, IDS).logits).any()


def test_weight_drop_as_the_original_scales_in_evaluation(model):
    original = make(inverted_weight_drop=False, recurrent_dropout=0.25)
    inverted = nnx.clone(model)
    for layer in inverted.layers:
        layer.recurrent_kernel[...] *= 0.75
    np.testing.assert_allclose(read(original, IDS).logits, read(inverted, IDS).logits, atol=1e-6)


@quick_jit
def _generate(model, key, ids, temperature):
    return nnx.merge(*model).generate(key, ids, length=4, temperature=temperature)


def generate(model, seed, temperature, beginning=IDS[:, :2]):
    """Four words after the first two of `IDS`, two thousand times [1000, 2, 4]."""
    ids = np.tile(beginning, (1000, 1))
    words = _generate(nnx.split(model), jax.random.key(seed), ids, temperature)
    assert words.dtype == np.int32
    return np.asarray(words).reshape(1000, 2, 4)


def test_generation_without_temperature_takes_the_likeliest(model):
    words = generate(model, 0, 0.0)
    assert (words == words[0]).all()
    text = np.concatenate([IDS[:, :2], words[0]], axis=1)
    likeliest = read(model, text).logits.argmax(axis=-1)
    np.testing.assert_array_equal(words[0], likeliest[:, 1:-1])


def test_generation_draws_from_the_softmax(model):
    words = generate(model, 1, 0.5)[:, 0]
    first = np.bincount(words[:, 0]).argmax()
    text = IDS.copy()
    text[0, 2] = first
    laws = np.asarray(jax.nn.softmax(read(model, text).logits[0] / 0.5))
    # The second word follows the first: given it, the law is that of the text so far.
    for drawn, law in ((words[:, 0], laws[1]), (words[words[:, 0] == first, 1], laws[2])):
        expected = len(drawn) * law
        counts = np.bincount(drawn, minlength=7)
        # Chi-squared with 6 degrees of freedom is above 22.5 once in a thousand keys.
        assert np.sum((counts - expected) ** 2 / expected) < 22.5


def test_gates_explain_the_depths(model):
    gates = all_gates(nnx.split(model), IDS)
    depths = read(model, IDS).depths
    assert [gate.forget.shape for gate in gates] == [(2, 6, 3), (2, 6, 2)]
    for gate, forget, input_ in zip(gates, *depths, strict=True):
        np.testing.assert_allclose(1 - gate.forget.mean(-1), forget, atol=1e-6)
        np.testing.assert_allclose(gate.input.mean(-1), input_, atol=1e-6)


def test_an_id_outside_the_vocabulary_gives_nan_from_there_on(model):
    ids = IDS.copy()
    ids[0, 2] = 7
    logits = read(model, ids).logits
    assert np.isfinite(logits[0, :2]).all()
    assert np.isnan(logits[0, 2:]).all()
    assert np.isfinite(logits[1]).all()


def test_bad_input(model):
    with pytest.raises(TypeError, match="ids must be an array of integers, got float"):
        model(IDS.astype(np.float32))
    with pytest.raises(ValueError, match=r"ids must have shape \[B, T\], got \[6\]"):
        model(IDS[0])
    with pytest.raises(ValueError, match=r"mask must have .* T is 6 in ids; got \[2, 5\]"):
        model(IDS, mask=np.ones((2, 5), bool))
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        model.generate(jax.random.key(0), IDS, length=0)
    with pytest.raises(ValueError, match="one carry for each of 2 layers, got 1"):
        model(IDS, model.initial_carries(2)[:1])
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        OnLstmLanguageModel(**MODEL, num_layers=0, rngs=nnx.Rngs(0))


@quick_jit
def all_gates(model, ids):
    return nnx.merge(*model).master_gates(ids)


@pytest.mark.parametrize("unknown", [-1, 10_000])
def test_an_unknown_word_is_never_another_one(model, unknown):
    ids = IDS.copy()
    ids[1, 1:3] = unknown
    logits = read(model, ids).logits
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1, 1:]).all()
    words = generate(model, 0, 1.0, ids[:, :2])
    assert (words[:, 1] == -1).all()
    assert (words[:, 0] >= 0).all()
    assert all(np.isnan(g.forget[1, 1:]).all() for g in all_gates(nnx.split(model), ids))
