"""One notion of the path of a leaf, over dicts, FrozenDict, ``nnx.State``, Linen trees and lists.

The path is the keys joined by slashes, ``layers/0/kernel``. What only a container adds (the
``.value`` of an NNX variable) is no part of it, so that a pattern means the same on every tree.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """The slash-joined name of a leaf, as patterns, checkpoints and error messages write it.

    >>> path_name(jax.tree.leaves_with_path({"layers": [{"kernel": 1.0}]})[0][0])
    'layers/0/kernel'
    """
    # The leaf of an nnx.State lies one attribute deeper, in its Variable.
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(tree: Any, patterns: str | Sequence[str]) -> Any:
    """The tree of truth values: whether one of the patterns is found in the leaf's path.

    >>> matches({"kernel": 1.0, "bias": 2.0}, r"kernel$")
    {'bias': False, 'kernel': True}
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    return jax.tree.map_with_path(
        lambda path, _: any(re.search(pattern, path_name(path)) for pattern in patterns), tree
    )


def spread(
    prefix: Any, tree: Any, *, name: str, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """The leaves of ``prefix`` in the structure of ``tree``, each at every path below its own.

    ``jax.tree.broadcast`` wants the same containers; here a mask of plain dicts fits an
    ``nnx.State``, and gradients in one container the parameters in another.

    >>> spread({"dense": True}, {"dense": {"bias": 1.0, "kernel": 2.0}}, name="mask")
    {'dense': {'bias': True, 'kernel': True}}
    """
    structures: list[Any] = [jax.tree.structure(x, is_leaf=is_leaf) for x in (prefix, tree)]
    if structures[0] == structures[1]:
        return prefix
    leaves = {path_name(path): x for path, x in jax.tree.leaves_with_path(prefix, is_leaf=is_leaf)}

    def above(path: tuple[Any, ...]) -> str:
        here = path_name(path)
        while here and here not in leaves:
            here = here.rpartition("/")[0]
        return here

    # A node without leaves stands for what a mask left out: a place, but it needs nothing.
    places = jax.tree.leaves_with_path(tree, is_leaf=lambda node: not jax.tree.leaves(node))
    found = {path_name(path): above(path) for path, _ in places}
    needed = {path_name(path) for path, _ in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)}
    missing = sorted(place for place in needed if found[place] not in leaves)
    unused = sorted(leaves.keys() - set(found.values()))
    if missing or unused:
        raise ValueError(
            f"{name} must have one entry at or above each of the paths {sorted(needed)}, and no "
            f"others; got none for {missing}, and {unused} too many"
        )
    return jax.tree.map_with_path(lambda path, _: leaves[above(path)], tree, is_leaf=is_leaf)


def for_tree(option: Any, tree: Any) -> Any:
    """``option``, or what it returns for ``tree`` where it is a function.

    A model that is a tree can often be called; as an option (a mask of truth values) it is a tree.
    """
    is_leaf = jax.tree_util.all_leaves([option])
    return option(tree) if callable(option) and is_leaf else option
