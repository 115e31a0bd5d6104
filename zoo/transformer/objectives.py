"""What a Transformer is pretrained to predict: masked tokens, the next token, or a second half.

    masked   each word is chosen with probability ``rate``; each token of a chosen word is replaced
             by [MASK] (80 %), kept (10 %) or replaced by a random token (10 %), and predicted
    next     y_t = x_{t+1}
    prefix   t[:s] [SEP] t[s:] with a random cut s: what stands after [SEP] is predicted

All are functions of a key and run in the compiled step, so that every epoch has new masks and a
resumed run the same ones; for static masks, call them once and store what they give.

Source: arXiv 1810.04805, section 3.1; arXiv 1905.03197; https://kexue.fm/archives/7055. There a
row also keeps its length; tokens of one word are chosen together; the random token may be any,
special ones and the original one too. The defaults are the ids of BERT's English uncased
vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class PretrainingExample(NamedTuple):
    """What goes into the model and what should come out."""

    inputs: jax.Array  # [..., T] int, ids to read
    targets: jax.Array  # [..., T] int, ids to predict
    weights: jax.Array  # [..., T] bool, where the target counts
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
        rate: share of words that are chosen, each by itself.
        mask_rate: share of the chosen tokens that become ``mask_id``.
        random_rate: share of the chosen tokens that become any token.
        vocab_size: V, of the random tokens.
        mask_id: id of [MASK].
        special_ids: never chosen: [PAD], [CLS], [SEP].

    Returns:
        Masked inputs, the ids as targets, weights.

    Raises:
        TypeError: if ids are not integers or the key is not a typed key.
        ValueError: if rates are no shares, mask_id is not in the vocabulary, or shapes differ.

    >>> ids = jnp.array([[101, 7, 8, 9, 102, 0]])
    >>> starts = jnp.array([[False, True, True, False, False, False]])
    >>> example = mask_tokens(jax.random.key(1), ids, word_starts=starts, rate=0.6, mask_rate=1.0,
    ...                       random_rate=0.0)
    >>> example.inputs
    Array([[101, 103,   8,   9, 102,   0]], dtype=int32)
    >>> example.weights
    Array([[False,  True, False, False, False, False]], dtype=bool)
    """
    _check_ids(ids, key)
    shares = {"mask_rate": mask_rate, "random_rate": random_rate}
    if not isinstance(rate, jax.Array):
        shares["rate"] = rate
    for name, share in {**shares, "mask_rate + random_rate": mask_rate + random_rate}.items():
        if not 0 <= share <= 1 + 1e-9:
            raise ValueError(f"{name} must be in [0, 1], got {share}")
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id must be in 0..{vocab_size - 1} (vocab_size), got {mask_id}")
    word_key, kind_key, token_key = jax.random.split(key, 3)
    draws = jax.random.uniform(word_key, ids.shape)
    if word_starts is not None:
        _check_shape("word_starts", word_starts, ids)
        place = lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
        start = lax.cummax(jnp.where(word_starts, place, 0), axis=ids.ndim - 1)
        draws = jnp.take_along_axis(draws, start, axis=-1)
    special = jnp.zeros(ids.shape, bool)
    for special_id in special_ids:
        special |= ids == special_id
    chosen = (draws < rate) & ~special
    kind = jax.random.uniform(kind_key, ids.shape)
    anything = jax.random.randint(token_key, ids.shape, 0, vocab_size, ids.dtype)
    hidden = jnp.where(kind >= 1 - random_rate, anything, ids)
    hidden = jnp.where(kind < mask_rate, jnp.asarray(mask_id, ids.dtype), hidden)
    return PretrainingExample(jnp.where(chosen, hidden, ids), ids, chosen)


