"""Classifier-free guidance: one model, with its condition and without, and what lies beyond.

    training    f(x, c), with c = null for a random share of the samples
    evaluation  f(x, null) + scale · (f(x, c) - f(x, null))

A scale of 1 is the conditional model, 0 the unconditional one; more exaggerates what the condition
changes. (Ho and Salimans write w = scale - 1.)

Source: Jonathan Ho, Tim Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo._checks import accumulator, number
from zoo.conditional.layer_norm import Condition, drop_condition
from zoo.conditional.modules import conditioned_on


def guided(conditional: Any, unconditional: Any, *, scale: float | jax.Array) -> Any:
    """From one output of a model towards another: u + scale · (c - u).

    Args:
        conditional: c, an array or a tree of arrays.
        unconditional: u, likewise.
        scale: 0 gives u, 1 gives c; any finite number, a traced one that is not gives NaN.

    Returns:
        The tree, computed in at least float32, in the dtypes of c; -inf where either is, as in
        logits of what is excluded. Leaves that are not floating are those of c.

    Raises:
        ValueError: if shapes differ, or the scale is not finite.

    >>> guided(jnp.array([1.0, 3.0]), jnp.array([1.0, 2.0]), scale=2.0)
    Array([1., 4.], dtype=float32)

    Reference: arXiv 2207.12598, equation 6.
    """
    scale = number("scale", scale)

    def leaf(c: jax.Array, u: jax.Array) -> jax.Array:
        if c.shape != u.shape:
            raise ValueError(f"both outputs must have one shape, got {c.shape} and {u.shape}")
        if not jnp.issubdtype(c.dtype, jnp.floating):
            return c
        excluded = jnp.isneginf(c) | jnp.isneginf(u)
        wide_c, wide_u = (jnp.where(excluded, 0, x).astype(accumulator(c.dtype)) for x in (c, u))
        y = wide_u + jnp.asarray(scale, wide_u.dtype) * (wide_c - wide_u)
        return jnp.where(excluded, -jnp.inf, y).astype(c.dtype)

    return jax.tree.map(leaf, conditional, unconditional)


def _constant(value: Any) -> Any:
    """A number or an array as Python numbers, which the structure of a module can hold."""
    array = np.asarray(value)
    return tuple(map(_constant, array)) if array.ndim else array.item()


class ClassifierFreeGuidance(nnx.Module):
    """Any conditional module with classifier-free guidance: :func:`drop_condition`, :func:`guided`.

    In training mode (``train()``, as of Dropout) each sample loses its condition with a probability
    ``rate``; in evaluation mode (``eval()``) the module is called with the condition and without.

    Args:
        module: a Flax NNX module that is called with a condition: ``module(*inputs,
            condition=...)``.
        rate: probability of the null condition in training, in [0, 1].
        scale: of evaluation, 1 if it is not given: then there is one call.
        null: the null condition, as for :func:`drop_condition`; ``nnx.Param`` if it is learned.
            None: 0.
        keyword: by which the module takes its condition, such as ``"labels"``; None: by
            ``zoo.conditional.modules.conditioned_on``, as the models of Flax after
            :func:`conditionalize`.
        rngs: Flax's random streams; ``dropout`` is used.

    Raises:
        ValueError: if the rate is not in [0, 1] or the scale not finite.

    >>> from zoo.conditional import ConditionalLayerNorm
    >>> norm = ConditionalLayerNorm(2, 3, rngs=nnx.Rngs(0))
    >>> norm.bias_kernel[...] = jnp.ones((3, 2))
    >>> model = ClassifierFreeGuidance(norm, rate=0.1, rngs=nnx.Rngs(1))
    >>> model.eval()
    >>> model(jnp.array([[1.0, 3.0]]), condition=jnp.ones((1, 3)), scale=2.0)
    Array([[5., 7.]], dtype=float32)

    Reference: arXiv 2207.12598, algorithms 1 and 2.
    """

    def __init__(
        self,
        module: Any,
        *,
        rate: float = 0.1,
        scale: float = 1.0,
        null: Any = None,
        keyword: str | None = "condition",
        rngs: nnx.Rngs,
    ):
        self.module = module
        self.rate = number("rate", rate, at_least=0, at_most=1)
        self.scale = number("scale", scale)
        self.several = isinstance(null, (tuple, list))
        nulls = list(null) if self.several else [] if null is None else [null]
        names = [f"null_{i}" for i in range(len(nulls))] if self.several else ["null"]
        self.nulls = tuple(names[: len(nulls)])
        for name, value in zip(self.nulls, nulls, strict=True):
            # What is not learned is a constant of the module.
            setattr(self, name, value if isinstance(value, nnx.Variable) else _constant(value))
        self.keyword = keyword
        self.deterministic = False
        self.stream = rngs.dropout.fork()

    def __call__(
        self,
        *inputs: Any,
        condition: Condition,
        scale: float | jax.Array | None = None,
        **options: Any,
    ) -> Any:
        """The output of the module; ``scale`` is that of evaluation, in place of the module's."""
        values = [getattr(self, name) for name in self.nulls]
        nulls = [n[...] if isinstance(n, nnx.Variable) else n for n in values]
        null = nulls if self.several else nulls[0] if nulls else None
        if not self.deterministic:
            key = self.stream()
            dropped = drop_condition(key, condition, rate=self.rate, null=null)
            return self._run(inputs, options, dropped)
        scale = number("scale", self.scale if scale is None else scale)
        # A rate of 1 drops every condition, whatever the key.
        nothing = drop_condition(jax.random.key(0), condition, rate=1.0, null=null)
        if isinstance(scale, float) and scale in (0, 1):
            return self._run(inputs, options, condition if scale else nothing)
        branches = [self._run(inputs, options, c) for c in (condition, nothing)]
        return guided(*branches, scale=scale)

    def _run(self, inputs: tuple, options: dict[str, Any], condition: Any) -> Any:
        if self.keyword is not None:
            return self.module(*inputs, **options, **{self.keyword: condition})
        with conditioned_on(condition):
            return self.module(*inputs, **options)
