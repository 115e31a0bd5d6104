import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.ordered import OnLstmLanguageModel, dropout

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


def test_dropout_law():
    x = jnp.ones((50, 40, 10))
    y = dropout(jax.random.key(1), x, rate=0.3, shared_axes=(0,))
    assert (y == y[:1]).all()
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    kept = (y[0] > 0).sum()
    # 400 draws kept with 0.7: five standard deviations are 46.
    assert abs(int(kept) - 280) < 46
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        dropout(jax.random.key(1), x, rate=1)


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
    with pytest.raises(ValueError, match="one carry for each of 3 layers, got 1"):
        model(IDS, model.initial_carries(2)[:1])
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        OnLstmLanguageModel(7, 4, 6, 0, chunk_size=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must divide the number of units 6, got 4"):
        OnLstmLanguageModel(7, 4, 6, 2, chunk_size=4, rngs=nnx.Rngs(0))
