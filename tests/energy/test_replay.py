"""The replay buffer: its policies, its bytes, its labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.battery import quick_jit
from zoo.energy import replay_draw, replay_init, replay_insert
from zoo.training import make_mesh
from zoo.training.mesh import batch_sharding

KEY = jax.random.key(0)


draw_of = quick_jit(replay_draw)
insert_into = quick_jit(replay_insert, static_argnames="policy")


def filled(capacity=4, **options):
    buffer = replay_init(jnp.zeros(2), capacity=capacity, **options)
    samples = jnp.arange(capacity, dtype=jnp.float32)[:, None].repeat(2, 1)
    return insert_into(KEY, buffer, samples)


def test_ring_has_one_length_whatever_the_batches():
    """The original's list grows past its length and back; this one cannot."""
    buffer = replay_init(jnp.zeros(()), capacity=10)
    for number in range(7):
        buffer = insert_into(KEY, buffer, jnp.full(3, float(number)))
    assert buffer.samples.shape == (10,)
    assert int(buffer.filled) == 10
    assert int(buffer.inserted) == 21
    # The newest ten: one of batch 3, then batches 4, 5 and 6.
    np.testing.assert_array_equal(np.sort(buffer.samples), [3, 4, 4, 4, 5, 5, 5, 6, 6, 6])


def test_bytes_are_the_original_table():
    values = jnp.array([0.0, 0.1, 0.5, 0.999, 1.0])
    buffer = replay_init(jnp.zeros(()), capacity=5, storage_dtype=jnp.uint8)
    buffer = insert_into(KEY, buffer, values)
    np.testing.assert_array_equal(buffer.samples, [0, 25, 127, 254, 255])
    draw = draw_of(KEY, buffer, jnp.zeros(20_000), fresh_rate=0.0)
    back = np.asarray(draw.samples)
    half = back[np.asarray(draw.rows) == 2]
    assert 127 / 256 <= half.min() < half.max() <= 128 / 256
    assert half.mean() == pytest.approx(0.498047, abs=5e-5)
    assert back.min() >= 0
    assert back.max() <= 1
    outside = insert_into(KEY, buffer, jnp.array([-3.0, 7.0, 0.0, 0.0, 0.0]))
    np.testing.assert_array_equal(outside.samples[:2], [0, 255])


def test_fresh_rate_and_rows_of_a_draw():
    buffer = filled()
    draw = draw_of(KEY, buffer, jnp.full((50_000, 2), -1.0), fresh_rate=0.05)
    rate = float(draw.is_new.mean())
    assert rate == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 50_000))
    old = ~np.asarray(draw.is_new)
    np.testing.assert_array_equal(draw.samples[old][:, 0], draw.rows[old])
    np.testing.assert_array_equal(draw.samples[~old], -1)
    counts = np.bincount(draw.rows, minlength=4)
    assert counts.min() > 50_000 / 4 - 5 * np.sqrt(50_000 * 3 / 16)


def test_only_the_filled_part_is_drawn():
    buffer = replay_init(jnp.zeros(()), capacity=100)
    assert bool(draw_of(KEY, buffer, jnp.ones(64), fresh_rate=0.0).is_new.all())
    buffer = insert_into(KEY, buffer, jnp.full(3, 5.0))
    draw = draw_of(KEY, buffer, jnp.ones(64), fresh_rate=0.0)
    np.testing.assert_array_equal(draw.samples, 5.0)


def test_reservoir_fills_up_and_then_replaces_anywhere():
    buffer = replay_init(jnp.zeros(()), capacity=1000)
    for number in range(3):
        buffer = insert_into(
            jax.random.key(number), buffer, jnp.full(600, float(number)), policy="reservoir"
        )
        assert int(buffer.filled) == min(600 * (number + 1), 1000)
    counts = np.bincount(np.asarray(buffer.samples, int), minlength=3)
    # Of the second batch 400 fill up and 200 replace; of the third all 600 replace, each row of
    # 1000 hit with probability 1 - (1 - 1/1000)^600.
    last = 1000 * (1 - (1 - 1 / 1000) ** 600)
    assert counts[2] == pytest.approx(last, abs=5 * np.sqrt(last))
    assert 0.25 < counts[0] / (counts[0] + counts[1]) < 0.65


def test_chains_written_back_in_place_stay_at_their_rows():
    buffer = filled()
    draw = draw_of(KEY, buffer, jnp.full((3, 2), 9.0), fresh_rate=0.0)
    after = insert_into(KEY, buffer, draw.samples + 10, policy="in_place", rows=draw.rows)
    touched = np.unique(draw.rows)
    untouched = np.setdiff1d(np.arange(4), touched)
    np.testing.assert_array_equal(after.samples[touched], buffer.samples[touched] + 10)
    np.testing.assert_array_equal(after.samples[untouched], buffer.samples[untouched])
    assert int(after.filled) == 4


