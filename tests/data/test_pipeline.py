"""Pipelines: each example once an epoch, the same batches however they are run, exact resumption.

Worker processes are started in ``test_workers.py``; here everything runs in one process.
"""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data import Pipeline, StreamPipeline, open_source
from zoo.data.permutation import draw, shuffled

FEW = settings(max_examples=20)


def numbers(length):
    return [{"x": np.int32(i)} for i in range(length)]


def values(batch):
    return {name: value.tolist() for name, value in batch.items()}


def take(pipeline, count):
    return [values(batch) for batch in itertools.islice(pipeline, count)]


# The permutation


@FEW
@given(
    length=st.integers(1, 3000) | st.integers(1, 2**40),
    start=st.integers(0, 2**40),
    key=st.integers(0, 2**64 - 1),
)
def test_permutation_is_one_to_one_and_read_anywhere(length, start, key):
    positions = (start + np.arange(min(length, 3000))) % length  # all of a short one
    indices = shuffled(positions, length=length, key=key)
    assert len(set(indices.tolist())) == len(positions)
    assert ((indices >= 0) & (indices < length)).all()
    assert shuffled(positions[-1:], length=length, key=key) == indices[-1:]


@pytest.mark.parametrize("length", [pytest.param(2, marks=pytest.mark.slow), 6])
def test_permutation_is_uniform(length):
    # Places and neighbours. For uniform orders each statistic is at most like chi-squared with its
    # number of cells as degrees of freedom; the bound is five standard deviations of that.
    draws = 1000
    indices = np.array(
        [shuffled(np.arange(length), length=length, key=draw(5, epoch)) for epoch in range(draws)]
    )
    places = np.zeros((length, length))
    np.add.at(places, (np.arange(length), indices), 1)
    neighbours = np.zeros((length, length))
    np.add.at(neighbours, (indices, np.roll(indices, 1, axis=1)), 1)
    for counts in (places.ravel(), neighbours[~np.eye(length, dtype=bool)]):
        expected = draws * length / counts.size
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < counts.size + 5 * np.sqrt(2 * counts.size)


def test_permutation_is_the_same_for_ever():
    # A change of these numbers changes the data order of every run that continues.
    assert draw(3, 5) == 9791734468858838757
    assert shuffled(np.arange(8), length=8, key=7).tolist() == [2, 5, 3, 7, 6, 1, 0, 4]


# Examples


@FEW
@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**40),
    shuffle=st.booleans(),
)
def test_every_example_once_an_epoch(length, batch_size, seed, shuffle):
    pipeline = Pipeline(
        numbers(length), batch_size=batch_size, seed=seed, num_epochs=2, shuffle=shuffle
    )
    batches = list(pipeline)
    per_epoch = pipeline.batches_per_epoch
    assert len(batches) == 2 * per_epoch == 2 * -(-length // batch_size)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        seen = [x for batch in epoch for x in batch["x"][batch["valid"]].tolist()]
        assert (sorted(seen) if shuffle else seen) == list(range(length))
        assert {batch["x"].shape for batch in epoch} == {(batch_size,)}
        assert all(batch["valid"].all() for batch in epoch[:-1])
    assert next(pipeline, None) is None


def test_the_rest_is_dropped_and_every_epoch_of_every_seed_has_its_order():
    orders = set()
    for seed in range(3):
        pipeline = Pipeline(numbers(11), batch_size=4, seed=seed, num_epochs=3, remainder="drop")
        for _ in range(3):
            epoch = take(pipeline, 2)
            assert [sorted(batch) for batch in epoch] == [["x"], ["x"]]
            orders.add(tuple(x for batch in epoch for x in batch["x"]))
        assert next(pipeline, None) is None
    assert len(orders) == 9
    assert all(len(set(order)) == 8 for order in orders)


def test_transform_and_fields():
    def add_sum(example):
        return example | {"sum": example["image"].sum()}

    source = open_source("builtin:digits")
    batch = next(Pipeline(source, batch_size=3, seed=0, transform=add_sum))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image": ((3, 8, 8, 1), "float32"),
        "label": ((3,), "int32"),
        "sum": ((3,), "float32"),
        "valid": ((3,), "bool"),
    }
    text = [{"text": "First Citizen:"}, {"text": ""}]
    batch = next(Pipeline(text, batch_size=2, seed=0, shuffle=False))
    assert batch["text"].tolist() == ["First Citizen:", ""]


