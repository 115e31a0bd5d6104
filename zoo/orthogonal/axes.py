"""Which axes of a kernel count its filters, and the kernel as a matrix with a filter a column.

    kernel [*window, I, K]  ->  W [D, K],   D = window · I entries of each of the K filters

The layouts of kernels differ between layers and libraries, and a penalty on the wrong matrix is a
different penalty: the PyTorch code of SRIP (https://github.com/VITA-Group/Orthogonality-in-CNNs)
takes the Gram matrix over the entries, its Keras code the one over the filters. So the axes are
always stated.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class KernelAxes(NamedTuple):
    """The roles of a kernel's axes; those named in neither field are the entries of a filter.

    The default fits what Flax calls a kernel: dense ``[D, K]``, convolutions ``[*window, I, K]``.
    Others: PyTorch's ``[K, I, *window]`` is ``KernelAxes(filters=0)``; attention's
    ``[D, heads, K]`` is ``KernelAxes(filters=(1, 2))``, or ``KernelAxes(batch=1)`` to compare
    within each head only; layers stacked by a scan, ``[L, D, K]``, are ``KernelAxes(batch=0)``.

    >>> import jax.numpy as jnp
    >>> as_matrix(jnp.ones((3, 3, 8, 16)), KernelAxes(), "kernel").shape
    (72, 16)
    >>> as_matrix(jnp.ones((4, 8, 2, 5)), KernelAxes(filters=(1, 3), batch=0), "kernel").shape
    (4, 2, 40)
    """

    filters: int | Sequence[int] = -1  # their product is K
    batch: int | Sequence[int] = ()  # separate kernels: nothing is compared across these axes


def axis_roles(shape: tuple[int, ...], axes: KernelAxes, name: str) -> tuple[tuple[int, ...], ...]:
    """The axes of each role, in the order batch, entries, filters.

    Raises:
        ValueError: if an axis is missing or has two roles, or no axis is left for the entries.
    """
    if not isinstance(axes, KernelAxes):
        raise TypeError(f"axes must be a KernelAxes, got {axes!r}")
    batch, filters = ((a,) if isinstance(a, int) else tuple(a) for a in (axes.batch, axes.filters))
    named = [*batch, *filters]
    rank = len(shape)
    taken = {axis % rank for axis in named if -rank <= axis < rank}
    if len(taken) != len(named) or not filters or len(taken) == rank:
        raise ValueError(
            f"{name} must have the axes of {axes}, each once, and at least one more for the "
            f"entries of a filter; got shape {shape}. Kernels of rank 1, such as biases and "
            "scales, have no filters: mask them out, or say which axes count the filters"
        )
    entries = tuple(axis for axis in range(rank) if axis not in taken)
    return tuple(axis % rank for axis in batch), entries, tuple(axis % rank for axis in filters)


def as_matrix(kernel: jax.Array, axes: KernelAxes, name: str) -> jax.Array:
    """The kernel as ``[*batch, D, K]`` in at least float32.

    Raises:
        TypeError: if the kernel is not floating; ValueError: if the axes do not fit.
    """
    kernel = widen(kernel, name)
    roles = axis_roles(kernel.shape, axes, name)
    batch, *sizes = (tuple(kernel.shape[axis] for axis in role) for role in roles)
    order = [axis for role in roles for axis in role]
    return kernel.transpose(order).reshape(*batch, *map(math.prod, sizes))


def floating(x: jax.Array, name: str) -> jax.Array:
    """``x`` as an array.

    Raises:
        TypeError: if it is not floating.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a floating-point array, got {x.dtype}; "
            "convert it first, for example x.astype(jnp.float32)"
        )
    return x


def widen(x: jax.Array, name: str) -> jax.Array:
    """``x`` in at least float32: squares and their sums leave the range of float16.

    Raises:
        TypeError: if it is not floating.
    """
    x = floating(x, name)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
