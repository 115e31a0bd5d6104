"""Every example exactly once an epoch, under any number of hosts and workers."""

import collections
import pickle

import numpy as np
import pytest

from zoo.data import Pipeline, StreamPipeline
from zoo.data.iterator import _Rest

EPOCHS, EXAMPLES = 3, 101  # a prime: no batch size divides it
SOURCE = [{"x": np.int32(i)} for i in range(EXAMPLES)]
TEXT = np.arange(EXAMPLES + 1)


def made_by_workers(pipeline, workers, start=0):
    """The batches from one on, each made by a worker with a copy of its own: w, w + W, w + 2W, …

    This is how grain shares them out; real processes are in tests/data/test_workers.py.
    """
    last = EPOCHS * pipeline.batches_per_epoch
    rest = _Rest(pipeline._batches, start, last, guarded=False)
    copies = [pickle.loads(pickle.dumps(rest)) for _ in range(max(1, workers))]
    for index in range(last - start):
        yield copies[index % len(copies)][index]


def count_examples(batches):
    return collections.Counter(np.concatenate([batch["x"][batch["valid"]] for batch in batches]))


def count_targets(batches):
    return collections.Counter(
        np.concatenate([batch["targets"][batch["valid"]] for batch in batches])
    )


KINDS = {
    "examples": (
        lambda **hosts: Pipeline(SOURCE, seed=5, num_epochs=EPOCHS, **hosts),
        count_examples,
        collections.Counter(range(EXAMPLES)),
    ),
    "stream": (
        lambda **hosts: StreamPipeline(TEXT, num_steps=2, seed=5, num_epochs=EPOCHS, **hosts),
        count_targets,
        collections.Counter(range(1, EXAMPLES + 1)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", range(5))
@pytest.mark.parametrize("hosts", range(1, 9))
def test_each_example_once_an_epoch(kind, workers, hosts):
    new, count, expected = KINDS[kind]
    size = 24 if 24 % hosts == 0 else 35
    parts = [new(batch_size=size, process_index=i, process_count=hosts) for i in range(hosts)]
    epoch = parts[0].batches_per_epoch
    made = [list(made_by_workers(part, workers)) for part in parts]
    for number in range(EPOCHS):
        whole = [batch for own in made for batch in own[number * epoch : (number + 1) * epoch]]
        assert count(whole) == expected
    # A run that is stopped goes on with other numbers of hosts and workers, and the same rows.
    stopped = epoch + 1
    alone = new(batch_size=size, process_index=0, process_count=1)
    for offset, batch in enumerate(made_by_workers(alone, 4 - workers, start=stopped)):
        for name, rows in batch.items():
            together = np.concatenate([own[stopped + offset][name] for own in made])
            np.testing.assert_array_equal(rows, together)