def test_an_exception_keeps_its_place():
    def transform(example):
        if example["x"] == 5 and broken:
            raise KeyError("boom")
        return example

    broken = True
    pipeline = Pipeline(numbers(8), batch_size=2, seed=0, shuffle=False, transform=transform)
    with pytest.raises(KeyError, match="boom") as caught:
        list(pipeline)
    assert "while reading example 5" in caught.value.__notes__
    assert pipeline.get_state()["batch"] == 2
    broken = False
    assert next(pipeline)["x"].tolist() == [4, 5]
    # A StopIteration does not end the data.
    stopping = Pipeline(numbers(4), batch_size=2, seed=0, transform=lambda _: next(iter(())))
    with pytest.raises(RuntimeError, match="StopIteration while making batch 0"):
        next(stopping)


# Streams


def stream(length, batch_size, num_steps, **options):
    ids = np.arange(length) + 100  # distinct, so that a target tells its place
    return ids, StreamPipeline(ids, batch_size=batch_size, num_steps=num_steps, seed=2, **options)


@FEW
@given(
    batch_size=st.integers(1, 6),
    extra=st.integers(1, 60),
    num_steps=st.integers(1, 9),
    shuffle_offset=st.booleans(),
)
def test_every_target_once_an_epoch(batch_size, extra, num_steps, shuffle_offset):
    ids, pipeline = stream(
        batch_size + extra, batch_size, num_steps, num_epochs=3, shuffle_offset=shuffle_offset
    )
    batches = list(pipeline)
    per_epoch = pipeline.batches_per_epoch
    assert len(batches) == 3 * per_epoch
    for first in range(0, len(batches), per_epoch):
        epoch = batches[first : first + per_epoch]
        inputs, targets, valid = (
            np.concatenate([batch[name] for batch in epoch], axis=1)
            for name in ("inputs", "targets", "valid")
        )
        # every target once, after its own predecessor ...
        np.testing.assert_array_equal(np.sort(targets[valid]), ids[1:])
        np.testing.assert_array_equal(targets[valid], inputs[valid] + 1)
        # ... and rows that go on from batch to batch: the input is the target before it,
        # but for the one place where the text ends.
        assert (inputs[:, 1:] != targets[:, :-1])[valid[:, 1:]].sum() <= shuffle_offset
        assert (valid[:, :-1] >= valid[:, 1:]).all()
        lengths = valid.sum(axis=1)
        assert lengths.max() - lengths.min() <= 1
        assert all(batch["valid"].all() for batch in epoch[:-2])
        starts = [batch["start"].tolist() for batch in epoch]
        assert starts == [[True] * batch_size] + [[False] * batch_size] * (per_epoch - 1)
        for batch in epoch:
            assert batch["inputs"].shape == batch["valid"].shape == (batch_size, num_steps)
            assert batch["inputs"].dtype == batch["targets"].dtype == np.int32


def test_cuts_move():
    _, pipeline = stream(1000, 2, 10, num_epochs=4)
    cuts = [batch["inputs"][0, 0] for batch in pipeline if batch["start"].all()]
    assert len(set(cuts)) == 4
    _, pipeline = stream(1000, 2, 10, num_epochs=4, shuffle_offset=False)
    assert {batch["inputs"][0, 0] for batch in pipeline if batch["start"].all()} == {100}


# Positions


def examples(**host):
    return Pipeline(numbers(11), batch_size=np.int64(4), seed=np.uint32(3), **host)


def windows(**host):
    return stream(50, 4, 3, **host)[1]


