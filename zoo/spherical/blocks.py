"""Gradients of JoSE's objectives over a block of text, as matrix products.

The program of the authors goes from word to word: T positions with some 11 neighbours and 2
negatives each are 22 T triples, each of a few dot products of D numbers and as many updates, at
random places. A block computes the same sums for T neighbouring positions at once. With the
contexts v_t, the centers u_s of the T + 2W words around, and N negatives u'_n,

    f = v·uᵀ   [T, T+2W]   of which the band |s - t| ≤ W is used, as [2W+1 offsets, T]
    h = u'·vᵀ  [N, T]      the K negatives of an offset are shared by the T pairs of that offset

give the hinge of every triple, its step factors [2W+1, K, T] are a few elementwise operations, and
their sums over triples are four more products. The pairs of a word and its document are few, and
done one by one. The descent directions of a row are added up, and the row moves once.

Per position 2 D (3 (T + 2W) + 3 N + 3 K + 3) operations; 58,200 for T = 32, W = 10, D = 100, K = 2.

Source: objectives of arXiv 1911.01196 and its program, see ``zoo.spherical.objective``; sharing of
negatives after Shihao Ji et al., «Parallelizing Word2Vec in Shared and Distributed Memory», 2016,
arXiv 1604.04661.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Objective = Literal["two_hinges", "joint"]


class BlockVectors(NamedTuple):
    """The rows that a block works on, or the directions in which they descend."""

    centers: jax.Array  # [T + 2W, D] u of the words from W before the block to W behind it
    contexts: jax.Array  # [T, D] v of the words of the block
    documents: jax.Array  # [T, D] d of the document of each word
    negatives: jax.Array  # [N, D] u' of random words, N = (2W + 1) K


class BlockMasks(NamedTuple):
    """Which triples count."""

    left: jax.Array  # int [T], neighbours before each position: within the window and document
    right: jax.Array  # int [T], neighbours behind it
    valid: jax.Array  # bool [T], False where the block holds no word
    collides: jax.Array  # bool [N, T], whether a negative is the word itself


def block_descent(
    vectors: BlockVectors, masks: BlockMasks, *, objective: Objective, margin: float
) -> tuple[BlockVectors, jax.Array]:
    """Sums the descent directions of all triples of a block.

    Args:
        vectors: the rows.
        masks: which triples count.
        objective: ``"two_hinges"`` of the authors' program or the paper's ``"joint"`` hinge.
        margin: m.

    Returns:
        The negative gradients, which still have their radial parts; and the mean hinge, a scalar.
    """
    u, v, d, negatives = vectors
    size, width = len(v), len(u) - len(v)  # T, 2W
    window = width // 2
    u_word = u[window : window + size]
    offsets = jnp.arange(-window, window + 1)[:, None]
    left, right = masks.left[None], masks.right[None]
    neighbours = (-offsets <= left) & (offsets <= right) & (offsets != 0)
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    x = v + d if objective == "joint" else v
    f = band(product("td,sd->ts", x, u), width).T
    h = product("nd,td->nt", negatives, x).reshape(width + 1, -1, size)
    hinge = _hinge(f[:, None], h, neighbours[:, None] & ~masks.collides.reshape(h.shape), margin)
    if objective == "joint":
        per_pair, per_negative = jnp.sum(hinge.active, axis=1), hinge.active
        attract, repel, follow, avoid = per_pair, per_negative, per_pair, per_negative
    else:  # the step factors of the three rules
        attract = jnp.sum(hinge.active, axis=1) * (1 - f)
        repel = hinge.active * 2 * h
        avoid = hinge.active * (1 - f[:, None] + h)
        follow = jnp.sum(avoid, axis=1)
    repel, avoid = repel.reshape(-1, size), avoid.reshape(-1, size)
    centers = product("ts,td->sd", unband(attract.T, width), x)
    contexts = product("ts,sd->td", unband(follow.T, width), u)
    contexts -= product("nt,nd->td", avoid, negatives)
    repelled = -product("nt,td->nd", repel, x)
    if objective == "joint":
        descent = BlockVectors(centers, contexts, contexts, repelled)
        return descent, hinge.total / jnp.maximum(hinge.triples, 1)

    # Each word with its document. Its K negatives are its own, as far as there are enough: shared
    # by all words of a document they would push it further than all its words pull.
    count = h.shape[1]
    chosen = np.arange(size * count) % len(negatives)
    mine = negatives[chosen].reshape(size, count, -1)  # [T, K, D]
    collides = masks.collides[chosen, np.repeat(np.arange(size), count)].reshape(size, count)
    f = jnp.sum(u_word * d, axis=-1, keepdims=True)  # [T, 1]
    h = jnp.sum(mine * d[:, None], axis=-1)  # [T, K]
    own = _hinge(f, h, masks.valid[:, None] & ~collides, margin)
    attract = jnp.sum(own.active * (1 - f), axis=-1, keepdims=True)
    repel = own.active * 2 * h
    avoid = own.active * (1 - f + h)
    documents = jnp.sum(avoid, axis=-1, keepdims=True) * u_word
    documents -= jnp.sum(avoid[..., None] * mine, axis=1)
    centers = centers.at[window : window + size].add(attract * d)
    pushed = (repel[..., None] * d[:, None]).reshape(size * count, -1)
    repelled = repelled.at[chosen].add(-pushed)
    loss = (hinge.total + own.total) / jnp.maximum(hinge.triples + own.triples, 1)
    return BlockVectors(centers, contexts, documents, repelled), loss


class _Hinge(NamedTuple):
    active: jax.Array  # 1 where the triple is within the margin, else 0
    total: jax.Array  # sum of the hinges
    triples: jax.Array  # how many


def _hinge(f: jax.Array, h: jax.Array, counted: jax.Array, margin: float) -> _Hinge:
    active = (counted & (f - h < margin)).astype(f.dtype)
    return _Hinge(active, jnp.sum(active * (margin - f + h)), jnp.sum(counted))


def band(matrix: jax.Array, width: int) -> jax.Array:
    """The diagonals 0 … width of ``[T, T + width]`` as columns: [t, o] is matrix[t, t + o]."""
    size, columns = matrix.shape
    # A row longer by one number shifts each row by one against the one before it.
    shifted = jnp.pad(matrix.reshape(-1), (0, size)).reshape(size, columns + 1)
    return shifted[:, : width + 1]


def unband(diagonals: jax.Array, width: int) -> jax.Array:
    """The inverse of :func:`band`, with zeros beside the diagonals."""
    size = len(diagonals)
    shifted = jnp.pad(diagonals, ((0, 0), (0, size))).reshape(-1)
    return shifted[: size * (size + width)].reshape(size, size + width)
