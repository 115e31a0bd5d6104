"""Turns the norms of a model into conditional ones: how a pretrained model gets a condition.

https://kexue.fm/archives/7124
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from zoo.conditional.modules import ConditionalLayerNorm, ConditionalRMSNorm

KINDS = {"LayerNorm": ConditionalLayerNorm, "RMSNorm": ConditionalRMSNorm}


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
    ``[..., D]``, as in layers made by ``nnx.vmap``, becomes a stack of conditional norms. Before a
    step is taken the model computes what it did, whatever the condition: with norms of
    ``zoo.transformer`` to the last bit, with those of Flax, which sum up in another order, to
    rounding.

    Args:
        model: any Flax NNX module; it is not changed, but shares its parameters with the result.
        condition_features: E, as for :class:`ConditionalLayerNorm`.
        hidden_features: width of every bottleneck; None: there are none.
        activation: of the bottlenecks.
        rngs: Flax's random streams; ``params`` is used, for the bottlenecks.

    Returns:
        The same model with :class:`ConditionalLayerNorm` and :class:`ConditionalRMSNorm` in it. It
        must be given conditions by its own code or by :func:`conditioned_on`.

    Raises:
        ValueError: if there is no norm, or one that does not normalise the last axis alone.

    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs))
    >>> type(conditionalize(model, 5, rngs=rngs).layers[1]).__name__
    'ConditionalLayerNorm'

    Reference: https://kexue.fm/archives/7124.
    """
    found = []

    def make(kind: Any, num_features: int, epsilon: float, key: jax.Array) -> Any:
        return kind(
            num_features,
            condition_features,
            hidden_features=hidden_features,
            activation=activation,
            epsilon=epsilon,
            rngs=nnx.Rngs(params=key),
        )

    def convert(path: tuple, node: Any) -> Any:
        names = [base.__name__ for base in type(node).__mro__]
        kind = next((KINDS[name] for name in names if name in KINDS), None)
        if kind is None:
            return node
        found.append(path)
        _check_axes(node, path)
        weights = {name: getattr(node, name, None) for name in ("scale", "bias")}
        known = [weight for weight in weights.values() if weight is not None]
        *stack, num_features = known[0].shape if known else (node.num_features,)
        build = functools.partial(make, kind, num_features, node.epsilon)
        for _ in stack:
            build = nnx.vmap(build)
        conditional = build(jax.random.split(rngs.params(), tuple(stack)))
        for name, weight in weights.items():
            if weight is not None:
                setattr(conditional, name, weight)
        return conditional

    converted = nnx.recursive_map(convert, model)
    if not found:
        raise ValueError(
            "model must hold a LayerNorm or RMSNorm to be made conditional, got "
            f"{type(model).__name__} without one"
        )
    return converted


def _check_axes(norm: Any, path: tuple) -> None:
    axes = {name: getattr(norm, name, -1) for name in ("reduction_axes", "feature_axes")}
    axes["axis_name"] = getattr(norm, "axis_name", None)
    if axes != {"reduction_axes": -1, "feature_axes": -1, "axis_name": None}:
        raise ValueError(
            f"model has a norm at {'/'.join(map(str, path))!r} that must normalise the last axis "
            f"alone, got {axes}"
        )
