"""Pretraining objectives: masked tokens, the next token, or the second part of a text.

    masked   each word is chosen with probability ``rate``; the tokens of chosen words are
             predicted; each is replaced by [MASK] (80 %), kept (10 %) or random (10 %)
    next     y_t = x_{t+1}
    prefix   t[:s] [SEP] t[s:] with a random cut s: the tokens after [SEP] are predicted

They run in the compiled step, so that every epoch has new masks and a resumed run the same ones;
for static masks, call them once and store the results.

Source: arXiv 1810.04805, section 3.1; arXiv 1905.03197; https://kexue.fm/archives/7055. As there,
rows keep their length, tokens of one word are chosen together, and the random token may be any, a
special one or the original too. The defaults are the ids of BERT's English uncased vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo._checks import count, integers, number, typed_key

LARGEST = 2**31 - 1  # id


class PretrainingExample(NamedTuple):
    """Inputs and targets of one step."""

    inputs: jax.Array  # [..., T] int, ids to read
    targets: jax.Array  # [..., T] int, ids to predict
    weights: jax.Array  # [..., T] bool, positions that are predicted
    segment_ids: jax.Array | None = None  # [..., T] int
    mask: jax.Array | None = None  # [..., T] bool, False at padding


def mask_tokens(
    key: jax.Array,
    ids: jax.Array,
    *,
    word_starts: jax.Array | None,
    rate: float | jax.Array = 0.15,
    mask_rate: float = 0.8,
    random_rate: float = 0.1,
    vocab_size: int = 30522,
    mask_id: int = 103,
    special_ids: tuple[int, ...] = (0, 101, 102),
) -> PretrainingExample:
    """Chooses words and hides their tokens, see the module docstring.

    Args:
        key: typed key, consumed.
        ids: ``[..., T]`` int.
        word_starts: ``[..., T]`` bool, True at the first token of every word; None: every token is
            a word.
        rate: share of words that are chosen, independently.
        mask_rate: share of the chosen tokens that become ``mask_id``.
        random_rate: share of the chosen tokens that become a random token.
        vocab_size: V, of the random tokens.
        mask_id: id of [MASK].
        special_ids: never chosen: [PAD], [CLS], [SEP].

    Returns:
        Masked inputs, the ids as targets, weights.

    Raises:
        TypeError: if ids are not integers, word_starts not bool or the key is not a typed key.
        ValueError: if a rate is outside [0, 1], mask_id outside the vocabulary, or shapes differ.
            A traced rate out of range gives targets -1, of which the loss is NaN.

    >>> ids = jnp.array([[101, 7, 8, 9, 102, 0]])
    >>> starts = jnp.array([[False, True, True, False, False, False]])
    >>> example = mask_tokens(jax.random.key(1), ids, word_starts=starts, rate=0.6, mask_rate=1.0,
    ...                       random_rate=0.0)
    >>> example.inputs
    Array([[101, 103,   8,   9, 102,   0]], dtype=int32)
    >>> example.weights
    Array([[False,  True, False, False, False, False]], dtype=bool)
    """
    typed_key("key", key)
    ids = _check(ids, word_starts=word_starts)
    rate = number("rate", rate, at_least=0, at_most=1)
    mask_rate = number("mask_rate", mask_rate, at_least=0)
    random_rate = number("random_rate", random_rate, at_least=0)
    both = number("mask_rate + random_rate", mask_rate + random_rate, at_most=1 + 1e-6)
    vocab_size = count("vocab_size", vocab_size, at_least=1, at_most=LARGEST)
    mask_id = count("mask_id", mask_id, at_most=vocab_size - 1)
    word_key, kind_key, token_key = jax.random.split(key, 3)
    draws = jax.random.uniform(word_key, ids.shape)
    if word_starts is not None:
        place = lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
        start = lax.cummax(jnp.where(word_starts, place, 0), axis=ids.ndim - 1)
        draws = jnp.take_along_axis(draws, start, axis=-1)
    special = [ids == special_id for special_id in special_ids]
    chosen = functools.reduce(lambda kept, one: kept & ~one, special, draws < rate)
    # Integers have no NaN: a traced rate out of range leaves no target, and the loss is NaN.
    impossible = jnp.isnan(rate + both)
    chosen, targets = chosen | impossible, jnp.where(impossible, -1, ids)
    kind = jax.random.uniform(kind_key, ids.shape)
    random = jax.random.randint(token_key, ids.shape, 0, vocab_size, ids.dtype)
    hidden = jnp.where(kind >= 1 - random_rate, random, ids)
    hidden = jnp.where(kind < mask_rate, jnp.asarray(mask_id, ids.dtype), hidden)
    return PretrainingExample(jnp.where(chosen, hidden, ids), targets, chosen)


def next_tokens(
    ids: jax.Array, *, mask: jax.Array | None = None, document_ids: jax.Array | None = None
) -> PretrainingExample:
    """Every token predicts the one after it, unless one is padding or they are of two documents.

    Args:
        ids: ``[..., T]`` int.
        mask: ``[..., T]`` bool, False at padding; None: there is none.
        document_ids: ``[..., T]`` int; None: a row is one document.

    Returns:
        The ids as inputs, the next ones as targets, weights.

    Raises:
        TypeError: if ids are not integers or the mask is not bool.
        ValueError: if shapes differ.

    >>> next_tokens(jnp.array([[4, 5, 6, 0]]), mask=jnp.array([[True, True, True, False]])).weights
    Array([[ True,  True, False, False]], dtype=bool)
    """
    ids = _check(ids, mask=mask, document_ids=document_ids)
    place = lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
    counts = place < ids.shape[-1] - 1
    if mask is not None:  # padding may be on the left, too
        counts &= mask & jnp.roll(mask, -1, axis=-1)
    if document_ids is not None:
        counts &= jnp.roll(document_ids, -1, axis=-1) == document_ids
    targets = jnp.roll(ids, -1, axis=-1)
    return PretrainingExample(ids, targets, counts, mask=mask)


def split_prefix(
    key: jax.Array, ids: jax.Array, *, sep_id: int = 102, mask: jax.Array | None = None
) -> PretrainingExample:
    """Cuts every row at a random place; the part after the cut is predicted.

    t[:s] [SEP] t[s:-1] with s uniform in 1..n-2, n the number of tokens: the row keeps its length
    and loses its last position. Segment 0 ends with the new [SEP].

    Args:
        key: typed key, consumed.
        ids: ``[..., T]`` int, T ≥ 3, padding at the end of a row only.
        sep_id: id of [SEP].
        mask: ``[..., T]`` bool, False at padding; None: there is none.

    Returns:
        Inputs, next ids as targets, weights (segment 1 alone), segments and the new mask.

    Raises:
        TypeError: if ids are not integers, the mask not bool or the key is not a typed key.
        ValueError: if T < 3, shapes differ, or sep_id is no id.

    >>> example = split_prefix(jax.random.key(0), jnp.array([[2, 5, 6, 7, 8, 3]]), sep_id=3)
    >>> example.inputs, example.segment_ids
    (Array([[2, 5, 3, 6, 7, 8]], dtype=int32), Array([[0, 0, 0, 1, 1, 1]], dtype=int32))
    >>> example.weights
    Array([[False, False,  True,  True,  True, False]], dtype=bool)
    """
    typed_key("key", key)
    ids = _check(ids, mask=mask)
    length = count("the length of ids", ids.shape[-1], at_least=3)
    place = lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
    given = jnp.ones(ids.shape, bool) if mask is None else mask
    tokens = jnp.sum(given, axis=-1, keepdims=True)
    cut = jax.random.randint(key, tokens.shape, 1, jnp.maximum(tokens - 1, 2))
    shifted, shifted_given = (jnp.roll(x, 1, axis=-1) for x in (ids, given))
    sep_id = count("sep_id", sep_id, at_most=LARGEST)
    inputs = jnp.where(place == cut, sep_id, jnp.where(place < cut, ids, shifted))
    # A row of padding alone stays that.
    given = jnp.where(place < cut, given, jnp.where(place == cut, tokens > 0, shifted_given))
    segments = ((place > cut) & given).astype(jnp.int32)
    targets = jnp.roll(inputs, -1, axis=-1)
    counts = (jnp.roll(segments, -1, axis=-1) == 1) & (place < length - 1)
    return PretrainingExample(inputs, targets, counts, segments, None if mask is None else given)


def _check(ids: jax.Array, **others: jax.Array | None) -> jax.Array:
    """The ids as integers; refuses other arrays of another shape, and masks that are none."""
    ids = integers("ids", ids)
    for name, other in others.items():
        if other is None:
            continue
        if other.shape != ids.shape:
            raise ValueError(f"{name} must have the shape of ids, {ids.shape}, got {other.shape}")
        if name != "document_ids" and other.dtype != bool:
            raise TypeError(f"{name} must be bool, got {other.dtype}; use {name} != 0")
    return ids
