"""What only XLA's CPU compiler needs: other forms of plain operations, each with its reason.

Every function equals the plain operation that its docstring names, and says which benchmark row
shows that it earns its place.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def largest(x: jax.Array, count: int) -> jax.Array:
    """The ``count`` largest entries of the first axis, in falling order.

    Where only a slice of the result of ``lax.top_k`` is used, XLA sorts all entries; a barrier
    keeps the top-k. Row: ``smooth.soft_top_k sigmoid/few`` (0.04 ms instead of 1.8 ms on JAX
    0.10.2, instead of 4 ms or more on JAX 0.12, for the 11 largest of 10,000). XLA's CPU compiler
    takes one short column after another; a network compares all of them at once. Row:
    ``smooth.soft_top_k sigmoid/experts`` (this part takes 4 times as long without it).
    """

    def by_library(x: jax.Array) -> jax.Array:
        found = lax.optimization_barrier(lax.top_k(jnp.moveaxis(x, 0, -1), count)[0])
        return jnp.moveaxis(found, -1, 0)

    if len(x) > 128 or x[0].size < 256:
        return by_library(x)
    by_network = functools.partial(_largest_by_network, count=count)
    return lax.platform_dependent(x, cpu=by_network, default=by_library)


def _largest_by_network(x: jax.Array, count: int) -> jax.Array:
    """Sorts blocks of ``count`` entries or a few more, then merges them in pairs, halving each."""
    size = 1 << (count - 1).bit_length()
    blocks = 1 << (-(-len(x) // size) - 1).bit_length()
    fill = [(0, blocks * size - len(x))] + [(0, 0)] * (x.ndim - 1)
    x = jnp.pad(x, fill, constant_values=-jnp.inf).reshape(blocks, size, *x.shape[1:])

    def exchange(x: jax.Array, width: int, step: int) -> jax.Array:
        """The larger first, of entries that face each other (-1) or stand in the same place (1)."""
        pairs = x.reshape(-1, 2, width // 2, *x.shape[2:])
        left, right = pairs[:, 0], pairs[:, 1, ::step]
        both = jnp.maximum(left, right), jnp.minimum(left, right)[:, ::step]
        return jnp.stack(both, axis=1).reshape(x.shape)

    def merge(x: jax.Array, width: int) -> jax.Array:
        while width > 1:
            x, width = exchange(x, width, 1), width // 2
        return x

    width = 2
    while width <= size:
        x = merge(exchange(x, width, -1), width // 2)
        width *= 2
    while len(x) > 1:
        left, right = x[: len(x) // 2], x[len(x) // 2 :]
        x = merge(jnp.maximum(left, right[:, ::-1]), size)
    return x[0, :count]


def convolution(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """``lax.conv_general_dilated`` of NHWC images with "SAME" padding; on a CPU by products.

    XLA's CPU compiler has slow convolutions inside loops, and every chain of samples is a loop.
    Row: ``energy.langevin chain`` (0.13 s instead of 0.66 s on JAX 0.10.2, 0.06 s instead of 0.47 s
    on JAX 0.12, for 10 steps of 64 images).

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


@functools.partial(jax.jit, static_argnames=("kind", "axis", "reverse"))
def running(kind: str, x: jax.Array, *, axis: int, reverse: bool) -> jax.Array:
    """``lax.cumsum(x)`` (kind "sum") or ``lax.cumlogsumexp(x)``; on a CPU one entry after another.

    XLA's CPU compiler makes a tree of small kernels of a parallel prefix sum, which also needs a
    running maximum to be monotone. Rows: ``ordered.cumax/tall`` (twice as long without it),
    ``ordered.log_cumax/tall`` (40 times).
    """
    add, parallel = {
        "sum": (jnp.add, lax.cumsum),
        "logsumexp": (jnp.logaddexp, lax.cumlogsumexp),
    }[kind]

    def serial(x: jax.Array) -> jax.Array:
        def step(total: jax.Array, entry: jax.Array) -> tuple[jax.Array, jax.Array]:
            total = add(total, entry)
            return total, total

        entries = jnp.moveaxis(x, axis, 0)
        first, rest = (entries[-1], entries[:-1]) if reverse else (entries[0], entries[1:])
        _, sums = lax.scan(step, first, rest, reverse=reverse)
        parts = [sums, first[None]] if reverse else [first[None], sums]
        return jnp.moveaxis(jnp.concatenate(parts), 0, axis)

    return lax.platform_dependent(
        x, cpu=serial, default=functools.partial(parallel, axis=axis, reverse=reverse)
    )


def apart(x: jax.Array, *, like: DTypeLike) -> jax.Array:
    """``x``, which XLA does not merge with what surrounds it if ``like`` is a narrow float.

    XLA's CPU compiler merges a transpose with a product of narrow floats, and then has no code for
    their wide sum (an error on 0.10 and 0.12): ``zoo.ordered.on_lstm`` would fail in bfloat16.
    """
    return x if jnp.finfo(like).bits >= 32 else lax.optimization_barrier(x)


