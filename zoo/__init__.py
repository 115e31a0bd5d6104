"""Eight ideas from the blog Scientific Spaces as pure JAX functions, Flax modules and Optax parts.

Each idea is a package of its own (``zoo.ordered`` …); ``zoo.training`` and ``zoo.data`` hold what
their experiments share. Importing ``zoo`` imports none of them.
"""

__version__ = "0.1.0"
