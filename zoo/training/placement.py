"""Placement of parameters and optimiser states: ordered (path pattern, axes) rules.

A rule is ``(pattern, PartitionSpec)``. The path of a leaf is its keys joined by slashes, such as
``layers/0/kernel``; the first rule whose pattern ``re.search`` finds in it says how the leaf is
split, and a leaf without a rule is replicated. The same rules place an optimiser state, whose paths
end like the parameters' own (``0/mu/layers/0/kernel``).

After ``big_vision/sharding.py`` (google-research), where early patterns win too.
"""

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo._paths import path_name

Rules = Sequence[tuple[str, PartitionSpec]]

logger = logging.getLogger(__name__)


def shardings(abstract_tree: Any, mesh: Mesh, rules: Rules, *, strict: bool = True) -> Any:
    """Applies the rules to every leaf.

    A dimension that its axes do not divide is not split, and a warning names the leaf.

    Args:
        abstract_tree: pytree of anything with a ``shape``.
        mesh: from ``make_mesh``.
        rules: ordered ``(pattern, PartitionSpec)`` pairs.
        strict: for parameters. False is for a tree derived from them (an optimiser state): there
            a rule may match nothing, and a leaf with fewer axes than its rule (a factored moment)
            is replicated.

    Returns:
        The tree with a ``NamedSharding`` in place of each leaf.

    Raises:
        ValueError: if a rule names an axis the mesh lacks, has more axes than the leaf it matches
            or, when strict, matches no leaf.

    >>> from zoo.training import make_mesh
    >>> tree = {"kernel": jax.ShapeDtypeStruct((4, 6), "float32")}
    >>> rules = [("kernel", PartitionSpec(None, "fsdp"))]
    >>> placed = shardings(tree, make_mesh(devices=jax.devices()[:1]), rules)
    >>> placed["kernel"].spec == PartitionSpec(None, "fsdp")
    True
    """
    for pattern, spec in rules:
        if unknown := {axis for entry in spec for axis in _axes(entry)} - set(mesh.axis_names):
            raise ValueError(
                f"rule {pattern!r} -> {spec} names {sorted(unknown)}, but the axes of the mesh "
                f"are {mesh.axis_names}"
            )
    unused = {pattern for pattern, _ in rules}
    not_split: list[str] = []

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        found = (rule for rule in rules if re.search(rule[0], name))
        pattern, spec = next(found, ("", PartitionSpec()))
        unused.discard(pattern)
        if len(spec) > len(leaf.shape):
            if not strict:
                return NamedSharding(mesh, PartitionSpec())
            raise ValueError(
                f"rule {pattern!r} -> {spec} has {len(spec)} axes, but {name!r} has shape "
                f"{leaf.shape}: make the pattern narrower or put a rule for this leaf before it"
            )
        fitted = list(spec)
        for dimension, entry in enumerate(spec):
            size = math.prod(mesh.shape[axis] for axis in _axes(entry))
            if leaf.shape[dimension] % size:
                not_split.append(f"{name} {leaf.shape} axis {dimension} over {entry}={size}")
                fitted[dimension] = None
        return NamedSharding(mesh, PartitionSpec(*fitted))

    result = jax.tree.map_with_path(place, abstract_tree)
    if strict and unused:
        names = [path_name(path) for path, _ in jax.tree.leaves_with_path(abstract_tree)]
        raise ValueError(
            f"rules {sorted(unused)} are the first match of no parameter: remove them or correct "
            f"the pattern; the paths are {names}"
        )
    if strict and not_split:  # the optimiser state repeats what the parameters already said
        logger.warning("not split, because not divisible: %s", "; ".join(not_split))
    return result


def _axes(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
