"""Multi-head attention and its masks.

    y_i = Σ_j softmax_j(q_i · k_j / √H + log a_ij) v_j,    a_ij ∈ {0, 1}: position i attends to j

Three masks, after which models are named:

    bidirectional (BERT)     a_ij = 1
    causal (GPT)             a_ij = [j ≤ i]
    prefix (UniLM)           a_ij = [c_j ≤ c_i],  c = cumsum(segment): segment 0 is bidirectional,
                             segment 1 causal

each times [j is not padding] and, in packed rows, times [i and j are of one document]. A position
that would attend to nothing attends to itself: its output is finite, and no other position uses it.

Rotary positions turn the pairs (x_2i, x_2i+1) of queries and keys by the angle t b^(-2i/H) at
position t, so that their product depends on the distance alone.

Source: Ashish Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762; Li Dong et al.,
"Unified Language Model Pre-training", 2019, arXiv 1905.03197; Jianlin Su et al., "RoFormer", 2021,
arXiv 2104.09864; https://kexue.fm/archives/7055.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from zoo._checks import accumulator, number

Pattern = Literal["bidirectional", "causal", "prefix"]
PATTERNS = ("bidirectional", "causal", "prefix")


def document_positions(document_ids: jax.Array) -> jax.Array:
    """Positions that restart at 0 with every document.

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


def attention_mask(
    pattern: Pattern,
    *,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
    document_ids: jax.Array | None = None,
    length: int,
) -> jax.Array | None:
    """The factors a_ij of the module docstring.

    Args:
        pattern: ``"bidirectional"``, ``"causal"`` or ``"prefix"``.
        segment_ids: ``[B, T]`` int 0 or 1, for ``"prefix"``.
        mask: ``[B, T]`` bool, False at padding.
        document_ids: ``[B, T]`` int.
        length: T.

    Returns:
        ``[B or 1, T, T]`` bool, or None if they are all 1.

    >>> attention_mask("prefix", segment_ids=jnp.array([[0, 0, 1]]), length=3).astype(int)
    Array([[[1, 1, 0],
            [1, 1, 0],
            [1, 1, 1]]], dtype=int32)
    """
    factors = []
    if pattern != "bidirectional":
        if segment_ids is None or pattern == "causal":
            order = jnp.arange(length)[None]
        else:
            order = jnp.cumsum(segment_ids, axis=1, dtype=jnp.int32)
        factors.append(order[:, :, None] >= order[:, None, :])
    if mask is not None:
        factors.append(jnp.broadcast_to(mask[:, None, :], (len(mask), length, length)))
    if document_ids is not None:
        factors.append(document_ids[:, :, None] == document_ids[:, None, :])
    if not factors:
        return None
    allowed = functools.reduce(jnp.logical_and, jnp.broadcast_arrays(*factors))
    if mask is not None:  # a document or the start of a row may be padding alone
        itself = jnp.eye(length, dtype=bool)[None]
        allowed |= ~allowed.any(axis=-1, keepdims=True) & itself
    return allowed


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    *,
    causal: bool = False,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> jax.Array:
    """The formula of the module docstring, for all heads.

    Args:
        query: ``[B, T, N, H]``, N heads of H units.
        key: ``[B, S, N, H]``.
        value: ``[B, S, N, H]``.
        mask: ``[B or 1, T, S]`` bool, from :func:`attention_mask`; None: all 1.
        causal: [j ≤ i] besides. Fused kernels skip what a flag hides, not what an array hides.
        implementation: of ``jax.nn.dot_product_attention``; ``"cudnn"`` is the fused kernel of
            NVIDIA GPUs, for float16 and bfloat16.

    Returns:
        ``[B, T, N, H]``.

    >>> x = jnp.ones((1, 3, 2, 4))
    >>> attention(x, x, 2 * x, None).shape
    (1, 3, 2, 4)
    """
    attend = functools.partial(
        jax.nn.dot_product_attention,
        mask=None if mask is None else mask[:, None],
        is_causal=causal,
        implementation=implementation,
    )
    if query.dtype != jnp.float16 or implementation == "cudnn":
        return attend(query, key, value)
    # XLA's CPU compiler has no products of float16 with a wide sum.
    return lax.platform_dependent(
        query,
        key,
        value,
        cpu=lambda *heads: attend(*(x.astype(jnp.float32) for x in heads)).astype(query.dtype),
        default=attend,
    )


