"""Self-orthogonality: filters are judged by the signs of their responses to the data at hand.

    S = tanh(sharpness · Y)                     Y [B, K] responses, before bias and activation
    U_i = S_i / ‖S_i‖                           over the batch, one column per filter
    V = Uᵀ·U                                    V_ij ≈ E[sgn(x·w_i)·sgn(x·w_j)]
    R = mean_weight · (Σ_{i≠j} V_ij)² + square_weight · Σ_{i≠j} V_ij²

For inputs x whose direction is uniform, V_ij = 1 - 2θ_ij/π with θ_ij the angle between the two
filters (the hyperplane argument of Charikar, 2002). For Gaussian inputs of covariance Σ it is
(2/π)·arcsin ρ_ij with ρ the correlation of the two responses: where the inputs are correlated, R
is 0 for filters that whiten them, WᵀΣW diagonal, not for orthogonal ones.

What to know before use:

- Noise: orthogonal filters still have E Σ V² = N/B and E (Σ V)² = 2N/B for N = K(K - 1) pairs, so
  V cannot tell small angles apart. Judge filters by :func:`zoo.orthogonal.filter_angles`.
- Rank: V has rank B at most, so Σ_{i≠j} V² ≥ K(K - B)/B where K > B, and its gradient is useless
  there. Take more positions of a convolution, or larger batches.
- Offset: inputs that are not centred (after a ReLU) shift the responses of each filter, signs agree
  by that alone, and R pushes the filters away from orthogonality to undo it. ``center=True``
  subtracts the mean response of the batch first.
- Scale: the literal sums grow with K², to 10⁴ … 10⁵ beside a cross-entropy of 2.
  ``reduction="mean"`` takes means over the pairs, mean_weight · (mean V)² + square_weight · mean
  V², which do not.
- Length: small responses, sharpness·|y| < 1, make V their cosine instead of that of their signs.

Sources: Ziming Zhang, Wenchi Ma, Yuanwei Wu, Guanghui Wang, "Self-Orthogonality Module: A Network
Architecture Plug-in for Learning Orthogonal Filters", 2020, arXiv 2001.01275, as read by
Su Jianlin, https://kexue.fm/archives/7169 (no code of it is known); Moses Charikar, "Similarity
Estimation Techniques from Rounding Algorithms", 2002.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import _checks
from zoo.orthogonal.penalties import gram, pair_sums

AxisName = str | tuple[str, ...]


def filter_responses(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    stop_input_gradient: bool = False,
) -> jax.Array:
    """The responses of a layer's filters to its input, before bias and activation.

    Y = x·kernel, or the convolution of the two where the kernel has a window.

    Where a layer computes the same product, a compiled program computes it once. With
    ``stop_input_gradient`` a penalty on Y moves the filters only; without, also the layers below,
    through dR/dx = dR/dY·kernelᵀ. The source does not say which is meant.

    Args:
        x: ``[..., D]``, or ``[B, *space, I]`` for a convolution.
        kernel: ``[D, K]``, or ``[*window, I, K]``.
        strides: of the convolution, one for all or one per axis of space.
        padding: ``"SAME"``, ``"VALID"`` or a pair per axis of space.
        stop_input_gradient: no gradient into x.

    Returns:
        ``[..., K]`` or ``[B, *space, K]``, in the dtype of x.

    Raises:
        ValueError: if the shapes do not fit; TypeError: if an array is not floating.

    >>> import jax.numpy as jnp
    >>> filter_responses(jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 5)), strides=2).shape
    (4, 4, 4, 5)

    Reference: arXiv 2001.01275, section 3.
    """
    x, kernel = _checks.floating("x", x), _checks.floating("kernel", kernel)
    rank = kernel.ndim - 2
    fits = rank == 0 or x.ndim == kernel.ndim
    if rank < 0 or x.ndim < 1 or not fits or x.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            "kernel must be [D, K] with x [..., D], or [*window, I, K] with x [B, *space, I]; got "
            f"kernel {kernel.shape} and x {x.shape}"
        )
    several = [strides] if np.ndim(strides) == 0 else list(strides)  # type: ignore[arg-type]
    several = [_checks.count("strides", step, at_least=1) for step in several]
    if stop_input_gradient:
        x = lax.stop_gradient(x)
    kernel = kernel.astype(x.dtype)
    # Written as layers write them, so that compilers see the same product twice and keep one.
    if rank == 0:
        return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    steps = several * rank if np.ndim(strides) == 0 else several
    if len(steps) != rank:
        raise ValueError(f"strides must be one, or one for each of {rank} axes, got {strides!r}")
    space = "XYZWVU"[:rank]
    layout = f"N{space}C", f"{space}IO", f"N{space}C"
    return lax.conv_general_dilated(x, kernel, steps, padding, dimension_numbers=layout)


def sign_correlation(
    y: jax.Array,
    *,
    sharpness: float | jax.Array = 10.0,
    center: bool = False,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """How often the responses of two filters agree in sign: 1 always, 0 by chance, -1 never.

    V = UᵀU with U_i = S_i/‖S_i‖ and S = tanh(sharpness·y). The angle it stands for, if the inputs
    have no preferred direction, is π(1 - V)/2, with a standard error of √((1 - V²)/B) in V.

    Args:
        y: ``[B, K]``, see :func:`filter_responses`; further leading axes (positions of a
            convolution, points of a cloud) count as samples.
        sharpness: of the soft sign, > 0; a traced one that is not gives NaN.
        center: subtract the mean response of each filter first.
        axis_name: of the devices that share the batch, whose responses count together.

    Returns:
        ``[K, K]`` in the dtype of y, ones on the diagonal. A filter that never responds (or so
        weakly that float32 squares leave the range, |sharpness·y| < 3e-16) has no sign: its row and
        column are 0, the diagonal too, and it gets no gradient.

    Raises:
        ValueError: if y has no batch axis or ``sharpness`` ≤ 0; TypeError: if y is not floating.

    >>> import jax.numpy as jnp
    >>> y = jnp.array([[1.0, -2.0, 3.0], [-1.0, 2.0, 4.0], [2.0, -1.0, -5.0], [-2.0, 4.0, -1.0]])
    >>> print(sign_correlation(y).round(3))
    [[ 1. -1.  0.]
     [-1.  1. -0.]
     [ 0. -0.  1.]]

    Reference: arXiv 2001.01275, section 3; https://kexue.fm/archives/7169.
    """
    signs, samples = _signs(y, sharpness, center, axis_name)
    products = gram(signs)
    if axis_name is not None:
        products = lax.psum(products, axis_name)
    # UᵀU is SᵀS over the lengths, whose squares stand on its diagonal.
    lengths = jnp.diagonal(products)
    by_column = _over_length(products, lengths[None], samples)
    correlation = _over_length(by_column, lengths[:, None], samples)
    return correlation.astype(jnp.result_type(y))


def self_orthogonality(
    y: jax.Array,
    *,
    sharpness: float | jax.Array = 10.0,
    mean_weight: float | jax.Array = 100.0,
    square_weight: float | jax.Array = 1.0,
    reduction: Literal["sum", "mean"] = "sum",
    center: bool = False,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """The self-orthogonality loss of one layer, R of the module docstring.

    R = mean_weight·(Σ_{i≠j} V_ij)² + square_weight·Σ_{i≠j} V_ij², or, with ``reduction="mean"``,
    mean_weight·(mean V)² + square_weight·mean V² over the pairs i ≠ j.

    The first term moves the mean of the angles to 90° and nothing else; the second alone makes all
    of them 90°. Where B is the smaller side the K × K matrix is never formed.

    Args:
        y: ``[B, K]``, see :func:`filter_responses`; further leading axes count as samples.
        sharpness: of the soft sign, > 0.
        mean_weight: λ₁ of the source, which takes 100.
        square_weight: λ₂ of the source, which takes 1.
        reduction: ``"sum"`` is the source's formula; ``"mean"`` does not grow with the width.
        center: subtract the mean response of each filter first.
        axis_name: of the devices that share the batch: V is then that of the global batch on each.

    Returns:
        A scalar in at least float32; 0 for one filter, or without samples.

    Raises:
        ValueError: if y has no batch axis, or an option is out of its range; TypeError: if y is
            not floating.

    >>> import jax, jax.numpy as jnp
    >>> x, kernel = jax.random.normal(jax.random.key(0), (64, 8)), jnp.eye(8)
    >>> y = filter_responses(x, kernel, stop_input_gradient=True)
    >>> losses = [self_orthogonality(y, reduction=reduction) for reduction in ("sum", "mean")]
    >>> [round(float(loss), 3) for loss in losses]
    [11.463, 0.024]

    Reference: arXiv 2001.01275, section 3; https://kexue.fm/archives/7169, formula 7.
    """
    mean_weight = _checks.number("mean_weight", mean_weight, at_least=0)
    square_weight = _checks.number("square_weight", square_weight, at_least=0)
    _checks.choice("reduction", reduction, ("sum", "mean"))
    signs = _unit_signs(y, sharpness, center, axis_name)
    total, squares = pair_sums(signs, axis_name)  # of V = sign_correlation(y), V itself not formed
    if reduction == "mean":
        filters = signs.shape[-1]
        pairs = max(filters * (filters - 1), 1)
        total, squares = total / pairs, squares / pairs
    return mean_weight * total**2 + square_weight * squares


def _unit_signs(
    y: jax.Array, sharpness: float | jax.Array, center: bool, axis_name: AxisName | None
) -> jax.Array:
    """U ``[B, K]``: soft signs, each column of length 1 over the full batch, or of zeros."""
    signs, samples = _signs(y, sharpness, center, axis_name)
    return _over_length(signs, _over_batch(signs**2, axis_name), samples)


def _signs(
    y: jax.Array, sharpness: float | jax.Array, center: bool, axis_name: AxisName | None
) -> tuple[jax.Array, int]:
    """S ``[B, K]`` and how many samples all devices have."""
    sharpness = _checks.number("sharpness", sharpness, above=0)
    _, wide = _checks.widened("y", y)
    if wide.ndim < 2:
        raise ValueError(
            f"y must be [B, K], responses of K filters to B samples, got shape {wide.shape}"
        )
    wide = wide.reshape(math.prod(wide.shape[:-1]), wide.shape[-1])
    samples = wide.shape[0] * (1 if axis_name is None else lax.axis_size(axis_name))
    if center:
        wide = wide - _over_batch(wide / max(samples, 1), axis_name)
    return jnp.tanh(jnp.asarray(sharpness, wide.dtype) * wide), samples


def _over_batch(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """The sums of columns."""
    sums = jnp.sum(x, axis=0, keepdims=True)
    return sums if axis_name is None else lax.psum(sums, axis_name)


def _over_length(x: jax.Array, squares: jax.Array, samples: int) -> jax.Array:
    """x/√squares, or 0 where the filter does not respond."""
    # Squares below the smallest normal number are lost; here they are less than a rounding.
    info = jnp.finfo(squares.dtype)
    responds = ~(squares <= samples * info.tiny / info.eps)  # not >: NaN must stay NaN
    return jnp.where(responds, x / jnp.sqrt(jnp.where(responds, squares, 1)), 0)
