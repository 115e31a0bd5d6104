"""The parts of a Transformer: LayerNorm, attention, feed-forward part, and a layer of them.

Values of interest are tagged (`zoo.transformer.config.TAGS`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

from zoo._checks import accumulator
from zoo.training.mesh import BATCH_AXES
from zoo.transformer.attention import attention, cached_attention, dropped_attention, rotate
from zoo.transformer.config import TransformerConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class MakeNorm(Protocol):
    """Builds a LayerNorm: called as ``norm(x)``, or ``norm(x, condition)`` if one is given."""

    def __call__(self, num_features: int, *, epsilon: float, rngs: nnx.Rngs) -> Any:
        """A module for inputs ``[..., num_features]``."""


class LayerNorm(nnx.Module):
    """(x - mean) / √(variance + epsilon) · scale + bias over the last axis, computed in float32.

    A constant row gives the bias.

    Args:
        num_features: D.
        epsilon: added to the population variance.
        rngs: unused, but part of the signature of every ``make_norm``.

    >>> LayerNorm(2, epsilon=1e-12)(jnp.array([[1.0, 3.0]]))
    Array([[-1.,  1.]], dtype=float32)
    """

    def __init__(self, num_features: int, *, epsilon: float = 1e-12, rngs: Any = None):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(num_features))
        self.bias = nnx.Param(jnp.zeros(num_features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., D]`` to ``[..., D]``."""
        wide = x.astype(accumulator(x.dtype))
        # Centred before squaring, as E[x²] - E[x]² loses all digits when the mean is large; and
        # twice, as the rounding of a large mean outweighs a small spread. The first centre may be
        # any number: for equal numbers it is theirs, which leaves exact zeros.
        centre = lax.stop_gradient(_centre(wide))
        centred = wide - centre
        centred -= centred.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normal = centred * lax.rsqrt(variance + self.epsilon)
        return (align(self.scale, x) * normal + align(self.bias, x)).astype(x.dtype)


def _centre(x: jax.Array) -> jax.Array:
    """The rounded mean over the last axis; of equal numbers that number."""
    mean, first = x.mean(axis=-1, keepdims=True), x[..., :1]
    return jnp.where(jnp.all(x == first, axis=-1, keepdims=True), first, mean)


class KeyValueCache(NamedTuple):
    """Keys and values of earlier tokens, in all layers or (without the axis L) in one."""

    keys: jax.Array  # [L, B, N, H, S], room for S positions
    values: jax.Array  # [L, B, N, S, H]
    length: jax.Array  # [L] int32, number of earlier tokens


class PaddedCache(NamedTuple):
    """A cache for rows some places of which are padding."""

    layers: Any  # a KeyValueCache, or one per layer
    mask: jax.Array  # [B, S] bool, True at tokens


