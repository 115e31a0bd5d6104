"""Replay buffer: chains continue where they stopped many training steps ago.

Each chain of a batch starts from the buffer with probability 1 - rate (0.95 as published) and from
noise otherwise, runs K steps, and is written back. The buffer is a pytree of fixed shape on the
devices: drawing and inserting are parts of the compiled step, and checkpoints hold it.

Bytes: with ``storage_dtype=uint8`` a component x in [0, 1] is kept as k = floor(255·x) and comes
back as k/256 + U(0, 1/256), as in the original code: every reuse quantises and dithers it again,
and shifts it a little (0.5 comes back as 0.4961 to 0.5, 1.0 as 0.9961 to 1.0).

A sample is an array or a pytree of them, like the position of a chain.

Sources: Du, Mordatch, 2019, arXiv 1903.08689 (ring); Du, Li, Tenenbaum, Mordatch, "Improved
Contrastive Divergence", 2021, arXiv 2012.01316 (reservoir); Tieleman, "Training restricted
Boltzmann machines using approximations to the likelihood gradient", 2008 (written back in place).
"""

import os
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zoo._checks import choice, count, integers, number
from zoo.energy.chains import check_scaled, per_chain

MEMORY_SHARE = 0.5  # of a device's memory that a buffer may take


class ReplayBuffer(NamedTuple):
    """Samples with their labels.

    Attributes:
        samples: pytree of ``[N, ...]``, in the storage dtype.
        labels: pytree of ``[N, ...]``, or () if there are none.
        filled: ``[]`` int32, number of samples in use, at most N: the first rows.
        inserted: ``[]`` int32, samples ever appended; modulo N, where the next one goes. What is
            written back in place does not count.
    """

    samples: Any
    labels: Any
    filled: jax.Array
    inserted: jax.Array


class ReplayDraw(NamedTuple):
    """Starting points of a batch of chains.

    Attributes:
        samples: pytree of floats ``[B, ...]``.
        labels: pytree of ``[B, ...]``, or ().
        rows: ``[B]`` int32, their indices in the buffer, for writing back in place.
        is_new: ``[B]`` bool, True where a chain starts afresh.
    """

    samples: Any
    labels: Any
    rows: jax.Array
    is_new: jax.Array


def replay_init(
    example: Any, *, capacity: int, labels: Any = (), storage_dtype: Any = None
) -> ReplayBuffer:
    """An empty buffer.

    Args:
        example: one sample, a pytree of ``[...]``, or anything with its shapes and dtypes.
        capacity: N.
        labels: one label (a pytree of scalars or arrays), or () for none.
        storage_dtype: None keeps the example's dtype; ``jnp.uint8`` stores components in [0, 1] in
            a byte each, which cannot hold NaN: it becomes 0. One for all, or a pytree like the
            example, such as ``{"image": jnp.uint8, "latent": None}``.

    Returns:
        The buffer, all zeros.

    Raises:
        ValueError: capacity < 1; an example without arrays; a storage dtype that is neither
            floating nor uint8; more bytes than half the memory of a device, with the size named,
            before anything is allocated.
        TypeError: if the example is not floating-point.

    >>> buffer = replay_init(jnp.zeros((8, 8, 1)), capacity=100, storage_dtype=jnp.uint8)
    >>> buffer.samples.shape, buffer.samples.dtype, int(buffer.filled)
    ((100, 8, 8, 1), dtype('uint8'), 0)
    """
    capacity = count("capacity", capacity, at_least=1)
    if not jax.tree.leaves(example):
        raise ValueError(f"example must hold at least one array, got {example!r:.80}")
    dtypes = jax.tree.broadcast(storage_dtype, example, is_leaf=lambda dtype: dtype is None)
    stored = jax.tree.map(_storage_dtype, example, dtypes)
    sizes = jax.tree.map(lambda x, d: capacity * jnp.size(x) * d.itemsize, example, stored)
    needed, available = sum(jax.tree.leaves(sizes)), _device_memory()
    if available is not None and needed > MEMORY_SHARE * available:
        kinds = " and ".join(sorted({str(dtype) for dtype in jax.tree.leaves(stored)}))
        raise ValueError(
            f"capacity={capacity} needs {needed / 2**30:.1f} GiB of {kinds}, more than half of "
            f"the {available / 2**30:.1f} GiB there are; store uint8 or fewer samples"
        )

    def empty(leaf: Any, dtype: Any) -> jax.Array:
        return jnp.zeros((capacity, *jnp.shape(leaf)), dtype)

    return ReplayBuffer(
        samples=jax.tree.map(empty, example, stored),
        labels=jax.tree.map(lambda leaf: empty(leaf, jnp.result_type(leaf)), labels),
        filled=jnp.zeros((), jnp.int32),
        inserted=jnp.zeros((), jnp.int32),
    )


