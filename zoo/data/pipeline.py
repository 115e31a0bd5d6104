"""Batches that depend on the seed and their number alone, however many processes make them.

Batch i of epoch e is a pure function of (seed, e, i): a pipeline is a random-access sequence of
batches, numbered n = e * batches_per_epoch + i, that is read from a position on. The number of
worker processes and of hosts changes only the speed, the position is one number, and resuming costs
nothing. Batches are global: host h of H gets rows h * B/H to (h + 1) * B/H.

A worker process imports the main module of the program again, as every process that Python starts
does: keep ``if __name__ == "__main__":`` around what a program does, ``jax.distributed.initialize``
above all. Workers run with ``JAX_PLATFORMS=cpu``, so a transform that uses JAX cannot take the
accelerator from the program, and they end when the program does, killed or not.

The specification (each example once an epoch, batches by index, any number of workers) is that of
the article kexue.fm/archives/6575.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from zoo import _checks as checks
from zoo.data.images import int32
from zoo.data.iterator import Batch, BatchIterator, host_rows
from zoo.data.permutation import draw, shuffled
from zoo.data.sources import Source


class Pipeline(BatchIterator):
    """Batches of the examples of a source; every example exactly once per epoch.

    An iterator with ``get_state``, ``set_state``, ``close`` and ``batches_per_epoch``, and a
    context manager. Needs the extra ``data`` (grain).

    Args:
        source: N examples by number; a worker process gets a copy of it.
        batch_size: B, rows of a batch over all hosts.
        seed: of the order of the examples.
        num_epochs: when to stop; None: never.
        shuffle: whether every epoch has a new order.
        transform: example -> example, called in the worker processes: it must give dictionaries of
            arrays or numbers, of the same shapes and types for every example, and depend on nothing
            but its argument.
        remainder: how the last batch of an epoch is made when B does not divide N. ``"pad"`` fills
            it with copies of one example and adds the field ``"valid"``, bool [B], to every batch;
            ``"drop"`` leaves it out: other examples in each epoch.
        num_workers: processes that make batches; 0: the program makes them as it asks for them.
        worker_timeout: seconds to wait for a batch of a worker process before a TimeoutError.
        depends_on: what else a run that continues must find unchanged, such as held-out examples or
            a vocabulary: arrays, texts, sources and containers of them.
        fingerprints: a saved state names the contents of ``source`` and ``depends_on``, and is
            refused with others. ``"sampled"`` reads what is large at evenly spaced places,
            ``"full"`` all of it; see :mod:`zoo.data.fingerprint`.
        process_index: this host, by default ``jax.process_index()``.
        process_count: number of hosts H, by default ``jax.process_count()``.

    Raises:
        ValueError: an argument is out of its range, or H does not divide B.

    >>> source = [{"x": i} for i in range(5)]
    >>> pipeline = Pipeline(source, batch_size=2, seed=0, num_epochs=1, shuffle=False)
    >>> for batch in pipeline:
    ...     print(batch["x"], batch["valid"])
    [0 1] [ True  True]
    [2 3] [ True  True]
    [4 4] [ True False]
    """

    def __init__(
        self,
        source: Source | Any,
        *,
        batch_size: int,
        seed: int,
        num_epochs: int | None = None,
        shuffle: bool = True,
        transform: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        remainder: Literal["pad", "drop"] = "pad",
        num_workers: int = 0,
        worker_timeout: float = 600.0,
        depends_on: Any = None,
        fingerprints: Literal["sampled", "full"] = "sampled",
        process_index: int | None = None,
        process_count: int | None = None,
    ):
        batch_size = checks.count("batch_size", batch_size, at_least=1)
        seed = checks.count("seed", seed)
        rows = host_rows(batch_size, process_index, process_count)
        checks.choice("remainder", remainder, ("pad", "drop"))
        length = len(source)
        if length < (batch_size if remainder == "drop" else 1):
            raise ValueError(
                f"source has {length} examples, which make no batch with batch_size={batch_size} "
                f"and remainder={remainder!r}"
            )
        identity = {"kind": "examples", "examples": length, "batch_size": batch_size, "seed": seed}
        identity |= {"shuffle": shuffle, "remainder": remainder}
        batches = _ExampleBatches(source, transform, rows, batch_size, seed, shuffle, remainder)
        super().__init__(
            batches,
            num_epochs=num_epochs,
            num_workers=num_workers,
            identity=identity,
            content=(source, depends_on),
            fingerprints=fingerprints,
            worker_timeout=worker_timeout,
        )


class StreamPipeline(BatchIterator):
    """Windows of one long text for truncated back-propagation through time.

    The N - 1 pairs (token, next token) of the text form a circle, which is cut into B contiguous
    rows whose lengths differ by at most one; batch i of an epoch is columns i * T to (i + 1) * T of
    them. Row b of a batch continues row b of the batch before it, so the caller carries its state
    over, and resets it to zero where ``start`` is true. Invariant: the targets marked ``valid`` in
    one epoch are tokens 1..N-1 of the text, each exactly once, each with the token before it as its
    input, also where rows meet and at the end.

    The first cut of every epoch is at an offset drawn from (seed, epoch), so that all cuts move;
    the row that reaches the end of the text continues at its beginning.

    An iterator like :class:`Pipeline`. A batch has

    - ``inputs``, ``targets``: int32 [B, T];
    - ``valid``: bool [B, T], the targets to count; false only in the last batch of an epoch;
    - ``start``: bool [B], true in the first batch of an epoch.

    Args:
        ids: the text, integers [N].
        batch_size: B, rows over all hosts.
        num_steps: T, columns of a batch.
        seed: of the offsets.
        shuffle_offset: False starts every epoch at the first token, for evaluation.
        num_epochs, num_workers, worker_timeout: as for :class:`Pipeline`.
        depends_on, process_index, process_count: as for :class:`Pipeline`.

    Raises:
        ValueError: an argument is out of its range, N <= B, or H does not divide B.

    >>> pipeline = StreamPipeline(
    ...     range(8), batch_size=2, num_steps=3, seed=0, num_epochs=1, shuffle_offset=False)
    >>> for batch in pipeline:
    ...     print(batch["inputs"].tolist(), batch["valid"].tolist())
    [[0, 1, 2], [3, 4, 5]] [[True, True, True], [True, True, True]]
    [[3, 4, 5], [6, 0, 1]] [[False, False, False], [True, False, False]]
    """

    def __init__(
        self,
        ids: ArrayLike,
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        num_epochs: int | None = None,
        shuffle_offset: bool = True,
        num_workers: int = 0,
        worker_timeout: float = 600.0,
        depends_on: Any = None,
        process_index: int | None = None,
        process_count: int | None = None,
    ):
        batch_size = checks.count("batch_size", batch_size, at_least=1)
        num_steps = checks.count("num_steps", num_steps, at_least=1)
        seed = checks.count("seed", seed)
        rows = host_rows(batch_size, process_index, process_count)
        ids = np.asarray(ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids must be integers [N], got {ids.dtype} {list(ids.shape)}")
        if len(ids) <= batch_size:
            raise ValueError(
                f"ids hold {len(ids)} tokens, but batch_size={batch_size} rows need at least "
                f"{batch_size + 1}: use a longer text or a smaller batch"
            )
        ids = np.ascontiguousarray(int32(ids, "ids"))
        identity = {"kind": "stream", "tokens": len(ids), "checksum": zlib.crc32(ids.data)}
        identity |= {"batch_size": batch_size, "num_steps": num_steps, "seed": seed}
        identity |= {"shuffle_offset": shuffle_offset}
        batches = _StreamBatches(ids, rows, batch_size, num_steps, seed, shuffle_offset)
        super().__init__(
            batches,
            num_epochs=num_epochs,
            num_workers=num_workers,
            identity=identity,
            content=depends_on,
            worker_timeout=worker_timeout,
        )


@dataclasses.dataclass(frozen=True)
class _ExampleBatches:
    source: Any
    transform: Callable[[dict[str, Any]], Mapping[str, Any]] | None
    rows: range  # of the global batch
    batch_size: int
    seed: int
    shuffle: bool
    remainder: str

    @property
    def batches_per_epoch(self) -> int:
        fill = self.batch_size - 1 if self.remainder == "pad" else 0
        return (len(self.source) + fill) // self.batch_size

    def __getitem__(self, number: int) -> Batch:
        epoch, in_epoch = divmod(number, self.batches_per_epoch)
        length = len(self.source)
        positions = in_epoch * self.batch_size + np.array(self.rows)
        valid = positions < length
        indices = np.minimum(positions, length - 1)
        if self.shuffle:
            indices = shuffled(indices, length=length, key=draw(self.seed, epoch))
        batch = _stack([self._example(index) for index in indices.tolist()])
        if self.remainder == "drop":
            return batch
        if "valid" in batch:
            raise ValueError(
                "examples have a field 'valid', which remainder='pad' adds; rename it in transform"
            )
        return batch | {"valid": valid}

    def _example(self, index: int) -> Mapping[str, Any]:
        try:
            example = self.source[index]
            example = self.transform(example) if self.transform else example
        except Exception as error:
            error.add_note(f"while reading example {index}")
            raise
        if not isinstance(example, Mapping):
            raise TypeError(
                f"examples must be dictionaries, got {type(example).__name__} for example {index}"
            )
        return example


def _stack(examples: list[Mapping[str, Any]]) -> Batch:
    if len(fields := {tuple(sorted(example)) for example in examples}) > 1:
        raise ValueError(f"examples of one batch must have the same fields, got {sorted(fields)}")
    batch = {}
    for name in examples[0]:
        values = [np.asarray(example[name]) for example in examples]
        # The width of a string is part of its NumPy dtype; ignore it.
        kinds = [v.dtype.kind if v.dtype.kind in "US" else v.dtype for v in values]
        forms = {(value.shape, kind) for value, kind in zip(values, kinds, strict=True)}
        if len(forms) > 1 or values[0].dtype == object:
            found = ", ".join(sorted(f"{kind} {list(shape)}" for shape, kind in forms))
            raise ValueError(
                f"field {name!r} must have one shape and one type in all examples, got {found}; "
                "pad and convert it in the transform"
            )
        batch[name] = np.stack(values)
    return batch


@dataclasses.dataclass(frozen=True)
class _StreamBatches:
    ids: np.ndarray  # int32 [N]
    rows: range  # of the global batch
    batch_size: int
    num_steps: int
    seed: int
    shuffle_offset: bool

    @property
    def batches_per_epoch(self) -> int:
        longest = -(-(len(self.ids) - 1) // self.batch_size)
        return -(-longest // self.num_steps)

    def __getitem__(self, number: int) -> Batch:
        epoch, in_epoch = divmod(number, self.batches_per_epoch)
        pairs = len(self.ids) - 1
        offset = draw(self.seed, epoch) % pairs if self.shuffle_offset else 0
        rows = np.array(self.rows)[:, None]
        first, past = rows * pairs // self.batch_size, (rows + 1) * pairs // self.batch_size
        columns = first + in_epoch * self.num_steps + np.arange(self.num_steps)[None, :]
        index = (columns + offset) % pairs
        return {
            "inputs": self.ids[index],
            "targets": self.ids[index + 1],
            "valid": columns < past,
            "start": np.full(len(self.rows), in_epoch == 0),
        }
