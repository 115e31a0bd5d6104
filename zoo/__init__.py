"""Eight ideas from the blog Scientific Spaces as pure JAX functions, Flax modules and Optax parts.

=============================================  =====================================================
``zoo.ordered``                                ON-LSTM and cumax
``zoo.smooth``                                 smooth max, argmax, top-k, metrics
``zoo.spherical``                              JoSE: words and documents on the sphere
``zoo.conditional``                            Conditional Layer Normalization
``zoo.transformer``, ``zoo.decoding``          pretraining on many devices; generation
``zoo.averaging``, ``zoo.capture``             weight averaging; any intermediate value
``zoo.orthogonal``                             Self-Orthogonality Module
``zoo.energy``                                 energy-based models by Langevin dynamics
=============================================  =====================================================

The frame that their experiments share: ``zoo.training`` and ``zoo.data``. A package is imported
when it is first used. The command ``zoo`` lists and runs the experiments; ``zoo.load(NAME)`` gives
a small model that is trained already.
"""

import importlib
import importlib.metadata
from typing import Any

IDEAS = (
    "averaging",
    "capture",
    "conditional",
    "decoding",
    "energy",
    "ordered",
    "orthogonal",
    "smooth",
    "spherical",
    "transformer",
)
FRAME = ("data", "training")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return importlib.metadata.version("kexue-zoo")
        except importlib.metadata.PackageNotFoundError:  # a folder that was never installed
            return "unknown"
    if name == "load":
        return importlib.import_module("zoo.trained").load
    if name in (*IDEAS, *FRAME):
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(
        f"module 'zoo' has no attribute {name!r}; its packages are {', '.join((*IDEAS, *FRAME))}"
    )


def __dir__() -> list[str]:
    return sorted((*IDEAS, *FRAME, "__version__", "load"))