def depthwise_convolution(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """``lax.conv_general_dilated`` of each channel by itself, with "SAME" padding.

    XLA's CPU compiler has slow grouped convolutions; this sums shifted images. No row: it is
    EfficientNet-Lite0 in ``experiments.image_captioning`` that takes 5 times as long without it.

    Args:
        x: ``[B, H, W, C]``.
        kernel: ``[h, w, 1, C]``.
        stride: of both axes.

    Returns:
        ``[B, ⌈H/stride⌉, ⌈W/stride⌉, C]``.
    """

    def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
        sizes, strides = kernel.shape[:2], (stride, stride)
        edges = lax.padtype_to_pads(x.shape[1:3], sizes, strides, "SAME")
        height, width = ((-(-length // stride) - 1) * stride + 1 for length in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), *edges, (0, 0)))
        products = [
            x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j][None, None]
            for i, j in itertools.product(*map(range, sizes))
        ]
        return functools.reduce(jnp.add, products)

    def library(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )

    return lax.platform_dependent(x, kernel, cpu=shifted, default=library)


def kept(z: jax.Array, keep: jax.Array, loss: jax.Array) -> jax.Array:
    """keep·z for loss = 1 - keep: near 1 keep has no digits of the loss, and near 0 the reverse."""
    return jnp.where(loss < 0.5, z - loss * z, keep * z)


def recurrence(
    keep: jax.Array, loss: jax.Array, x: jax.Array, *, reverse: bool = False
) -> jax.Array:
    """z_i = x_i + keep_i z_{i-1} along the first axis, keep = 1 - loss; serial on a CPU.

    XLA's CPU compiler makes one tight loop of it, and a tree of small kernels of a parallel prefix.
    Row: ``smooth.soft_sort gradient/long`` (this part takes 3 times as long without it, and
    compiling it 20 times).
    """

    def serial(*entries: jax.Array) -> jax.Array:
        def step(z: jax.Array, entry: tuple) -> tuple[jax.Array, jax.Array]:
            keep, loss, x = entry
            z = kept(z, keep, loss) + x
            return z, z

        return lax.scan(step, jnp.zeros_like(x[0]), entries, reverse=reverse)[1]

    def parallel(*entries: jax.Array) -> jax.Array:
        def combine(first: tuple, second: tuple) -> tuple[jax.Array, ...]:
            keep, loss, x = second
            return keep * first[0], loss + keep * first[1], kept(first[2], keep, loss) + x

        return lax.associative_scan(combine, entries, reverse=reverse)[2]

    return lax.platform_dependent(keep, loss, x, cpu=serial, default=parallel)


def sort(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """``lax.sort(arrays, dimension=0, num_keys=1)``, unstable; faster by a network or by integers.

    XLA's CPU compiler sorts one column after another, comparison by comparison; a network compares
    all of them at once (row ``smooth.soft_sort/short``, this part: 4 times as long without it). It
    compares floats by a program, and integers in place (row ``smooth.soft_sort/long``, this part: 4
    times as long without it).
    """
    count, columns = len(arrays[0]), arrays[0][:1].size
    if 1 < count <= 128 and columns >= 256:
        return lax.platform_dependent(*arrays, cpu=_sorted_by_network, default=_sorted_by_library)
    if len(arrays) > 1:
        return _sorted_by_library(*arrays)
    return lax.platform_dependent(*arrays, cpu=_sorted_by_integers, default=_sorted_by_library)


def _sorted_by_library(*arrays: jax.Array) -> Any:
    return tuple(lax.sort(arrays, dimension=0, num_keys=1, is_stable=False))


@jax.custom_jvp
def _sorted_by_integers(x: jax.Array) -> tuple[jax.Array]:
    """By the bits of the floats, which rise with them if those of negative ones are turned round.

    Not a number is the last.
    """
    bits = jnp.dtype(f"int{8 * x.dtype.itemsize}")

    def turned(i: jax.Array) -> jax.Array:
        return i ^ ((i >> jnp.iinfo(bits).bits - 1) & jnp.iinfo(bits).max)

    keys = turned(lax.bitcast_convert_type(jnp.where(jnp.isnan(x), jnp.nan, x), bits))
    keys = lax.sort(keys, dimension=0, is_stable=False)
    return (lax.bitcast_convert_type(turned(keys), x.dtype),)


@_sorted_by_integers.defjvp
def _sorted_by_integers_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    return jax.jvp(_sorted_by_library, primals, tangents)


def _sorted_by_network(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Bitonic, with the smaller key always going up, so that the filling stays at the end."""
    count = len(arrays[0])
    size = 1 << (count - 1).bit_length()
    fill = [(0, size - count)] + [(0, 0)] * (arrays[0].ndim - 1)
    arrays = tuple(jnp.pad(a, fill, constant_values=jnp.inf) for a in arrays)

    def exchange(width: int, mirrored: bool) -> tuple[jax.Array, ...]:
        """Compares the halves of every block of this width, entry by entry."""
        blocks = [a.reshape(size // width, 2, width // 2, *a.shape[1:]) for a in arrays]
        step = -1 if mirrored else 1
        pairs = [(block[:, 0], block[:, 1, ::step]) for block in blocks]
        swap = pairs[0][1] < pairs[0][0]
        low, high = (
            [jnp.where(swap, pair[other], pair[own]) for pair in pairs]
            for own, other in ((0, 1), (1, 0))
        )
        both = (jnp.stack([a, b[:, ::step]], axis=1) for a, b in zip(low, high, strict=True))
        return tuple(pair.reshape(size, *pair.shape[3:]) for pair in both)

    width = 2
    while width <= size:
        arrays = exchange(width, mirrored=True)
        part = width // 2
        while part > 1:
            arrays = exchange(part, mirrored=False)
            part //= 2
        width *= 2
    return tuple(a[:count] for a in arrays)
