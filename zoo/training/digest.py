"""A checksum of arrays, computed on the devices that hold them.

For an array of 32-bit words w_i, in row-major order:

    checksum = Σ_i (2·i + 1)·w_i  modulo 2^32

Every change of a single word is visible, since its factor is odd, and the factors differ by place.
Sums of integers have no order: the result is the same however the array is split over devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo._paths import path_name


def is_key(leaf: Any) -> bool:
    """Whether a leaf, anything with a dtype, is an array of typed keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(tree: Any) -> dict[str, dict[str, Any]]:
    """Slash-joined name of each array -> shape, dtype, checksum; for keys also the implementation.

    >>> describe({"bias": jnp.ones(2, jnp.uint32)})
    {'bias': {'shape': [2], 'dtype': 'uint32', 'checksum': 4}}
    """
    named = [(path_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
    values = np.asarray(_checksums([leaf for _, leaf in named])).tolist()
    described: dict[str, dict[str, Any]] = {}
    for (name, leaf), value in zip(named, values, strict=True):
        described[name] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": value}
        if is_key(leaf):
            described[name]["implementation"] = str(jax.random.key_impl(leaf))
    return described


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([checksum(leaf) for leaf in leaves])


def checksum(leaf: jax.Array) -> jax.Array:
    """The checksum, uint32 ``[]``, of one array of any shape, dtype and sharding.

    >>> int(checksum(jnp.array([[1, 2], [3, 4]])))  # 1·1 + 3·2 + 5·3 + 7·4
    50
    """
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype.itemsize == 8:
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    elif jnp.issubdtype(leaf.dtype, jnp.floating):
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    else:
        words = leaf.astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):  # no reshape: that would move split arrays about
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)