@pytest.mark.parametrize("policy", ["first_in_first_out", "reservoir"])
def test_what_is_written_in_place_is_not_appended(policy):
    """Every row that is in use was written, whatever the policies that followed each other."""
    buffer = replay_init(jnp.zeros(()), capacity=8)
    buffer = insert_into(KEY, buffer, jnp.array([1.0, 2.0]), policy=policy)
    for _ in range(3):
        rows = jnp.array([1, 0])
        buffer = insert_into(KEY, buffer, jnp.array([3.0, 4.0]), policy="in_place", rows=rows)
        buffer = insert_into(KEY, buffer, jnp.array([5.0, 6.0]), policy=policy)
    assert int(buffer.filled) == int(buffer.inserted) == 8
    assert buffer.samples.min() >= 3
    few = insert_into(KEY, replay_init(jnp.zeros(()), capacity=4), jnp.ones(2))
    outside = jnp.array([-1, 2])  # not in use
    after = insert_into(KEY, few, jnp.full(2, 9.0), policy="in_place", rows=outside)
    jax.tree.map(np.testing.assert_array_equal, after, few)


def test_a_traced_rate_out_of_range_gives_nan():
    drawn = [draw_of(KEY, filled(), jnp.ones((4, 2)), fresh_rate=rate).samples for rate in (1.5, 1)]
    assert np.isnan(drawn[0]).all()
    assert np.isfinite(drawn[1]).all()


def test_empty_batches():
    buffer, nothing = filled(), jnp.zeros((0, 2))
    assert draw_of(KEY, buffer, nothing).samples.shape == (0, 2)
    jax.tree.map(np.testing.assert_array_equal, insert_into(KEY, buffer, nothing), buffer)


def test_labels_are_not_cut_off():
    buffer = replay_init(jnp.zeros(()), capacity=4, labels=jnp.uint8(0))
    with pytest.raises(TypeError, match="labels of samples: int32 does not fit into the uint8"):
        insert_into(KEY, buffer, jnp.zeros(2), jnp.array([300, 1]))
    with pytest.raises(TypeError, match="labels of fresh: float32 does not fit into the uint8"):
        draw_of(KEY, buffer, jnp.zeros(2), jnp.zeros(2))


def test_labels_travel_with_their_samples():
    buffer = replay_init(jnp.zeros(()), capacity=8, labels={"class": jnp.int32(0)})
    ids = jnp.arange(8)
    buffer = insert_into(KEY, buffer, ids * 10.0, {"class": ids})
    fresh = {"class": jnp.full(100, 77)}
    draw = draw_of(KEY, buffer, jnp.full(100, 770.0), fresh, fresh_rate=0.3)
    np.testing.assert_array_equal(draw.samples, draw.labels["class"] * 10.0)
    assert 77 in draw.labels["class"]


def test_samples_may_be_any_tree():
    """Rows of all arrays move together; bytes where they are asked for, with noise of their own."""
    example = {"image": jnp.zeros(2), "mask": jnp.zeros(2), "latent": jnp.zeros((), jnp.bfloat16)}
    kinds = {"image": jnp.uint8, "mask": jnp.uint8, "latent": None}
    buffer = replay_init(example, capacity=8, storage_dtype=kinds)
    assert jax.tree.map(lambda leaf: leaf.dtype.name, buffer.samples) == {
        "image": "uint8",
        "mask": "uint8",
        "latent": "bfloat16",
    }

    def batch(numbers):
        pixels = jnp.repeat(numbers[:, None], 2, axis=1) / 32
        return {"image": pixels, "mask": pixels, "latent": numbers.astype(jnp.bfloat16)}

    buffer = insert_into(KEY, buffer, batch(jnp.arange(6.0)))
    buffer = insert_into(KEY, buffer, batch(6 + jnp.arange(4.0)), policy="reservoir")
    draw = draw_of(KEY, buffer, batch(jnp.full(40, 16.0)), fresh_rate=0.3)
    numbers = np.asarray(draw.samples["latent"], np.float32)
    assert numbers[draw.is_new].min() == 16
    old = ~np.asarray(draw.is_new)
    image, mask = (np.asarray(draw.samples[name])[old] for name in ("image", "mask"))
    np.testing.assert_allclose(image, np.repeat(numbers[old, None], 2, axis=1) / 32, atol=1 / 128)
    assert (image != mask).all()
    ends = jax.tree.map(lambda leaf: leaf[:8], draw.samples)
    after = jax.eval_shape(
        lambda *a: replay_insert(*a, policy="in_place", rows=draw.rows[:8]), KEY, buffer, ends
    )
    assert after == jax.eval_shape(lambda: buffer)