def replay_draw(
    key: jax.Array,
    buffer: ReplayBuffer,
    fresh: Any,
    fresh_labels: Any = (),
    *,
    fresh_rate: float | jax.Array = 0.05,
) -> ReplayDraw:
    """Starting points: each from the buffer, or with probability ``fresh_rate`` a fresh one.

    Rows are drawn with replacement; an empty buffer gives fresh samples only.

    Args:
        key: ``[]`` typed key; consumed.
        buffer: from ``replay_init``.
        fresh: pytree of floats ``[B, ...]``, new starting points, such as uniform noise.
        fresh_labels: their labels, a pytree like those of the buffer.
        fresh_rate: in [0, 1].

    Returns:
        A ``ReplayDraw`` in the dtypes of ``fresh``.

    Raises:
        ValueError: shapes that are not those of the buffer, labels that are missing or too many,
            a rate outside [0, 1].
        TypeError: if ``fresh`` is not floating-point, labels of a dtype the buffer's cannot hold.

    >>> buffer = replay_init(jnp.zeros(3), capacity=10)
    >>> draw = replay_draw(jax.random.key(0), buffer, jnp.ones((4, 3)))
    >>> bool(draw.is_new.all()), float(draw.samples.min())
    (True, 1.0)
    """
    fresh_rate = number("fresh_rate", fresh_rate, at_least=0, at_most=1)
    batch = (_check(buffer, fresh, fresh_labels, "fresh"),)
    row_key, new_key, dither_key = jax.random.split(key, 3)
    rows = jax.random.randint(row_key, batch, 0, jnp.maximum(buffer.filled, 1))
    is_new = jax.random.uniform(new_key, batch) < fresh_rate
    is_new |= buffer.filled == 0

    def select(new: jax.Array, kept: jax.Array) -> jax.Array:
        return jnp.where(per_chain(is_new, new), new, kept)

    def start(number: int, new: jax.Array, stored: jax.Array) -> jax.Array:
        old = stored[rows]
        if stored.dtype == jnp.uint8:
            # The first array has the dither of a buffer that holds no other.
            own_key = jax.random.fold_in(dither_key, number) if number else dither_key
            old = (old + jax.random.uniform(own_key, old.shape, jnp.float32)) / 256
        chosen = select(new, old.astype(new.dtype))
        return jnp.where(jnp.isnan(fresh_rate), jnp.nan, chosen)

    labels = jax.tree.map(
        lambda new, stored: select(jnp.asarray(new, stored.dtype), stored[rows]),
        fresh_labels,
        buffer.labels,
    )
    numbers = jax.tree.unflatten(jax.tree.structure(fresh), range(len(jax.tree.leaves(fresh))))
    fresh = jax.tree.map(jnp.asarray, fresh)
    samples = jax.tree.map(start, numbers, fresh, buffer.samples)
    return ReplayDraw(samples, labels, rows, is_new)


