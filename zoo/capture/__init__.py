"""Any intermediate value of any function: read it, replace it (https://kexue.fm/archives/6575).

Beside Flax's own means: ``sow`` marks a value in the model, which needs a module and, in Linen, a
mutable collection; ``nnx.capture`` returns what was sown, or the outputs of all methods;
``sow_weights=True`` of its attention layers sows their weights. They are enough for a model one
writes oneself. :func:`tap` marks any value of any function, ``capture(paths=)`` and
``capture(where=)`` need no mark, work in loops, branches and ``shard_map``, and :func:`inject` also
replaces.
"""

from zoo.capture.interpreter import Conditional
from zoo.capture.listing import list_values
from zoo.capture.taps import capture, inject, tap

__all__ = ["Conditional", "capture", "inject", "list_values", "tap"]