@FEW
@given(
    new=st.sampled_from([examples, windows]),
    position=st.integers(0, 40),
    hosts=st.sampled_from([1, 2, 4]),
    read_before=st.integers(0, 3),
)
def test_resuming_anywhere_on_any_number_of_hosts_equals_going_on(
    new, position, hosts, read_before
):
    pipeline = new()
    take(pipeline, position)
    state = json.loads(json.dumps(pipeline.get_state()))
    assert state["batch"] == position
    expected = take(pipeline, 5)
    parts = [new(process_index=host, process_count=hosts) for host in range(hosts)]
    for part in parts:
        take(part, read_before)
        part.set_state(state)
        assert part.get_state() == state
    for batch, *rows in zip(expected, *(take(part, 5) for part in parts), strict=True):
        for name, value in batch.items():
            assert value == [x for row in rows for x in row[name]]


# Refused input


def pipeline(source=(), **options):
    return Pipeline(source or numbers(9), **{"batch_size": 4, "seed": 0} | options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pipeline(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: pipeline(batch_size=2.0), "batch_size must be an integer, got 2.0"),
        (lambda: pipeline(seed=-1), "seed must be .* got -1"),
        (lambda: pipeline(num_epochs=0), "num_epochs must be .* got 0"),
        (lambda: pipeline(num_workers=-1), "num_workers must be .* got -1"),
        (lambda: pipeline(remainder="keep"), "remainder must be one of 'pad', 'drop'; got 'keep'"),
        (lambda: pipeline(batch_size=10, remainder="drop"), "9 examples.*batch_size=10"),
        (lambda: Pipeline([], batch_size=1, seed=0), "0 examples"),
        (lambda: pipeline(process_index=0, process_count=3), "batch_size=4 with process_count=3"),
        (lambda: pipeline(process_index=2, process_count=2), "process_index must be .* got 2"),
        (lambda: pipeline(process_index=0), "both process_index and process_count"),
        (lambda: next(pipeline([1, 2, 3])), "got int for example"),
        (lambda: next(pipeline([{"valid": 1}])), "field 'valid'"),
        (lambda: next(pipeline([{"x": [1]}, {"x": [1, 2]}])), r"'x' .*int64 \[1\], int64 \[2\]"),
        (lambda: next(pipeline([{"x": 1}, {"x": 1.5}])), r"float64 \[\], int64 \[\]"),
        (lambda: next(pipeline([{"x": None}])), "'x' must have one shape and one type"),
        (lambda: next(pipeline([{"x": 1}, {"y": 1}])), "the same fields"),
        (lambda: stream(4, 4, 2), "4 tokens, but batch_size=4 rows need at least 5"),
        (lambda: stream(9, 4, 0), "num_steps must be .* got 0"),
        (lambda: StreamPipeline([0.5] * 9, batch_size=2, num_steps=2, seed=0), "float64"),
        (lambda: StreamPipeline([[1]], batch_size=1, num_steps=2, seed=0), r"got int64 \[1, 1\]"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_states_of_other_pipelines_are_refused():
    state = pipeline().get_state()
    for options, name in [
        ({"seed": 1}, "seed=0 .here 1"),
        ({"batch_size": 3}, "batch_size=4 .here 3"),
        ({"source": numbers(8)}, "examples=9 .here 8"),
        ({"shuffle": False}, "shuffle=True .here False"),
        ({"remainder": "drop"}, "remainder='pad' .here 'drop'"),
    ]:
        with pytest.raises(ValueError, match=f"saved by a pipeline with {name}"):
            pipeline(**options).set_state(state)
    _, tokens = stream(30, 2, 3)
    with pytest.raises(ValueError, match=r"kind='examples' \(here 'stream'"):
        tokens.set_state(state)
    other = StreamPipeline(np.arange(30), batch_size=2, num_steps=3, seed=2)
    with pytest.raises(ValueError, match="checksum="):
        other.set_state(tokens.get_state())
    with pytest.raises(ValueError, match="what get_state returned"):
        tokens.set_state({"step": 3})
    with pytest.raises(ValueError, match="ends after 3; raise num_epochs"):
        pipeline(num_epochs=1).set_state(state | {"batch": 4})
