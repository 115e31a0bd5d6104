"""Conditional norms as modules, and where their condition comes from."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo._checks import choice, count, integers, number
from zoo.conditional.layer_norm import (
    Condition,
    affine,
    align_conditions,
    conditional_gate,
    conditional_layer_norm,
    conditional_rms_norm,
)

# Functions with f(0) = 0, which keep the null condition 0.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swish": jax.nn.swish,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
HIDDEN_SCALE = 0.02  # a product of two matrices that both start at 0 would never move

_AMBIENT: contextvars.ContextVar[Condition | None] = contextvars.ContextVar("condition")


class _ConditionalNorm(nnx.Module):
    """The parameters of both norms: the module owns them, the public function computes."""

    has_bias = False

    def __init__(
        self,
        num_features: int,
        condition_features: int | Sequence[int],
        *,
        hidden_features: int | None = None,
        activation: str = "swish",
        epsilon: float = 1e-12,
        gate: float | None = None,
        param_dtype: Any = float,
        rngs: nnx.Rngs,
    ):
        num_features = count("num_features", num_features, at_least=1)
        several = isinstance(condition_features, Sequence)
        sizes: Any = condition_features if several else (condition_features,)
        self.condition_features = tuple(
            count("condition_features", size, at_least=1) for size in sizes or (0,)
        )
        choice("activation", activation, list(ACTIVATIONS))
        self.activation = activation
        self.epsilon = number("epsilon", epsilon, above=0)
        # How a norm of Flax chooses the dtype that it computes in, where this one replaces it.
        self.promotion: tuple[Callable, Any, tuple[str, ...]] | None = None
        width = sum(self.condition_features)
        if hidden_features is not None:
            hidden_features = count("hidden_features", hidden_features, at_least=1)
            draw = jax.nn.initializers.truncated_normal(HIDDEN_SCALE, lower=-2, upper=2)
            kernel = draw(rngs.params(), (width, hidden_features), param_dtype)
            self.hidden_kernel = nnx.Param(kernel)
            width = hidden_features
        self.hidden_features = hidden_features
        self.scale = nnx.Param(jnp.ones(num_features, param_dtype))
        self.scale_kernel = nnx.Param(jnp.zeros((width, num_features), param_dtype))
        if self.has_bias:
            self.bias = nnx.Param(jnp.zeros(num_features, param_dtype))
            self.bias_kernel = nnx.Param(jnp.zeros((width, num_features), param_dtype))
        self.has_gate = gate is not None
        if gate is not None:
            self.gate = nnx.Param(jnp.full(num_features, number("gate", gate), param_dtype))
            self.gate_kernel = nnx.Param(jnp.zeros((width, num_features), param_dtype))

    def _promoted(self, x: jax.Array) -> jax.Array:
        """``x`` in the dtype of the result: its own, or what the replaced norm makes of it."""
        if self.promotion is None:
            return x
        promote, dtype, names = self.promotion
        return promote((x, *(getattr(self, name)[...] for name in names)), dtype=dtype)[0]

    def _condition(self, x: jax.Array, condition: Condition | None) -> Any:
        """The condition, or that of :func:`conditioned_on`, through the bottleneck."""
        condition = _AMBIENT.get(None) if condition is None else condition
        if self.hidden_features is None:
            return condition
        c = align_conditions(x, condition, sum(self.condition_features))
        hidden = affine(jnp.zeros(self.hidden_features), self.hidden_kernel[...], c)[..., 0, :]
        return ACTIVATIONS[self.activation](hidden)

    def _gated(self, y: jax.Array, condition: Any) -> Any:
        """y, or the pair (y, gate)."""
        if not self.has_gate:
            return y
        return y, conditional_gate(y, condition, self.gate[...], self.gate_kernel[...])


class ConditionalLayerNorm(_ConditionalNorm):
    """:func:`conditional_layer_norm` with its parameters; at the start a plain LayerNorm.

    y = (scale + h W_scale) · (x - mean) / √(variance + epsilon) + bias + h W_bias, h the condition
    c or, with ``hidden_features``, activation(c W_h).

    Args:
        num_features: D.
        condition_features: E; a sequence for several conditions, whose effects are added.
        hidden_features: width of the bottleneck W_h, drawn from a normal; None: there is none.
        activation: of the bottleneck: ``"swish"``, ``"gelu"``, ``"relu"`` or ``"tanh"``.
        epsilon: added to the variance.
        gate: makes the result the pair ``(y, g)`` with g = gate + h W_gate, for x + g · f(y); the
            value that every entry of ``gate`` starts from: 0 for AdaLN-Zero, whose blocks start as
            the identity, 1 for a network that is pretrained. None: there is no gate.
        param_dtype: dtype of the parameters.
        rngs: Flax's random streams; ``params`` is used.

    Raises:
        ValueError: if a size or epsilon is not positive, or the activation unknown.

    >>> norm = ConditionalLayerNorm(2, 3, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[1.0, 3.0]]), jnp.ones((1, 3)))
    Array([[-1.,  1.]], dtype=float32)

    Reference: https://kexue.fm/archives/7124.
    """

    has_bias = True

    def __call__(
        self,
        x: jax.Array,
        condition: Condition | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> Any:
        """``[..., D]`` and ``[B, E]`` (or ``[..., E]``, or a sequence of them) to ``[..., D]``.

        Without a condition, that of :func:`conditioned_on` is used.
        """
        condition = self._condition(x, condition)
        y = conditional_layer_norm(
            self._promoted(x),
            condition,
            self.scale[...],
            self.bias[...],
            self.scale_kernel[...],
            self.bias_kernel[...],
            epsilon=self.epsilon,
            mask=mask,
        )
        return self._gated(y, condition)


class ConditionalRMSNorm(_ConditionalNorm):
    """:func:`conditional_rms_norm` with its parameters; at the start a plain RMSNorm.

    y = (scale + h W_scale) · x / √(mean(x²) + epsilon); arguments and errors are those of
    :class:`ConditionalLayerNorm`, but for the default of epsilon.

    >>> norm = ConditionalRMSNorm(2, 3, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[2.0, -2.0]]), jnp.ones((1, 3))).round(4)
    Array([[ 1., -1.]], dtype=float32)

    Reference: https://kexue.fm/archives/7124.
    """

    def __init__(self, *sizes: Any, epsilon: float = 1e-6, **options: Any):
        super().__init__(*sizes, epsilon=epsilon, **options)

    def __call__(
        self,
        x: jax.Array,
        condition: Condition | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> Any:
        """As that of :class:`ConditionalLayerNorm`."""
        condition = self._condition(x, condition)
        y = conditional_rms_norm(
            self._promoted(x),
            condition,
            self.scale[...],
            self.scale_kernel[...],
            epsilon=self.epsilon,
            mask=mask,
        )
        return self._gated(y, condition)


class ClassCondition(nnx.Module):
    """The condition of a class: one row of a learned table.

    Args:
        num_classes: K.
        condition_features: E.
        initializer: of the table; None: uniform in ±0.05, as in the article. Adam moves c W by
            about its rate times Σ|c| per step, so training from scratch needs larger entries.
        rngs: Flax's random streams; ``params`` is used.

    Raises:
        ValueError: if a size is not positive.

    >>> ClassCondition(2, 3, rngs=nnx.Rngs(0))(jnp.array([0, 1, 1])).shape
    (3, 3)

    Reference: https://kexue.fm/archives/7124.
    """

    def __init__(
        self,
        num_classes: int,
        condition_features: int,
        *,
        initializer: Callable[..., jax.Array] | None = None,
        rngs: nnx.Rngs,
    ):
        count("num_classes", num_classes, at_least=1)
        count("condition_features", condition_features, at_least=1)
        draw = initializer or functools.partial(jax.random.uniform, minval=-0.05, maxval=0.05)
        shape = (num_classes, condition_features)
        self.table = nnx.Param(draw(rngs.params(), shape, jnp.float32))

    def __call__(self, labels: jax.Array) -> jax.Array:
        """Labels ``[...]`` in 0..K-1 to ``[..., E]``; NaN for a label that is no class."""
        rows = self.table[...].at[integers("labels", labels)]
        return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


@contextlib.contextmanager
def conditioned_on(condition: Condition) -> Iterator[None]:
    """Gives a condition to every conditional norm that is called without one.

    For models whose code passes no condition on, such as those of Flax after
    :func:`conditionalize`. Enter it inside the traced function that takes the condition.

    Args:
        condition: as for :func:`conditional_layer_norm`.

    >>> norm = ConditionalLayerNorm(2, 3, rngs=nnx.Rngs(0))
    >>> with conditioned_on(jnp.ones((1, 3))):
    ...     print(norm(jnp.array([[1.0, 3.0]])))
    [[-1.  1.]]
    """
    token = _AMBIENT.set(condition)
    try:
        yield
    finally:
        _AMBIENT.reset(token)