class Attention(nnx.Module):
    """Multi-head self-attention with its four projections."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        heads = (config.num_heads, config.features // config.num_heads)
        draw = make_initializer(config, rngs)
        self.query_kernel = nnx.Param(draw(config.features, *heads))
        self.query_bias = nnx.Param(jnp.zeros(heads))
        self.key_kernel = nnx.Param(draw(config.features, *heads))
        self.key_bias = nnx.Param(jnp.zeros(heads))
        self.value_kernel = nnx.Param(draw(config.features, *heads))
        self.value_bias = nnx.Param(jnp.zeros(heads))
        self.output_kernel = nnx.Param(draw(*heads, config.features))
        self.output_bias = nnx.Param(jnp.zeros(config.features))

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        *,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        angles: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValueCache | None]:
        """``[B, T, D]`` to ``[B, T, D]``, and the cache extended by T tokens."""
        query, key, value = (
            product(x, kernel) + align(bias, x, rank=4)
            for kernel, bias in (
                (self.query_kernel, self.query_bias),
                (self.key_kernel, self.key_bias),
                (self.value_kernel, self.value_bias),
            )
        )
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        implementation = self.config.attention_implementation
        if cache is None and dropout_key is not None:
            rate = self.config.attention_dropout
            y = dropped_attention(query, key, value, mask, dropout_key, rate=rate, causal=causal)
        elif cache is None:
            y = attention(query, key, value, mask, causal=causal, implementation=implementation)
        else:
            keys, values = (
                lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), cache.length, axis)
                for old, new, axis in (
                    (cache.keys, jnp.moveaxis(key, 1, 3), 3),
                    (cache.values, jnp.moveaxis(value, 1, 2), 2),
                )
            )
            cache = KeyValueCache(keys, values, cache.length + x.shape[1])
            y = cached_attention(query, keys, values, mask, implementation=implementation)
        return product(y, self.output_kernel, axes=2) + align(self.output_bias, x), cache


class FeedForward(nnx.Module):
    """contract(activation(expand(x)))."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.activation = config.activation
        draw = make_initializer(config, rngs)
        self.expand_kernel = nnx.Param(draw(config.features, config.feedforward_features))
        self.expand_bias = nnx.Param(jnp.zeros(config.feedforward_features))
        self.contract_kernel = nnx.Param(draw(config.feedforward_features, config.features))
        self.contract_bias = nnx.Param(jnp.zeros(config.features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, D]`` to ``[B, T, D]``."""
        y = product(x, self.expand_kernel) + align(self.expand_bias, x)
        y = ACTIVATIONS[self.activation](y)
        return product(y, self.contract_kernel) + align(self.contract_bias, x)


class Layer(nnx.Module):
    """Attention and feed-forward part, each with its residual connection and LayerNorm."""

    def __init__(self, config: TransformerConfig, make_norm: MakeNorm, *, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = make_norm(config.features, epsilon=config.epsilon, rngs=rngs)
        self.feedforward = FeedForward(config, rngs=rngs)
        self.feedforward_norm = make_norm(config.features, epsilon=config.epsilon, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        condition: jax.Array | None,
        key: jax.Array | None,
        cache: KeyValueCache | None,
        *,
        causal: bool,
        angles: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValueCache | None]:
        """``[B, T, D]`` to ``[B, T, D]``, and the cache."""
        pre = self.config.norm_position == "pre"
        drops = bool(self.config.attention_dropout)
        keys = (None,) * 3 if key is None else (*jax.random.split(key, 2 + drops), None)[:3]

        def add(x: jax.Array, y: jax.Array, norm: Any, key: jax.Array | None) -> jax.Array:
            y = dropout(y, self.config.dropout, key)
            return x + y if pre else apply_norm(norm, x + y, condition)

        before = apply_norm(self.attention_norm, x, condition) if pre else x
        y, cache = self.attention(
            before, mask, causal=causal, cache=cache, angles=angles, dropout_key=keys[2]
        )
        x = add(x, checkpoint_name(y, "attention"), self.attention_norm, keys[0])
        before = apply_norm(self.feedforward_norm, x, condition) if pre else x
        y = checkpoint_name(self.feedforward(before), "feedforward")
        x = add(x, y, self.feedforward_norm, keys[1])
        return checkpoint_name(constrain_rows(x), "hidden"), cache


def make_initializer(config: TransformerConfig, rngs: nnx.Rngs) -> Callable[..., jax.Array]:
    """A function from a shape to a kernel drawn from BERT's truncated normal."""
    draw = jax.nn.initializers.truncated_normal(config.initial_scale, lower=-2, upper=2)
    return lambda *shape: draw(rngs.params(), shape, jnp.float32)


def product(x: jax.Array, kernel: nnx.Param, *, axes: int = 1) -> jax.Array:
    """Sums over the last axes of x, the first of the kernel: ``[..., *I]`` to ``[..., *O]``.

    As one product of two matrices: with more axes, XLA's gradient of the kernel takes two to four
    times as long on a CPU.
    """
    value = kernel[...]
    rows, inner = x.shape[:-axes], math.prod(x.shape[-axes:])
    y = x.reshape(math.prod(rows), inner) @ value.reshape(inner, -1)
    return y.reshape(*rows, *value.shape[axes:])


def align(parameter: nnx.Param, x: jax.Array, rank: int | None = None) -> jax.Array:
    """Adds leading axes of size 1 to a parameter, up to the rank of x."""
    value = parameter[...]
    return value[(None,) * ((rank or x.ndim) - value.ndim)]


def look_up(table: nnx.Param, ids: Any) -> jax.Array:
    """Rows of a table; NaN for an id that it does not have."""
    return table[...].at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def apply_norm(norm: Any, x: jax.Array, condition: jax.Array | None) -> jax.Array:
    """Calls a norm with the condition, if there is one."""
    return norm(x) if condition is None else norm(x, condition)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout; without a key the identity."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def constrain_rows(x: jax.Array) -> jax.Array:
    """Keeps the batch axis split under a training mesh; else does nothing.

    Without this, the compiler may gather activations instead of sharded parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(types.get(axis) != AxisType.Auto for axis in BATCH_AXES):
        return x
    return lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))