def test_buffer_split_over_devices_gives_the_same_draws():
    mesh = make_mesh()
    buffer = filled(capacity=16)
    placed = buffer._replace(samples=jax.device_put(buffer.samples, batch_sharding(mesh)))
    fresh = jnp.zeros((8, 2))
    expected = draw_of(KEY, buffer, fresh)
    jax.tree.map(np.testing.assert_array_equal, draw_of(KEY, placed, fresh), expected)
    np.testing.assert_array_equal(
        insert_into(KEY, placed, fresh + 3).samples, insert_into(KEY, buffer, fresh + 3).samples
    )


def test_counting_stops_short_of_overflow():
    buffer = filled()._replace(inserted=jnp.int32(2**30 + 2))
    after = insert_into(KEY, buffer, jnp.full((1, 2), 50.0))
    place = (2**30 + 2) % 4
    np.testing.assert_array_equal(after.samples[place], 50.0)
    assert int(after.inserted) % 4 == (place + 1) % 4
    assert 4 <= int(after.inserted) < 2**30


def test_size_is_named_before_anything_is_allocated():
    before = len(jax.live_arrays())
    with pytest.raises(ValueError, match=r"capacity=1000000000 needs 11\d\d\d.\d GiB of float32"):
        replay_init(jnp.zeros((32, 32, 3)), capacity=10**9)
    assert len(jax.live_arrays()) <= before


LABELLED = replay_init(jnp.zeros(2), capacity=2, labels=jnp.int32(0))
TREE = replay_init({"a": jnp.zeros(2), "b": jnp.zeros(())}, capacity=2)
PLAIN = replay_init(jnp.zeros(2), capacity=2)
BAD = {
    "no room": (lambda: replay_init(jnp.zeros(2), capacity=0), "capacity must be at least 1"),
    "integers stored": (
        lambda: replay_init(jnp.zeros(2), capacity=1, storage_dtype=jnp.int32),
        "storage_dtype must be floating or uint8, got int32",
    ),
    "rate": (
        lambda: replay_draw(KEY, PLAIN, jnp.zeros((1, 2)), fresh_rate=1.5),
        "fresh_rate must be .* ≥ 0 and ≤ 1, got 1.5",
    ),
    "no arrays": (lambda: replay_init({}, capacity=1), "example must hold at least one array"),
    "another tree": (
        lambda: replay_draw(KEY, PLAIN, {"x": jnp.zeros((1, 2))}),
        r"fresh: expected a tree PyTreeDef\(\*\) as in the buffer, got PyTreeDef\({'x': \*}\)",
    ),
    "a leaf of another shape": (
        lambda: replay_insert(KEY, TREE, {"a": jnp.zeros((1, 2)), "b": jnp.zeros(2)}),
        r"samples\['b'\]: expected shape \[1\] as in the buffer, got \(2,\)",
    ),
    "labels missing": (
        lambda: replay_insert(KEY, LABELLED, jnp.zeros((1, 2))),
        r"labels of samples: expected shapes \(1,\) as in the buffer, got \(\)",
    ),
    "labels not wanted": (
        lambda: replay_draw(KEY, PLAIN, jnp.zeros((1, 2)), jnp.zeros(1)),
        r"labels of fresh: expected shapes \(\) as in the buffer, got \(1,\)",
    ),
    "another shape": (
        lambda: replay_insert(KEY, PLAIN, jnp.zeros((1, 3))),
        r"expected shape \[B, 2\] as in the buffer, got \(1, 3\)",
    ),
    "too many": (
        lambda: replay_insert(KEY, PLAIN, jnp.zeros((3, 2))),
        "a batch of 3 does not fit into capacity 2",
    ),
    "policy": (
        lambda: replay_insert(KEY, PLAIN, jnp.zeros((1, 2)), policy="newest"),
        "'reservoir', 'in_place'; got 'newest'",
    ),
    "rows missing": (
        lambda: replay_insert(KEY, PLAIN, jnp.zeros((1, 2)), policy="in_place"),
        "rows: expected them for policy 'in_place' only",
    ),
    "rows of another shape": (
        lambda: replay_insert(
            KEY, PLAIN, jnp.zeros((1, 2)), policy="in_place", rows=jnp.zeros(2, int)
        ),
        r"rows: expected shape \(1,\), one for each sample, got \(2,\)",
    ),
    "rows not wanted": (
        lambda: replay_insert(KEY, PLAIN, jnp.zeros((1, 2)), rows=jnp.zeros(1, int)),
        "rows: expected them for policy 'in_place' only",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bytes_must_be_scaled_first():
    with pytest.raises(TypeError, match=r"got uint8; scale bytes to \[0, 1\]"):
        replay_init(np.zeros(2, np.uint8), capacity=1)
    with pytest.raises(TypeError, match=r"samples must be floating-point, got uint8"):
        replay_insert(KEY, PLAIN, np.zeros((1, 2), np.uint8))
