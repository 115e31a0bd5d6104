"""What BERT's optimisers add to Optax: uncorrected moments, exclusion by path, lazy rows.

    m = β₁ m + (1 - β₁) g        v = β₂ v + (1 - β₂) g²
    u = m / (√v + ε) + λ x
    x ← x - γ u                  AdamW: optax.adamw(γ, eps=1e-6, weight_decay=λ, mask=excluding())
    x ← x - γ ‖x‖/‖u‖ u          LAMB, ratio 1 if either norm is 0

Optax divides the moments by 1 - βᵗ; the original's LAMB does not. γ is the scheduled rate, so decay
is scheduled with it. What is excluded by its path has no decay and, in LAMB, ratio 1; the default
patterns find every bias and norm, such as ``layers/attention_norm/scale``, Linen's
``LayerNorm_0/scale`` and the output bias. Paths are those of ``zoo._paths``: the same for dicts,
FrozenDict, ``nnx.State`` and lists.

Sources: Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", 2017, arXiv
1711.05101; Yang You et al., "Large Batch Optimization for Deep Learning", 2019, arXiv 1904.00962;
https://kexue.fm/archives/7094 (derived optimizers) and 6869 (lazy). Differences from that code: it
counts micro-steps where updates are counted here, and its LAMB treats a rate below 1e-7 as 1e-7.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo._checks import accumulator, number
from zoo._paths import matches

EXCLUDE = (r"bias$", r"(?i)norm", r"(^|/)scale$")
# Of a Transformer of this package. The separate layers of a list, layers/0/…, are not stacked.
STACKED = (r"(^|/)layers/(?!\d+(/|$))",)


def excluding(patterns: Sequence[str] = EXCLUDE) -> Callable[[Any], Any]:
    """A mask for Optax: False for leaves in whose path one of the patterns is found.

    >>> excluding()({"kernel": 1.0, "bias": 2.0})
    {'bias': False, 'kernel': True}
    """
    return lambda tree: jax.tree.map(operator.not_, matches(tree, patterns))


def scale_by_uncorrected_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformation:
    """``optax.scale_by_adam`` without bias correction: m / (√v + ε).

    Args:
        b1: decay of the mean of gradients.
        b2: decay of the mean of their squares.
        eps: added to the root.

    Returns:
        The transformation; its state is Optax's.

    Raises:
        ValueError: if a decay is outside [0, 1) or eps is negative.

    >>> adam = scale_by_uncorrected_adam(eps=0.0)
    >>> updates, _ = adam.update(jnp.array([2.0]), adam.init(jnp.array([0.0])))
    >>> updates  # 0.1 / √0.001
    Array([3.162], dtype=float32)
    """
    b1 = number("b1", b1, at_least=0, below=1)
    b2 = number("b2", b2, at_least=0, below=1)
    eps = number("eps", eps, at_least=0)
    adam = optax.scale_by_adam(b1, b2)

    def update(gradients: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        del parameters
        _, state = adam.update(gradients, state)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), state.mu, state.nu), state

    return optax.GradientTransformation(adam.init, update)


def scale_by_layer_trust_ratio(stacked: Sequence[str] = ()) -> optax.GradientTransformation:
    """``optax.scale_by_trust_ratio``, u ‖x‖/‖u‖, with norms for each layer of a stack.

    It computes every norm once, where Optax computes it twice: a third of the time of an update
    (row ``transformer.lamb update``).

    Args:
        stacked: patterns of paths whose first axis counts layers: ``STACKED`` for a
            :class:`~zoo.transformer.Transformer`; none by default, as no path tells it.

    Returns:
        The transformation; its update needs the parameters.

    >>> ratio = scale_by_layer_trust_ratio()
    >>> x = {"kernel": jnp.array([3.0, 4.0])}
    >>> ratio.update({"kernel": jnp.array([0.0, 2.0])}, ratio.init(x), x)[0]
    {'kernel': Array([0., 5.], dtype=float32)}
    """

    def norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return jnp.sqrt(jnp.sum(x.astype(accumulator(x.dtype)) ** 2, axis=axes, keepdims=True))

    def scale(is_stacked: bool, u: jax.Array, x: jax.Array) -> jax.Array:
        axes = tuple(range(int(is_stacked), u.ndim))
        x_norm, u_norm = norm(x, axes), norm(u, axes)
        neither = (x_norm == 0) | (u_norm == 0)
        return (jnp.where(neither, 1, x_norm / jnp.where(neither, 1, u_norm)) * u).astype(u.dtype)

    def update(updates: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        if parameters is None:
            raise ValueError("update needs the parameters, got None")
        return jax.tree.map(scale, matches(updates, stacked), updates, parameters), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def uncorrected_lamb(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    exclude: Sequence[str] = EXCLUDE,
    stacked: Sequence[str] = (),
) -> optax.GradientTransformation:
    """LAMB as in the module docstring: every tensor moves by γ times its own norm.

    Args:
        learning_rate: γ, a number or a schedule of the number of updates.
        b1: β₁.
        b2: β₂.
        eps: ε, outside the root.
        weight_decay: λ, inside the norm of u.
        exclude: patterns of paths without decay and with ratio 1.
        stacked: patterns of paths whose first axis counts layers, each with its own norms:
            ``STACKED`` for a :class:`~zoo.transformer.Transformer`; none by default.

    Returns:
        The transformation; its update needs the parameters.

    Raises:
        ValueError: if a number is out of its range.

    >>> optimizer = uncorrected_lamb(0.1)
    >>> x = {"kernel": jnp.array([3.0, 4.0])}
    >>> updates, _ = optimizer.update({"kernel": jnp.array([0.0, 9.0])}, optimizer.init(x), x)
    >>> bool(jnp.isclose(jnp.linalg.norm(updates["kernel"]), 0.1 * 5.0))
    True

    Reference: arXiv 1904.00962, algorithm 2.
    """
    weight_decay = number("weight_decay", weight_decay, at_least=0)
    if not callable(learning_rate):
        learning_rate = number("learning_rate", learning_rate, at_least=0)
    mask = excluding(exclude)
    return optax.chain(
        scale_by_uncorrected_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(scale_by_layer_trust_ratio(stacked), mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def lazy_rows(
    optimizer: optax.GradientTransformation, *, tables: Sequence[str] = (r"embedding$",)
) -> optax.GradientTransformationExtraArgs:
    """Moves only those rows of a table that the batch used: their gradient is not all 0.

    x_r ← x_r + [g_r ≠ 0] Δ_r. Without it, decay and old momentum move the vectors of words that did
    not occur. The moments of unused rows still decay. Weights tied to a softmax over the complete
    vocabulary have no unused rows: there it changes nothing.

    Args:
        optimizer: what it wraps; its gradients must be those of the loss.
        tables: patterns of the paths of tables.

    Returns:
        The transformation.

    >>> optimizer = lazy_rows(optax.adamw(0.1, weight_decay=0.5))
    >>> x = {"embedding": jnp.ones((2, 1))}
    >>> gradient = {"embedding": jnp.array([[0.0], [1.0]])}
    >>> updates, _ = optimizer.update(gradient, optimizer.init(x), x)
    >>> updates["embedding"].round(2)
    Array([[ 0.  ],
           [-0.15]], dtype=float32)

    Reference: https://kexue.fm/archives/6869.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(gradients: Any, state: Any, parameters: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = inner.update(gradients, state, parameters, **extra)

        def keep(is_table: bool, update: jax.Array, gradient: jax.Array) -> jax.Array:
            if not is_table:
                return update
            return jnp.where(jnp.any(gradient != 0, axis=-1, keepdims=True), update, 0)

        return jax.tree.map(keep, matches(updates, tables), updates, gradients), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
