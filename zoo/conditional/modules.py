"""Conditional norms as modules, and what gives them their condition."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.conditional.layer_norm import Condition, aligned, modulated, shifted

# Functions with f(0) = 0: the condition 0 stays no condition behind them.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swish": jax.nn.swish,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
HIDDEN_SCALE = 0.02  # a product of two matrices that both start at 0 would never move

_AMBIENT: contextvars.ContextVar[Condition | None] = contextvars.ContextVar("condition")


class _ConditionalNorm(nnx.Module):
    """What both norms share: a scale, its kernel and the bottleneck."""

    def __init__(
        self,
        num_features: int,
        condition_features: int | Sequence[int],
        *,
        hidden_features: int | None = None,
        activation: str = "swish",
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        sizes = condition_features
        self.condition_features = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        given = {"num_features": num_features, "hidden_features": hidden_features}
        given |= {"condition_features": min(self.condition_features, default=0)}
        for name, value in given.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        self.epsilon = epsilon
        self.activation = activation
        width = sum(self.condition_features)
        self.hidden_features = hidden_features
        if hidden_features is not None:
            draw = jax.nn.initializers.truncated_normal(HIDDEN_SCALE, lower=-2, upper=2)
            self.hidden_kernel = nnx.Param(draw(rngs.params(), (width, hidden_features)))
            width = hidden_features
        self.scale = nnx.Param(jnp.ones(num_features))
        self.scale_kernel = nnx.Param(jnp.zeros((width, num_features)))

    def _conditions(self, x: jax.Array, condition: Condition | None) -> list[jax.Array]:
        """The conditions, aligned with x and through the bottleneck."""
        if condition is None:
            condition = _AMBIENT.get(None)
        conditions = aligned(x, condition, sum(self.condition_features))
        if self.hidden_features is None:
            return conditions
        kernel = self.hidden_kernel[...]
        hidden = shifted(jnp.zeros(self.hidden_features), kernel, conditions, x)
        return [ACTIVATIONS[self.activation](hidden)]


class ConditionalLayerNorm(_ConditionalNorm):
    """:func:`conditional_layer_norm` with its parameters; a plain LayerNorm before it learns.

    y = (scale + h W_scale) · (x - mean) / √(variance + epsilon) + bias + h W_bias, h the condition
    c or, with ``hidden_features``, activation(c W_h).

    Args:
        num_features: D.
        condition_features: E; several for several conditions at once, whose effects are summed.
        hidden_features: width of the bottleneck W_h, drawn from a normal; None: there is none.
        activation: of the bottleneck: ``"swish"``, ``"gelu"``, ``"relu"`` or ``"tanh"``.
        epsilon: added to the variance.
        rngs: Flax's random streams; ``params`` is used.

    Raises:
        ValueError: if a size or epsilon is not positive, or the activation unknown.

    >>> norm = ConditionalLayerNorm(2, 3, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[1.0, 3.0]]), jnp.ones((1, 3)))
    Array([[-1.,  1.]], dtype=float32)

    Reference: https://kexue.fm/archives/7124.
    """

    def __init__(
        self,
        num_features: int,
        condition_features: int | Sequence[int],
        *,
        hidden_features: int | None = None,
        activation: str = "swish",
        epsilon: float = 1e-12,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            num_features,
            condition_features,
            hidden_features=hidden_features,
            activation=activation,
            epsilon=epsilon,
            rngs=rngs,
        )
        self.bias = nnx.Param(jnp.zeros(num_features))
        self.bias_kernel = nnx.Param(jnp.zeros(self.scale_kernel.shape))

    def __call__(self, x: jax.Array, condition: Condition | None = None) -> jax.Array:
        """``[..., D]`` and ``[B, E]`` (or ``[..., E]``, or a sequence of them) to ``[..., D]``.

        Without a condition, that of :func:`conditioned_on` counts.
        """
        conditions = self._conditions(x, condition)
        gain = shifted(self.scale[...], self.scale_kernel[...], conditions, x)
        shift = shifted(self.bias[...], self.bias_kernel[...], conditions, x)
        return modulated(x, gain, shift, epsilon=self.epsilon)


class ConditionalRMSNorm(_ConditionalNorm):
    """:func:`conditional_rms_norm` with its parameters; a plain RMSNorm before it learns.

    y = (scale + h W_scale) · x / √(mean(x²) + epsilon), h as for :class:`ConditionalLayerNorm`.

    Args:
        num_features: D.
        condition_features: E; several for several conditions at once, whose effects are summed.
        hidden_features: width of the bottleneck W_h, drawn from a normal; None: there is none.
        activation: of the bottleneck: ``"swish"``, ``"gelu"``, ``"relu"`` or ``"tanh"``.
        epsilon: added to the mean square.
        rngs: Flax's random streams; ``params`` is used.

    Raises:
        ValueError: if a size or epsilon is not positive, or the activation unknown.

    >>> norm = ConditionalRMSNorm(2, 3, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[2.0, -2.0]]), jnp.ones((1, 3))).round(4)
    Array([[ 1., -1.]], dtype=float32)

    Reference: https://kexue.fm/archives/7124.
    """

    def __call__(self, x: jax.Array, condition: Condition | None = None) -> jax.Array:
        """``[..., D]`` and ``[B, E]`` (or ``[..., E]``, or a sequence of them) to ``[..., D]``.

        Without a condition, that of :func:`conditioned_on` counts.
        """
        conditions = self._conditions(x, condition)
        gain = shifted(self.scale[...], self.scale_kernel[...], conditions, x)
        return modulated(x, gain, epsilon=self.epsilon)


class ClassCondition(nnx.Module):
    """The condition of a class: a row of a table, to be learned.

    Args:
        num_classes: K.
        condition_features: E.
        initializer: of the table; None: uniform in ±0.05, as in the article. Adam moves c W by
            about its rate times Σ|c| a step, so a model from scratch wants larger entries.
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
        for name, value in (
            ("num_classes", num_classes),
            ("condition_features", condition_features),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        shape = (num_classes, condition_features)
        if initializer is None:
            table = jax.random.uniform(rngs.params(), shape, minval=-0.05, maxval=0.05)
        else:
            table = initializer(rngs.params(), shape, jnp.float32)
        self.table = nnx.Param(table)

    def __call__(self, labels: jax.Array) -> jax.Array:
        """Labels ``[...]`` in 0..K-1 to ``[..., E]``; NaN for a label that is no class.

        Raises:
            TypeError: if the labels are not integers.
        """
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        rows = self.table[...].at[labels]
        return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


@contextlib.contextmanager
def conditioned_on(condition: Condition) -> Iterator[None]:
    """Gives a condition to every conditional norm that is called without one.

    For models whose code knows of no condition, such as those of Flax after :func:`conditionalize`.
    Enter it inside the function that is traced, where the condition is an argument of it.

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
