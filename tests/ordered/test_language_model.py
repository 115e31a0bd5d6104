import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.ordered import OnLstmLanguageModel

IDS = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])


@pytest.fixture(scope="module")
def model():
    return OnLstmLanguageModel(7, 4, 6, 3, chunk_size=2, rngs=nnx.Rngs(0))


read = nnx.jit(lambda model, ids, carries=None: model(ids, carries))
read_dropped = nnx.jit(lambda model, ids, key: model(ids, key=key))


def test_shapes_and_tied_weights(model):
    output = read(model, IDS)
    assert output.logits.shape == (2, 6, 7)
    assert output.depths.forget.shape == (3, 2, 6)
    assert [carry.hidden.shape for carry in output.carries] == [(2, 6), (2, 6), (2, 4)]
    expected = output.features @ model.embedding[...].T
    np.testing.assert_allclose(output.logits, expected, atol=1e-6)
    # V·E + V, and (I + D + 1)(4D + 2L) a layer.
    layers = (4 + 6 + 1) * 30 + (6 + 6 + 1) * 30 + (6 + 4 + 1) * 20
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == 7 * 4 + 7 + layers


def test_reads_from_left_to_right_only(model):
    changed = IDS.copy()
    changed[0, 3] = 0
    before, after = read(model, IDS).logits, read(model, changed).logits
    np.testing.assert_array_equal(before[0, :3], after[0, :3])
    np.testing.assert_array_equal(before[1], after[1])
    assert (before[0, 3:] != after[0, 3:]).any(axis=-1).all()


def test_text_can_be_cut_anywhere(model):
    whole = read(model, IDS)
    first = read(model, IDS[:, :3])
    second = read(model, IDS[:, 3:], first.carries)
    np.testing.assert_allclose(second.logits, whole.logits[:, 3:], atol=1e-6)


def test_dropout_needs_a_key_and_depends_on_it(model):
    keys = jax.random.split(jax.random.key(0), 2)
    a, b, again = (read_dropped(model, IDS, key).logits for key in (keys[0], keys[1], keys[0]))
    np.testing.assert_array_equal(a, again)
    assert (a != b).any()
    assert (a != read(model, IDS).logits).any()


def test_padding_is_not_read(model):
    mask = np.array([[True] * 6, [True] * 4 + [False] * 2])
    masked = nnx.jit(lambda model, ids: model(ids, mask=jnp.asarray(mask)))
    padded = IDS.copy()
    padded[1, 4:] = 0
    output = masked(model, padded)
    alone = read(model, IDS[1:, :4])
    np.testing.assert_allclose(output.logits[0], read(model, IDS).logits[0], atol=1e-6)
    np.testing.assert_allclose(output.logits[1, :4], alone.logits[0], atol=1e-6)
    for ours, theirs in zip(output.carries, alone.carries, strict=True):
        np.testing.assert_allclose(ours.cell[1], theirs.cell[0], atol=1e-6)


def test_weight_drop_as_the_original_scales_in_evaluation():
    options = {"chunk_size": 2, "rngs": nnx.Rngs(0), "recurrent_dropout": 0.25}
    original = OnLstmLanguageModel(7, 4, 6, 2, inverted_weight_drop=False, **options)
    inverted = OnLstmLanguageModel(7, 4, 6, 2, **options)
    nnx.update(inverted, nnx.state(original))
    for layer in inverted.layers:
        layer.recurrent_kernel[...] *= 0.75
    np.testing.assert_allclose(read(original, IDS).logits, read(inverted, IDS).logits, atol=1e-6)
    gates = zip(original.master_gates(IDS), inverted.master_gates(IDS), strict=True)
    for ours, theirs in gates:
        np.testing.assert_allclose(ours.forget, theirs.forget, atol=1e-6)


generate = nnx.jit(
    lambda model, key, ids, temperature: model.generate(key, ids, length=4, temperature=temperature)
)


def test_generation_follows_the_model(model):
    greedy = generate(model, jax.random.key(0), IDS, 0.0)
    text = IDS
    for n in range(4):
        likeliest = read(model, text).logits[:, -1].argmax(-1)
        np.testing.assert_array_equal(greedy[:, n], likeliest)
        text = np.concatenate([text, np.asarray(likeliest)[:, None]], axis=1)


def test_generation_draws_from_the_softmax(model):
    ids = np.tile(IDS[:1, :2], (2000, 1))
    words = np.asarray(generate(model, jax.random.key(1), ids, 0.5))
    assert words.dtype == np.int32
    logits = read(model, IDS[:1, :2]).logits[0, -1]
    expected = 2000 * np.asarray(jax.nn.softmax(logits / 0.5))
    counts = np.bincount(words[:, 0], minlength=7)
    # Chi-squared with 6 degrees of freedom is above 22.5 once in a thousand keys.
    assert np.sum((counts - expected) ** 2 / expected) < 22.5
    # The second word follows the first: given it, the law is that of the text so far.
    first = np.bincount(words[:, 0]).argmax()
    logits = read(model, np.append(IDS[:1, :2], [[first]], axis=1)).logits[0, -1]
    second = words[words[:, 0] == first, 1]
    expected = len(second) * np.asarray(jax.nn.softmax(logits / 0.5))
    counts = np.bincount(second, minlength=7)
    assert np.sum((counts - expected) ** 2 / expected) < 22.5


def test_gates_explain_the_depths(model):
    gates = model.master_gates(IDS)
    depths = read(model, IDS).depths.forget
    assert [gate.forget.shape for gate in gates] == [(2, 6, 3), (2, 6, 3), (2, 6, 2)]
    for gate, depth in zip(gates, depths, strict=True):
        np.testing.assert_allclose(1 - gate.forget.mean(-1), depth, atol=1e-6)


def test_an_id_outside_the_vocabulary_gives_nan_from_there_on(model):
    ids = IDS.copy()
    ids[0, 2] = 7
    logits = read(model, ids).logits
    assert np.isfinite(logits[0, :2]).all()
    assert np.isnan(logits[0, 2:]).all()
    assert np.isfinite(logits[1]).all()


def test_bad_input(model):
    with pytest.raises(TypeError, match="ids must be integers, got float"):
        model(IDS.astype(np.float32))
    with pytest.raises(ValueError, match=r"\[batch, time\], got shape \(6,\)"):
        model(IDS[0])
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 6\) like ids, got bool \(2, 5\)"):
        model(IDS, mask=np.ones((2, 5), bool))
    with pytest.raises(ValueError, match="length=0"):
        model.generate(jax.random.key(0), IDS, length=0)
    with pytest.raises(ValueError, match="one carry for each of 3 layers, got 1"):
        model(IDS, model.initial_carries(2)[:1])
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        OnLstmLanguageModel(7, 4, 6, 0, chunk_size=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must divide the number of units 6, got 4"):
        OnLstmLanguageModel(7, 4, 6, 2, chunk_size=4, rngs=nnx.Rngs(0))
