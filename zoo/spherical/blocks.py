"""JoSE's objectives over a block of text, as matrix products.

The program of the authors goes from word to word: T positions with some 11 neighbours and 2
negatives each are 22 T triples, each of a few dot products of D numbers and as many updates, at
random places. A block computes the same sums for T neighbouring positions at once. With the
contexts v_t, the centers u_s of the T + 2W words around, and N negatives u'_n,

    f = v·uᵀ   [T, T+2W]   of which the band |s - t| ≤ W is used, as [2W+1 offsets, T]
    h = u'·vᵀ  [N, T]      the K negatives of an offset are shared by the T pairs of that offset

give every triple of a word and its neighbours; those of a word and its document are few, and
computed one by one. The gradient of the sum is four more products.

Per position 2 D (3 (T + 2W) + 3 N + 3 K + 3) operations; 58,200 for T = 32, W = 10, D = 100, K = 2.

Source: objectives of arXiv 1911.01196 and its program, see ``zoo.spherical.objective``; sharing of
negatives after Shihao Ji et al., "Parallelizing Word2Vec in Shared and Distributed Memory", 2016,
arXiv 1604.04661.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.spherical.geometry import dot
from zoo.spherical.objective import hinge, squares
from zoo.spherical.options import JoseOptions


class BlockVectors(NamedTuple):
    """The vectors of a block."""

    centers: jax.Array  # [T + 2W, D] u of the words from W before the block to W behind it
    contexts: jax.Array  # [T, D] v of the words of the block
    documents: jax.Array  # [T, D] d of the document of each word
    negatives: jax.Array  # [N, D] u' of random words, N = (2W + 1) K


class BlockMasks(NamedTuple):
    """Which triples count."""

    left: jax.Array  # int [T], neighbours before each position: within the window and document
    right: jax.Array  # int [T], neighbours behind it
    valid: jax.Array  # bool [T], False where a word's own triple with its document does not count
    offsets: jax.Array  # bool [2W + 1], which of the offsets -W … W count
    collides: jax.Array  # bool [N, T], whether a negative is the word itself


class HingeSum(NamedTuple):
    """What is reported: the sum of max(0, m - gap) over triples, and how many these are."""

    total: jax.Array  # []
    triples: jax.Array  # []


def block_loss(
    vectors: BlockVectors, masks: BlockMasks, options: JoseOptions
) -> tuple[jax.Array, HingeSum]:
    """The sum of ``jose_loss`` or of ``two_hinges_loss`` over all triples of a block.

    With the objective ``"joint"`` a triple is a word, a neighbour with the document, and a negative
    of the neighbour's offset. With ``"two_hinges"`` the document is no part of it; it has triples
    of its own, with K negatives per word as far as there are enough: two random words shared by all
    words of a document would push it further than all its words pull.

    Args:
        vectors: unit vectors.
        masks: which triples count.
        options: the objective and its margin.

    Returns:
        The sum, and that of the hinges.
    """
    u, v, d, negatives = vectors
    size, width = len(v), len(u) - len(v)  # T, 2W
    window = width // 2
    offsets = jnp.arange(-window, window + 1)[:, None]
    left, right = masks.left[None], masks.right[None]
    neighbours = (-offsets <= left) & (offsets <= right) & (offsets != 0) & masks.offsets[:, None]
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def products(u: jax.Array, x: jax.Array, negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
        f = band(product("td,sd->ts", x, u), width).T[:, None]  # [2W + 1, 1, T]
        return f, product("nd,td->nt", negatives, x).reshape(width + 1, -1, size)

    collides = masks.collides.reshape(width + 1, -1, size)  # [2W + 1, K, T]
    counted = neighbours[:, None] & ~collides
    if options.objective == "joint":
        f, h = products(u, v + d, negatives)
        hinges = jnp.where(counted, hinge(f - h, options.margin), 0)
        return jnp.sum(hinges), HingeSum(jnp.sum(hinges), jnp.sum(counted))

    fixed = jax.lax.stop_gradient
    f, h = products(u, fixed(v), negatives)
    f_context, h_context = products(fixed(u), v, fixed(negatives))
    gap = f_context - h_context
    words = _two_hinges(f, h, gap, counted, options.margin)

    count = h.shape[1]  # K
    chosen = np.arange(size * count) % len(negatives)
    mine = negatives[chosen].reshape(size, count, -1)  # [T, K, D]
    collides = masks.collides[chosen, np.repeat(np.arange(size), count)].reshape(size, count)
    u_word = u[window : window + size]
    f, h = dot(u_word, fixed(d)), dot(mine, fixed(d)[:, None])[..., 0]  # [T, 1], [T, K]
    gap = dot(fixed(u_word), d) - dot(fixed(mine), d[:, None])[..., 0]
    own = _two_hinges(f, h, gap, masks.valid[:, None] & ~collides, options.margin)
    return jax.tree.map(jnp.add, words, own)


def _two_hinges(
    f: jax.Array, h: jax.Array, gap: jax.Array, counted: jax.Array, margin: float
) -> tuple[jax.Array, HingeSum]:
    loss = jnp.sum(jnp.where(counted, squares(f, h, gap, margin), 0))
    total = jnp.sum(jnp.where(counted, hinge(jax.lax.stop_gradient(gap), margin), 0))
    return loss, HingeSum(total, jnp.sum(counted))


def band(matrix: jax.Array, width: int) -> jax.Array:
    """The diagonals 0 … width of ``[T, T + width]`` as columns: [t, o] is matrix[t, t + o]."""
    size, columns = matrix.shape
    # A row longer by one number shifts each row by one against the one before it.
    shifted = jnp.pad(matrix.reshape(-1), (0, size)).reshape(size, columns + 1)
    return shifted[:, : width + 1]
