"""Any intermediate value of any function: read it, replace it (https://kexue.fm/archives/6575)."""

from zoo.capture.interpreter import Conditional
from zoo.capture.listing import list_values
from zoo.capture.taps import capture, inject, tap

__all__ = ["Conditional", "capture", "inject", "list_values", "tap"]
