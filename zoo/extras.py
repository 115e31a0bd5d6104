"""Optional dependencies: imported where they are used, with an error that says how to get them."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Imports an optional dependency.

    Args:
        module: dotted name of the module, such as ``"matplotlib.figure"``.
        extra: the extra of ``kexue-zoo`` that installs it, such as ``"plot"``.

    Returns:
        The imported module.

    Raises:
        ImportError: if the module is absent; the message names the extra to install.

    >>> require("json", "data").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # An installed module that is broken must show its own error.
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise ImportError(
            f"this needs the module {error.name!r}, which is not installed; "
            f"install it with: pip install 'kexue-zoo[{extra}]'"
        ) from error
