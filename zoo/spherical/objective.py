"""JoSE's two objectives: the paper's joint hinge, and the two hinges of the authors' program.

The paper: a word u explains its neighbour v and is explained by its document d, better by a
margin m than a random word u' does,

    L = max(0, m - u·v - u·d + u'·v + u'·d)                                     joint hinge

to be minimised by Riemannian SGD with the angular factor. The authors' program has two hinges, one
for (u, u', v) and one for (u, u', d) in place of (u, u', v), and other step factors: if
f - h < m for f = u·v and h = u'·v, then with N = normalise and rate a

    u  ← N(u  + a (1 - f) (v - f u))
    u' ← N(u' + a 2h (h u' - v))
    v  ← N(v  + a (1 - f + h) [(u - u') - (f - h) v])

all three from the old vectors. These are gradient steps on ½(1 - u·v)², (u'·v)² and
½(1 - u·v + u'·v)²: random words are driven towards orthogonality, not to -1 as in the paper, and
one that is past it is pulled back.

Source: Yu Meng et al., «Spherical Text Embedding», 2019, arXiv 1911.01196, and its program
(github.com/yumeng5/Spherical-Text-Embedding, src/jose.c); https://kexue.fm/archives/7063.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoo.spherical.geometry import unit, widen


class JoseTriple(NamedTuple):
    """The three vectors of one hinge of the authors' program."""

    center: jax.Array  # [..., D] u
    context: jax.Array  # [..., D] v, or the document d
    negative: jax.Array  # [..., D] u'


def jose_loss(
    center: ArrayLike,
    context: ArrayLike,
    document: ArrayLike,
    negative: ArrayLike,
    *,
    margin: float = 0.15,
) -> jax.Array:
    """The paper's joint hinge, ``max(0, m - u·v - u·d + u'·v + u'·d)``.

    Args:
        center: words u, unit vectors ``[..., D]``.
        context: their neighbours v, ``[..., D]``.
        document: their documents d, ``[..., D]``.
        negative: random words u' in the place of u, ``[..., D]``.
        margin: m > 0.

    Returns:
        ``[...]``, one value a row.

    Raises:
        TypeError: if an argument is not a floating-point array.
        ValueError: if the vectors have different sizes, or m is not positive.

    >>> u, other = jnp.eye(2)
    >>> print(jose_loss(u, u, u, other), jose_loss(u, other, other, other))
    0.0 2.15

    Reference: arXiv 1911.01196, equation 5.
    """
    _check_margin(margin)
    dtype, (u, v, d, other) = widen(
        "jose_loss", center=center, context=context, document=document, negative=negative
    )
    return jax.nn.relu(margin - jnp.sum((u - other) * (v + d), axis=-1)).astype(dtype)


def two_hinges_update(
    center: ArrayLike,
    context: ArrayLike,
    negative: ArrayLike,
    *,
    learning_rate: ArrayLike,
    margin: float = 0.15,
) -> JoseTriple:
    """One step of the authors' program on a triple (u, v, u'); see the module for the rules.

    Args:
        center: words u, unit vectors ``[..., D]``.
        context: their neighbours v, or their documents, ``[..., D]``.
        negative: random words u', ``[..., D]``.
        learning_rate: a, a scalar.
        margin: m; triples with u·v - u'·v ≥ m stay as they are.

    Returns:
        The new unit vectors.

    Raises:
        TypeError: if an argument is not a floating-point array.
        ValueError: if the vectors have different sizes, or m is not positive.

    >>> u, v, other = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> moved = two_hinges_update(u, v, other, learning_rate=0.1)
    >>> print(moved.center @ moved.context, moved.negative @ moved.context)
    0.746 0.617
    """
    _check_margin(margin)
    dtype, (u, v, other) = widen(
        "two_hinges_update", center=center, context=context, negative=negative
    )
    f = jnp.sum(u * v, axis=-1, keepdims=True)
    h = jnp.sum(other * v, axis=-1, keepdims=True)
    rate = jnp.asarray(learning_rate, u.dtype)
    active = f - h < margin
    moved = JoseTriple(
        center=unit(u + rate * (1 - f) * (v - f * u)),
        context=unit(v + rate * (1 - f + h) * (u - other - (f - h) * v)),
        negative=unit(other + rate * 2 * h * (h * other - v)),
    )
    return JoseTriple(
        *(
            jnp.where(active, new, old).astype(dtype)
            for new, old in zip(moved, (u, v, other), strict=True)
        )
    )


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
