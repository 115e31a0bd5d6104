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

all three from the old vectors. These are steps of Riemannian SGD without the angular factor on

    ½ (1 - u·v̄)² + (u'·v̄)² + ½ (1 - ū·v + ū'·v)²        where u·v - u'·v < m

in which a bar marks a vector that this term does not move: random words are driven towards
orthogonality, not to -1 as in the paper, and one that is past it is pulled back.

Source: Yu Meng et al., "Spherical Text Embedding", 2019, arXiv 1911.01196, and its program
(github.com/yumeng5/Spherical-Text-Embedding, src/jose.c); https://kexue.fm/archives/7063.
"""

import jax
import jax.numpy as jnp

from zoo import _checks
from zoo.spherical.geometry import dot, on_vectors


@on_vectors
def jose_loss(
    center: jax.Array,
    context: jax.Array,
    document: jax.Array,
    negative: jax.Array,
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
        ``[...]``, one value per row.

    Raises:
        ValueError: if m is not positive, or the vectors differ in size.

    >>> u, other = jnp.eye(2)
    >>> print(jose_loss(u, u, u, other), jose_loss(u, other, other, other))
    0.0 2.15

    Reference: arXiv 1911.01196, equation 5.
    """
    margin = _checks.number("margin", margin, above=0)
    return hinge(dot(center - negative, context + document)[..., 0], margin)


@on_vectors
def two_hinges_loss(
    center: jax.Array, context: jax.Array, negative: jax.Array, *, margin: float = 0.15
) -> jax.Array:
    """The function on which the authors' program takes a step of Riemannian SGD, see the module.

    ½ (1 - u·v̄)² + (u'·v̄)² + ½ (1 - ū·v + ū'·v)² where u·v - u'·v < m, else 0.

    Args:
        center: words u, unit vectors ``[..., D]``.
        context: their neighbours v, or their documents, ``[..., D]``.
        negative: random words u', ``[..., D]``.
        margin: m > 0.

    Returns:
        ``[...]``, one value per row.

    Raises:
        ValueError: if m is not positive, or the vectors differ in size.

    >>> u, v, other = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> print(two_hinges_loss(u, v, other))  # (0.4² + 2 · 0.8² + 1.2²) / 2
    1.44
    >>> from zoo.spherical import riemannian_sgd  # the program's step on v
    >>> gradient = jax.grad(two_hinges_loss, argnums=1)(u, v, other)
    >>> optimizer = riemannian_sgd(0.1, angular=False)
    >>> update, _ = optimizer.update(gradient, optimizer.init(v), v)
    >>> print(v + update)
    [0.724 0.690 ]
    """
    margin = _checks.number("margin", margin, above=0)
    fixed = jax.lax.stop_gradient
    f, h = dot(center, fixed(context)), dot(negative, fixed(context))
    return squares(f, h, dot(fixed(center - negative), context), margin)[..., 0]


# Of products of vectors, which a block of text computes all at once (zoo/spherical/blocks.py).


def hinge(gap: jax.Array, margin: float) -> jax.Array:
    """max(0, m - gap)."""
    return jax.nn.relu(margin - gap)


def squares(f: jax.Array, h: jax.Array, gap: jax.Array, margin: float) -> jax.Array:
    """½ (1 - f)² + h² + ½ (1 - gap)² where gap < m; NaN stays NaN."""
    return jnp.where(gap >= margin, 0, ((1 - f) ** 2 + 2 * h**2 + (1 - gap) ** 2) / 2)
