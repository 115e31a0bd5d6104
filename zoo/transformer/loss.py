"""Cross-entropy over chosen positions, with one mean over all of them.

    loss = Σ_i w_i (logΣexp(z_i) - z_i[y_i]) / Σ_i w_i

Both sums run over all rows of all devices (``axis_name``) before the division. A mean of the means
of parts is another loss as soon as the parts hold unequal numbers of chosen positions: a position
in a part with few of them counts for more.

Source: https://kexue.fm/archives/7055, whose code takes the mean of each replica.
"""

import jax
import jax.numpy as jnp

from zoo._checks import integers, widened


def cross_entropy_sums(
    logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Numerator and denominator of the loss, for sums over further parts such as micro-batches.

    Args:
        logits: ``[..., V]``.
        targets: ``[...]`` int; one outside 0..V-1 gives NaN where its weight is not 0.
        weights: ``[...]`` bool or number; where it is 0, logits and targets may be anything.

    Returns:
        Σ w · cross-entropy in nats, and Σ w; both ``[]`` in at least float32.

    Raises:
        TypeError: if logits are not floating or targets not integers.
        ValueError: if the shapes do not fit.

    >>> total, weight = cross_entropy_sums(jnp.zeros((3, 4)), jnp.array([0, 1, 9]),
    ...                                    jnp.array([1, 1, 0]))
    >>> total.round(3), weight
    (Array(2.773, dtype=float32), Array(2., dtype=float32))
    """
    _, logits = widened("logits", logits)
    targets, weights = integers("targets", targets), jnp.asarray(weights)
    if not logits.shape[:-1] == targets.shape == weights.shape:
        raise ValueError(
            "targets and weights must have the shape of logits without its last axis, "
            f"{logits.shape[:-1]}, got {targets.shape} and {weights.shape}"
        )
    weights = weights.astype(logits.dtype)
    size = logits.shape[-1]
    # What is not chosen reaches no arithmetic, so that no derivative is 0 · NaN.
    logits = jnp.where(jnp.expand_dims(weights == 0, -1), 0, logits)
    # Where the vocabulary is split over devices, each looks up its own and these are added.
    places = jnp.expand_dims(targets, -1)
    likelihood = jnp.take_along_axis(logits, places, axis=-1, mode="clip")[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - likelihood
    losses = jnp.where((targets >= 0) & (targets < size), losses, jnp.nan)
    return jnp.sum(jnp.where(weights == 0, 0, losses) * weights), jnp.sum(weights)


def masked_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    """The loss of the module docstring; 0 if nothing is chosen.

    Args:
        logits: see :func:`cross_entropy_sums`.
        targets: likewise.
        weights: likewise.
        axis_name: mapped axis over which the rows are split.

    Returns:
        ``[]``, in nats, in at least float32.

    >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> masked_cross_entropy(logits, jnp.array([0, 1]), jnp.array([True, False])).round(4)
    Array(0.6931, dtype=float32)
    """
    total, weight = cross_entropy_sums(logits, targets, weights)
    if axis_name is not None:
        total, weight = jax.lax.psum((total, weight), axis_name)
    return total / jnp.where(weight == 0, 1, weight)
