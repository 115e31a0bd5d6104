"""Batch normalisation's statistics for averaged parameters.

The running averages of a network belong to the parameters it was trained with, not to their
average. Recomputed over batches b of w_b examples they are those of all examples together:

    mean = Σ_b w_b mean_b / Σ_b w_b,   var = Σ_b w_b (var_b + (mean_b - mean)²) / Σ_b w_b

The second term is often left out, which makes the variance of small batches too small. The cheap
alternative, an average of the running averages themselves, is :func:`average_update` on them.

Source: Pavel Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
2018, arXiv 1803.05407, section 3.2; article https://kexue.fm/archives/6575.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def recompute_statistics(batch_statistics: Callable[[Any], Any], batches: Iterable[Any]) -> Any:
    """The statistics of all batches together, from those of each.

    Args:
        batch_statistics: ``(batch) -> statistics`` of this batch alone: what a forward pass in
            training mode leaves in the state when the momentum of every layer is 0. Jit it
            yourself, with the parameters as an argument, so that it is compiled once.
        batches: of training data; pytrees of arrays ``[B, ...]``, each weighted by its B.

    Returns:
        A nested dict like that of one batch, in its dtypes. Where ``"mean"`` and ``"var"`` lie side
        by side, as in Flax, the variance is that of all examples; other leaves are plain means.

    Raises:
        ValueError: if there are no batches.
        TypeError: if the statistics are not a nested dict.

    >>> def batch_statistics(batch):
    ...     return {"mean": batch.mean(axis=0), "var": batch.var(axis=0)}
    >>> batches = [jnp.zeros((2, 1)), jnp.ones((2, 1))]
    >>> statistics = recompute_statistics(batch_statistics, batches)
    >>> print(statistics["mean"], statistics["var"])
    [0.5] [0.25]
    """
    total, examples = None, 0
    for batch in batches:
        more = jax.tree.leaves(batch)[0].shape[0]
        statistics = batch_statistics(batch)
        if not isinstance(statistics, Mapping):
            raise TypeError(
                f"batch_statistics must return a nested dict, got {type(statistics).__name__}"
            )
        examples += more
        total = statistics if total is None else _merge(total, statistics, more / examples)
    if total is None:
        raise ValueError("batches must hold at least one batch, got none")
    return total


@jax.jit
def _merge(old: Any, new: Any, share: jax.Array) -> Any:
    """Old and new statistics together, where ``share`` of all examples are new."""
    if not isinstance(old, Mapping):
        return jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), old, new)
    merged = {name: _merge(old[name], new[name], share) for name in old}
    if {"mean", "var"} <= old.keys():
        between = share * (1 - share) * jnp.square(new["mean"] - old["mean"])
        merged["var"] += between.astype(merged["var"].dtype)
    return merged
