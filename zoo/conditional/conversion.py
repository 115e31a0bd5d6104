"""Replaces the norms of a model by conditional ones: how a pretrained model gets a condition.

https://kexue.fm/archives/7124
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.conditional.modules import ConditionalLayerNorm, ConditionalRMSNorm

KINDS = {"LayerNorm": ConditionalLayerNorm, "RMSNorm": ConditionalRMSNorm}
# What must be so in a norm of the last axis alone; norms without these attributes are such.
LAST_AXIS = {"reduction_axes": -1, "feature_axes": -1, "axis_name": None}


def conditionalize(
    model: Any,
    condition_features: int | Sequence[int],
    *,
    hidden_features: int | None = None,
    activation: str = "swish",
    rngs: nnx.Rngs,
) -> Any:
    """A model whose LayerNorms and RMSNorms, at any depth, are conditional, with their weights.

    A norm is a module whose class, or a base of it, is called ``LayerNorm`` or ``RMSNorm``: those
    of ``zoo.transformer``, of Flax and of anyone who follows Flax. One whose parameters are stacked
    ``[..., D]``, as in layers made by ``nnx.vmap``, becomes a stack of conditional norms. Before
    the first step the model computes what it did, whatever the condition: with norms of
    ``zoo.transformer`` to the last bit, with those of Flax, which sum in another order, to
    rounding; in the dtype that it did, for any ``mask``.

    Args:
        model: any Flax NNX module; it is not changed, but shares its parameters with the result.
        condition_features: E, as for :class:`ConditionalLayerNorm`.
        hidden_features: width of every bottleneck; None: there are none.
        activation: of the bottlenecks.
        rngs: Flax's random streams; ``params`` is used, for the bottlenecks.

    Returns:
        The same model with :class:`ConditionalLayerNorm` and :class:`ConditionalRMSNorm` in it. Its
        own code or ``zoo.conditional.modules.conditioned_on`` must give them conditions.

    Raises:
        ValueError: if there is no norm, or one that does not normalise the last axis alone.

    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs))
    >>> type(conditionalize(model, 5, rngs=rngs).layers[1]).__name__
    'ConditionalLayerNorm'

    Reference: https://kexue.fm/archives/7124.
    """
    found = 0

    def convert(path: tuple, node: Any) -> Any:
        nonlocal found
        kind = next((KINDS[c.__name__] for c in type(node).__mro__ if c.__name__ in KINDS), None)
        if kind is None:
            return node
        found += 1
        axes = {name: getattr(node, name, default) for name, default in LAST_AXIS.items()}
        if axes != LAST_AXIS:
            raise ValueError(
                f"model has a norm at {'/'.join(map(str, path))!r} that must normalise the last "
                f"axis alone, got {axes}"
            )
        names = [name for name in ("scale", "bias") if getattr(node, name, None) is not None]
        *stack, features = getattr(node, names[0]).shape if names else (node.num_features,)
        make = functools.partial(
            kind,
            features,
            condition_features,
            hidden_features=hidden_features,
            activation=activation,
            epsilon=node.epsilon,
            param_dtype=getattr(node, names[0]).dtype if names else jnp.float32,
        )

        def build(key: jax.Array) -> Any:
            return make(rngs=nnx.Rngs(params=key))

        for _ in stack:
            build = nnx.vmap(build)
        conditional = build(jax.random.split(rngs.params(), tuple(stack)))
        for name in names:
            setattr(conditional, name, getattr(node, name))
        if hasattr(node, "promote_dtype"):
            conditional.promotion = node.promote_dtype, node.dtype, tuple(names)
        return conditional

    converted = nnx.recursive_map(convert, model)
    if not found:
        raise ValueError(
            "model must hold a LayerNorm or RMSNorm to be made conditional, got "
            f"{type(model).__name__} without one"
        )
    return converted