def replay_insert(
    key: jax.Array,
    buffer: ReplayBuffer,
    samples: Any,
    labels: Any = (),
    *,
    policy: Literal["first_in_first_out", "reservoir", "in_place"] = "first_in_first_out",
    rows: jax.Array | None = None,
) -> ReplayBuffer:
    """Puts the ends of a batch of chains into the buffer.

    ``first_in_first_out`` and ``reservoir`` append while there is room; then the former overwrites
    the oldest samples, the latter random ones. ``in_place`` writes every chain back to the row it
    was drawn from (persistent chains), and appends only to an empty buffer.

    Args:
        key: ``[]`` typed key; consumed (only ``reservoir`` draws).
        buffer: from ``replay_init``; donate it under ``jax.jit``.
        samples: pytree of floats ``[B, ...]``, B at most the capacity; clipped to [0, 1] for
            uint8 storage.
        labels: their labels, a pytree like those of the buffer.
        policy: see above.
        rows: integers ``[B]`` from ``replay_draw``, for ``in_place``; of two samples for one row,
            one is kept, unspecified which; a row that is not in use is not written.

    Returns:
        The buffer with the samples.

    Raises:
        ValueError: shapes that are not those of the buffer, labels that are missing or too many, a
            batch larger than the buffer, an unknown policy, rows missing, not wanted or of another
            shape.
        TypeError: if the samples are not floating-point or the rows no integers, labels of a dtype
            the buffer's cannot hold.

    >>> buffer = replay_init(jnp.zeros(()), capacity=3)
    >>> for start in (1.0, 3.0):
    ...     buffer = replay_insert(jax.random.key(0), buffer, start + jnp.arange(2.0))
    >>> print(buffer.samples, buffer.filled, buffer.inserted)
    [4. 2. 3.] 3 4
    """
    choice("policy", policy, ("first_in_first_out", "reservoir", "in_place"))
    if (rows is not None) != (policy == "in_place"):
        raise ValueError(f"rows: expected them for policy 'in_place' only, got policy {policy!r}")
    batch = _check(buffer, samples, labels, "samples")
    capacity = len(jax.tree.leaves(buffer.samples)[0])
    if batch > capacity:
        raise ValueError(f"samples: a batch of {batch} does not fit into capacity {capacity}")
    appended: Any = batch
    following = buffer.inserted % capacity + jnp.arange(batch)
    if policy == "first_in_first_out":
        places = following % capacity
    elif policy == "reservoir":
        anywhere = jax.random.randint(key, (batch,), 0, capacity)
        places = jnp.where(buffer.inserted + jnp.arange(batch) < capacity, following, anywhere)
    else:
        rows = integers("rows", jnp.asarray(rows))
        if rows.shape != (batch,):
            raise ValueError(
                f"rows: expected shape ({batch},), one for each sample, got {rows.shape}"
            )
        inside = (rows >= 0) & (rows < buffer.filled)
        places = jnp.where(buffer.filled == 0, following, jnp.where(inside, rows, capacity))
        appended = jnp.where(buffer.filled == 0, batch, 0)

    def put(stored: jax.Array, new: jax.Array) -> jax.Array:
        return stored.at[places].set(jnp.asarray(new).astype(stored.dtype), mode="drop")

    def put_sample(stored: jax.Array, new: jax.Array) -> jax.Array:
        if stored.dtype == jnp.uint8:
            new = jnp.floor(255 * jnp.clip(jnp.asarray(new, jnp.float32), 0, 1))
        return put(stored, new)

    filled = jnp.minimum(buffer.filled + appended, capacity)
    # Wraps before int32 overflows, to a count with the same place in the ring.
    inserted = buffer.inserted + appended
    inserted = jnp.where(inserted > 2**30, capacity + inserted % capacity, inserted)
    return ReplayBuffer(
        jax.tree.map(put_sample, buffer.samples, samples),
        jax.tree.map(put, buffer.labels, labels),
        filled.astype(jnp.int32),
        inserted.astype(jnp.int32),
    )


def _storage_dtype(leaf: Any, dtype: DTypeLike | None) -> Any:
    check_scaled("example", jnp.result_type(leaf))
    stored = jnp.dtype(jnp.result_type(leaf) if dtype is None else dtype)
    if stored != jnp.uint8 and not jnp.issubdtype(stored, jnp.floating):
        raise ValueError(f"storage_dtype must be floating or uint8, got {stored}")
    return stored


def _check(buffer: ReplayBuffer, samples: Any, labels: Any, name: str) -> int:
    """B of samples that fit into the buffer with their labels."""
    structure: Any = jax.tree.structure(buffer.samples)
    if structure != jax.tree.structure(samples):
        raise ValueError(
            f"{name}: expected a tree {structure} as in the buffer, got "
            f"{jax.tree.structure(samples)}"
        )
    rows: tuple[int, ...] = ()
    stored_leaves = jax.tree.leaves(buffer.samples)
    for (path, leaf), stored in zip(jax.tree.leaves_with_path(samples), stored_leaves, strict=True):
        place, shape = name + jax.tree_util.keystr(path), jnp.shape(leaf)
        check_scaled(place, jnp.result_type(leaf))
        rows = rows or shape[:1]
        if not shape or shape != rows + stored.shape[1:]:
            wanted = ", ".join(map(str, (rows[0] if path and rows else "B", *stored.shape[1:])))
            raise ValueError(f"{place}: expected shape [{wanted}] as in the buffer, got {shape}")
    expected: Any = jax.tree.map(lambda leaf: rows + leaf.shape[1:], buffer.labels)
    got: Any = jax.tree.map(jnp.shape, labels)
    if expected != got:
        raise ValueError(
            f"labels of {name}: expected shapes {expected} as in the buffer, got {got}; labels "
            "travel with their samples, or the buffer has none"
        )
    for new, stored in zip(jax.tree.leaves(labels), jax.tree.leaves(buffer.labels), strict=True):
        dtype = jnp.result_type(new)
        if jnp.promote_types(dtype, stored.dtype) != stored.dtype:
            raise TypeError(
                f"labels of {name}: {dtype} does not fit into the {stored.dtype} of the buffer; "
                "convert them, or give replay_init labels of that dtype"
            )
    return rows[0]


def _device_memory() -> int | None:
    """Bytes of memory of one device, or of the machine if its devices do not report theirs."""
    if statistics := jax.local_devices()[0].memory_stats():
        return statistics.get("bytes_limit")
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system reports it
        return None
