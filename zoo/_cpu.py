"""What only XLA's CPU compiler needs: other forms of plain operations, each with its reason.

Every function equals the plain operation that its docstring names, and says which benchmark row
shows that it earns its place.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax


def largest(x: jax.Array, count: int) -> jax.Array:
    """``lax.top_k(x, count)[0]``: the largest entries of the last axis, in falling order.

    Where only a slice of the result is used, XLA sorts all entries; a barrier keeps the top-k.
    Row: ``smooth.soft_top_k sigmoid/few`` (2.6 ms instead of 0.07 ms for 10 of 10,000).
    """
    return lax.optimization_barrier(lax.top_k(x, count)[0])


def convolution(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """``lax.conv_general_dilated`` of NHWC images with "SAME" padding; on a CPU by products.

    XLA's CPU compiler has slow convolutions inside loops, and every chain of samples is a loop.
    Row: ``energy.langevin chain`` (PyTorch is three times as fast without it).

    Args:
        x: ``[B, H, W, I]``.
        kernel: ``[h, w, I, O]``.
        stride: of both axes.

    Returns:
        ``[B, ⌈H/stride⌉, ⌈W/stride⌉, O]``.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_convolution_by_products, stride=stride),
        default=functools.partial(_library_convolution, stride=stride),
    )


def _library_convolution(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolution_by_products(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """Sums over the places of the kernel: the image shifted there times the matrix there.

    A stride is first traded for channels: each square of stride² pixels becomes one pixel.
    """
    sizes, lengths = x.shape[1:3], kernel.shape[:2]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    edges = [_edges(*pair, stride) for pair in zip(sizes, lengths, strict=True)]
    fill = [(0, -length % stride) for length in lengths]
    x = _space_to_depth(jnp.pad(x, ((0, 0), *edges, (0, 0))), stride)
    kernel = jnp.moveaxis(jnp.pad(kernel, (*fill, (0, 0), (0, 0))), -1, 0)
    kernel = jnp.moveaxis(_space_to_depth(kernel, stride), 0, -1)
    height, width = (-(-size // stride) for size in sizes)
    products = [
        jnp.matmul(x[:, i : i + height, j : j + width], kernel[i, j], preferred_element_type=wide)
        for i, j in itertools.product(*map(range, kernel.shape[:2]))
    ]
    return functools.reduce(jnp.add, products).astype(x.dtype)


def _edges(size: int, length: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis: "SAME" padding, extended to complete strides."""
    out, places = -(-size // stride), -(-length // stride)
    before = max((out - 1) * stride + length - size, 0) // 2
    return before, (out + places - 1) * stride - size - before


def _space_to_depth(x: jax.Array, side: int) -> jax.Array:
    """``[B, H, W, I]`` to ``[B, H/side, W/side, side²·I]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
    return x.reshape(batch, height // side, width // side, side * side * channels)


def outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x * y`` for ``[B, 1, D]`` and ``[B, T, 1]``, as a matrix product on a CPU.

    In a gradient it becomes a sum over D, before which XLA's CPU compiler repeats x for every T.
    Row: ``conditional.conditional_layer_norm gradient`` (1.75 times as long without it).
    """
    return lax.platform_dependent(
        x,
        y,
        cpu=lambda x, y: jnp.einsum("bd,bt->btd", x[:, 0], y[..., 0]),
        default=lambda x, y: x * y,
    )
