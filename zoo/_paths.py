"""One notion of the path of a leaf, over dicts, FrozenDict, ``nnx.State``, Linen trees and lists.

The path is the keys joined by slashes, ``layers/0/kernel``. What only a container adds (the
``.value`` of an NNX variable) is no part of it, so that a pattern means the same on every tree.
"""

import re
from collections.abc import Sequence
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