def dropped_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    dropout_key: jax.Array,
    *,
    rate: float,
    causal: bool = False,
) -> jax.Array:
    """:func:`attention` with dropout of its weights, which fused kernels cannot.

    Args:
        query: ``[B, T, N, H]``.
        key: ``[B, S, N, H]``.
        value: ``[B, S, N, H]``.
        mask: ``[B or 1, T, S]`` bool, or None.
        dropout_key: typed key, consumed.
        rate: share of the weights that become 0, in [0, 1); the others grow by 1 / (1 - rate).
        causal: [j ≤ i] besides.

    Returns:
        ``[B, T, N, H]``.

    >>> x = jnp.ones((1, 3, 2, 4))
    >>> dropped_attention(x, x, x, None, jax.random.key(0), rate=0.0).shape
    (1, 3, 2, 4)
    """
    rate = number("rate", rate, at_least=0, below=1)
    wide = accumulator(query.dtype)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=wide)
    allowed = jnp.ones((1, *scores.shape[2:]), bool) if mask is None else mask
    if causal:
        allowed &= jnp.tri(scores.shape[2], scores.shape[3], dtype=bool)[None]
    scores = jnp.where(allowed[:, None], scores * query.shape[-1] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    stays = jax.random.bernoulli(dropout_key, 1 - rate, weights.shape)
    weights = jnp.where(stays, weights / (1 - rate), 0).astype(query.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, value)


def rotary_angles(positions: jax.Array, units: int, *, base: float = 10_000.0) -> jax.Array:
    """The angles t b^(-2i/H) of the module docstring.

    Args:
        positions: ``[...]`` int, t.
        units: H, even.
        base: b.

    Returns:
        ``[..., H/2]`` float32, in radians.

    >>> rotary_angles(jnp.array([0, 3]), 4)
    Array([[0.  , 0.  ],
           [3.  , 0.03]], dtype=float32)
    """
    frequencies = base ** (-jnp.arange(0, units, 2, dtype=jnp.float32) / units)
    leading = (None,) * positions.ndim
    return positions[..., None].astype(jnp.float32) * frequencies[leading]


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the pairs (x_2i, x_2i+1) of every head.

    Args:
        x: ``[B, T, N, H]``.
        angles: ``[B or 1, T, H/2]``, from :func:`rotary_angles`.

    Returns:
        ``[B, T, N, H]``.

    >>> rotate(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[[jnp.pi / 2]]])).round(3)
    Array([[[[-0.,  1.]]]], dtype=float32)
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    even, odd = x[..., ::2].astype(angles.dtype), x[..., 1::2].astype(angles.dtype)
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def cached_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array | None,
    *,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> jax.Array:
    """Equals :func:`attention` to the keys and values of a cache.

    For one token it is two sums that read every number once, each over an axis before the last, so
    that CPUs add whole vectors; they would run the many small matrix products one by one.

    Args:
        query: ``[B, T, N, H]``.
        keys: ``[B, N, H, S]``, as ``KeyValueCache`` has them.
        values: ``[B, N, S, H]``.
        mask: ``[B or 1, T, S]`` bool, at least one place per row; None: all places.
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
        return attention(query, key, value, mask, implementation=implementation)
    scale = query.shape[-1] ** -0.5
    one = query[:, 0, :, :, None]  # [B, N, H, 1]
    scores = scale * jnp.sum(one * keys, axis=2, dtype=accumulator(query.dtype))
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.sum(weights[..., None] * values, axis=2)[:, None].astype(query.dtype)