def next_tokens(
    ids: jax.Array, *, mask: jax.Array | None = None, document_ids: jax.Array | None = None
) -> PretrainingExample:
    """Every token predicts the one after it, unless that is padding or of another document.

    Args:
        ids: ``[..., T]`` int.
        mask: ``[..., T]`` bool, False at padding; None: there is none.
        document_ids: ``[..., T]`` int; None: a row is one document.

    Returns:
        The ids as inputs, the next ones as targets, weights.

    Raises:
        TypeError: if ids are not integers.
        ValueError: if shapes differ.

    >>> next_tokens(jnp.array([[4, 5, 6, 0]]), mask=jnp.array([[True, True, True, False]])).weights
    Array([[ True,  True, False, False]], dtype=bool)
    """
    _check_ids(ids)
    place = lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
    counts = place < ids.shape[-1] - 1
    if mask is not None:
        _check_shape("mask", mask, ids)
        counts &= jnp.roll(mask, -1, axis=-1)
    if document_ids is not None:
        _check_shape("document_ids", document_ids, ids)
        counts &= jnp.roll(document_ids, -1, axis=-1) == document_ids
    targets = jnp.roll(ids, -1, axis=-1)
    return PretrainingExample(ids, targets, counts, mask=mask)


def split_prefix(
    key: jax.Array, ids: jax.Array, *, sep_id: int = 102, mask: jax.Array | None = None
) -> PretrainingExample:
    """Cuts every row at a random place: the part after the cut is to be written.

    t[:s] [SEP] t[s:-1] with s uniform in 1..n-2, n the number of tokens: the row keeps its length
    and loses what stands in its last place. Segment 0 ends with the new [SEP].

    Args:
        key: typed key, consumed.
        ids: ``[..., T]`` int, T ≥ 3, padding at the end of a row only.
        sep_id: id of [SEP].
        mask: ``[..., T]`` bool, False at padding; None: there is none.

    Returns:
        Inputs, next ids as targets, weights (segment 1 alone), segments and the new mask.

    Raises:
        TypeError: if ids are not integers or the key is not a typed key.
        ValueError: if T < 3 or shapes differ.

    >>> example = split_prefix(jax.random.key(0), jnp.array([[2, 5, 6, 7, 8, 3]]), sep_id=3)
    >>> example.inputs, example.segment_ids
    (Array([[2, 5, 3, 6, 7, 8]], dtype=int32), Array([[0, 0, 0, 1, 1, 1]], dtype=int32))
    >>> example.weights
    Array([[False, False,  True,  True,  True, False]], dtype=bool)
    """
    _check_ids(ids, key)
    length = ids.shape[-1]
    if length < 3:
        raise ValueError(f"ids must have at least 3 positions to be cut, got shape {ids.shape}")
    if mask is not None:
        _check_shape("mask", mask, ids)
    place = lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
    given = jnp.ones(ids.shape, bool) if mask is None else mask
    tokens = jnp.sum(given, axis=-1, keepdims=True)
    cut = jax.random.randint(key, tokens.shape, 1, jnp.maximum(tokens - 1, 2))
    shifted, shifted_given = (jnp.roll(x, 1, axis=-1) for x in (ids, given))
    separator = jnp.asarray(sep_id, ids.dtype)
    inputs = jnp.where(place == cut, separator, jnp.where(place < cut, ids, shifted))
    # A row of padding alone stays one.
    given = jnp.where(place < cut, given, jnp.where(place == cut, tokens > 0, shifted_given))
    segments = ((place > cut) & given).astype(jnp.int32)
    targets = jnp.roll(inputs, -1, axis=-1)
    counts = (jnp.roll(segments, -1, axis=-1) == 1) & (place < length - 1)
    return PretrainingExample(inputs, targets, counts, segments, None if mask is None else given)


def _check_ids(ids: jax.Array, key: jax.Array | None = None) -> None:
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids must be integers, got {ids.dtype}; encode the text first")
    if key is not None and not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed key such as jax.random.key(0), got {key.dtype}")


def _check_shape(name: str, other: jax.Array, ids: jax.Array) -> None:
    if other.shape != ids.shape:
        raise ValueError(f"{name} must have the shape of ids, {ids.shape}, got {other.shape}")
