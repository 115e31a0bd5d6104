"""Multi-head attention and who may look at whom.

    y_i = Σ_j softmax_j(q_i · k_j / √H + log a_ij) v_j,    a_ij ∈ {0, 1}: position i sees position j

Three patterns, after which models are named:

    bidirectional (BERT)     a_ij = 1
    causal (GPT)             a_ij = [j ≤ i]
    prefix (UniLM)           a_ij = [c_j ≤ c_i],  c = cumsum(segment): segment 0 is read as a whole,
                             segment 1 is written from left to right

each times [j is no padding] and, in packed rows, times [i and j belong to one document]. A position
that would see nothing sees itself: its output is finite, and no other position reads it.

Source: Ashish Vaswani et al., «Attention Is All You Need», 2017, arXiv 1706.03762; Li Dong et al.,
«Unified Language Model Pre-training», 2019, arXiv 1905.03197; https://kexue.fm/archives/7055.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Pattern = Literal["bidirectional", "causal", "prefix"]
PATTERNS = ("bidirectional", "causal", "prefix")


def document_positions(document_ids: jax.Array) -> jax.Array:
    """The place of every token in its own document: 0, 1, … and again 0 where the next one begins.

    Args:
        document_ids: ``[B, T]`` int, constant over a document and different from its neighbours.

    Returns:
        ``[B, T]`` int32.

    >>> document_positions(jnp.array([[5, 5, 5, 2, 2, 7]]))
    Array([[0, 1, 2, 0, 1, 0]], dtype=int32)
    """
    time = lax.broadcasted_iota(jnp.int32, document_ids.shape, 1)
    before = jnp.roll(document_ids, 1, axis=1)
    starts = (time == 0) | (document_ids != before)
    return time - lax.cummax(jnp.where(starts, time, 0), axis=1)


def visible_pairs(
    pattern: Pattern,
    *,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
    document_ids: jax.Array | None = None,
    length: int,
) -> jax.Array | None:
    """Which position i may look at which position j, see the module docstring.

    Args:
        pattern: ``"bidirectional"``, ``"causal"`` or ``"prefix"``.
        segment_ids: ``[B, T]`` int 0 or 1, for ``"prefix"``.
        mask: ``[B, T]`` bool, False at padding.
        document_ids: ``[B, T]`` int.
        length: T.

    Returns:
        ``[B or 1, T, T]`` bool, or None if every position sees every other.

    >>> visible_pairs("prefix", segment_ids=jnp.array([[0, 0, 1]]), length=3).astype(int)
    Array([[[1, 1, 0],
            [1, 1, 0],
            [1, 1, 1]]], dtype=int32)
    """
    terms = []
    if pattern == "causal":
        order = jnp.arange(length)[None]
        terms.append(order[:, :, None] >= order[:, None, :])
    if pattern == "prefix":
        assert segment_ids is not None  # the module checked it
        order = jnp.cumsum(segment_ids, axis=1)
        terms.append(order[:, :, None] >= order[:, None, :])
    if mask is not None:
        terms.append(jnp.broadcast_to(mask[:, None, :], (len(mask), length, length)))
    if document_ids is not None:
        terms.append(document_ids[:, :, None] == document_ids[:, None, :])
    if not terms:
        return None
    visible = terms[0]
    for term in terms[1:]:
        visible = jnp.logical_and(*jnp.broadcast_arrays(visible, term))
    if mask is not None:  # a document or a beginning may be padding alone
        itself = jnp.eye(length, dtype=bool)[None]
        visible |= ~visible.any(axis=-1, keepdims=True) & itself
    return visible


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array | None,
    *,
    causal: bool = False,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> jax.Array:
    """The formula of the module docstring, for all heads.

    Args:
        query: ``[B, T, N, H]``, N heads of H units.
        key: ``[B, S, N, H]``.
        value: ``[B, S, N, H]``.
        visible: ``[B or 1, T, S]`` bool, from :func:`visible_pairs`; None: all see all.
        causal: position i sees j ≤ i only. Fused kernels skip what a flag hides, not what an array
            hides.
        implementation: of ``jax.nn.dot_product_attention``; ``"cudnn"`` is the fused kernel of
            NVIDIA GPUs, for float16 and bfloat16.

    Returns:
        ``[B, T, N, H]``.

    >>> x = jnp.ones((1, 3, 2, 4))
    >>> attention(x, x, 2 * x, None).shape
    (1, 3, 2, 4)
    """
    mask = None if visible is None else visible[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, implementation=implementation
    )


def cached_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array | None,
    *,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> jax.Array:
    """:func:`attention` to what a cache holds.

    For one token it is two sums that read every number once, each over an axis before the last, so
    that neighbouring numbers are added to neighbouring sums. Matrix products have nothing to reuse
    there, and CPUs go through many small ones one by one.

    Args:
        query: ``[B, T, N, H]``.
        keys: ``[B, N, H, S]``, as ``KeyValueCache`` has them.
        values: ``[B, N, S, H]``.
        visible: ``[B or 1, T, S]`` bool, at least one place of each row; None: all places.
        implementation: for more than one token, see :func:`attention`.

    Returns:
        ``[B, T, N, H]``.

    >>> x = jnp.ones((1, 1, 2, 4))
    >>> keys, values = jnp.ones((1, 2, 4, 3)), jnp.ones((1, 2, 3, 4))
    >>> cached_attention(x, keys, values, jnp.ones((1, 1, 3), bool)).shape
    (1, 1, 2, 4)
    """
    if query.shape[1] > 1:
        key, value = jnp.moveaxis(keys, 3, 1), jnp.moveaxis(values, 2, 1)
        return attention(query, key, value, visible, implementation=implementation)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scale = query.shape[-1] ** -0.5
    one = query[:, 0, :, :, None]  # [B, N, H, 1]
    scores = scale * jnp.sum(one * keys, axis=2, dtype=wide)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.sum(weights[..., None] * values, axis=2)[:, None].astype(query.dtype)
