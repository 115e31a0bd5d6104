"""Batch normalisation's statistics for averaged parameters.

The running averages of a network belong to the parameters it was trained with, not to their
average. Recomputed over batches b of w_b examples they are those of all examples together:

    mean = Σ_b w_b mean_b / Σ_b w_b,   var = Σ_b w_b (var_b + (mean_b - mean)²) / Σ_b w_b

The second term is often left out, which makes the variance of small batches too small. The cheap
alternative, an average of the running averages themselves, is :func:`average_update` on them.

Source: Pavel Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
2018, arXiv 1803.05407, section 3.2; article https://kexue.fm/archives/6575.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zoo import _checks
from zoo._paths import path_name, spread


def recompute_statistics(batch_statistics: Callable[[Any], Any], batches: Iterable[Any]) -> Any:
    """The statistics of all batches together, from those of each.

    Args:
        batch_statistics: ``(batch) -> statistics`` of this batch alone: what a forward pass in
            training mode leaves in the state when the momentum of every layer is 0. Jit it
            yourself, with the parameters as an argument, so that it is compiled once.
        batches: of training data; pytrees of arrays ``[B, ...]``, each weighted by its B. Those
            without an example count for nothing.

    Returns:
        A tree like that of one batch, in its dtypes, summed in at least float32. Where ``"mean"``
        and ``"var"`` lie side by side, as in Flax, the variance is that of all examples; other
        floating leaves are plain means, and the rest are as in the last batch.

    Raises:
        ValueError: if there are no batches with an example, or their statistics differ in
            structure.
        TypeError: if the statistics are not a nested dict (or FrozenDict, or ``nnx.State``).

    >>> def batch_statistics(batch):
    ...     return {"mean": batch.mean(axis=0), "var": batch.var(axis=0)}
    >>> batches = [jnp.zeros((2, 1)), jnp.ones((2, 1))]
    >>> statistics = recompute_statistics(batch_statistics, batches)
    >>> print(statistics["mean"], statistics["var"])
    [0.5] [0.25]
    """
    total, first, examples = None, None, 0
    for batch in batches:
        more = jax.tree.leaves(batch)[0].shape[0]
        if more == 0:
            continue
        statistics = batch_statistics(batch)
        if not isinstance(statistics, Mapping):
            raise TypeError(
                f"batch_statistics must return a nested dict, got {type(statistics).__name__}"
            )
        examples += more
        if total is None:
            first, total = statistics, jax.tree.map(_widen, _by_path(statistics))
        else:
            total = _merge(
                total, _by_path(spread(statistics, first, name="statistics")), more / examples
            )
    if total is None:
        raise ValueError("batches must hold at least one batch with an example, got none")
    narrow = jax.tree.map(lambda x, like: x.astype(like.dtype), total, _by_path(first))
    return jax.tree.map_with_path(lambda path, _: narrow[path_name(path)], first)


def _by_path(tree: Any) -> dict[str, Any]:
    return {path_name(path): jnp.asarray(x) for path, x in jax.tree.leaves_with_path(tree)}


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(_checks.accumulator(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


@jax.jit
def _merge(old: dict[str, Any], new: dict[str, Any], share: jax.Array) -> dict[str, Any]:
    """Old and new statistics together, where ``share`` of all examples are new."""
    new = {name: x.astype(old[name].dtype) for name, x in new.items()}
    merged = {}
    for name, x in new.items():
        mean = re.sub(r"(^|/)var$", r"\1mean", name)
        if not jnp.issubdtype(x.dtype, jnp.inexact):  # a counter
            merged[name] = x
            continue
        merged[name] = old[name] + share * (x - old[name])
        if mean != name and mean in new:
            merged[name] += share * (1 - share) * jnp.square(new[mean] - old[mean])
    return merged
