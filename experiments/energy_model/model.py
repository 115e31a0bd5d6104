"""The energies a run can train."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo._checks import floating
from zoo.energy.networks import (
    RESNET,
    RESNET_LARGE,
    MnistEnergy,
    MultiscaleEnergy,
    ResNetEnergy,
)
from zoo.energy.spectral import SpectralKernel

from .config import ModelConfig

GAIN = 6.0


class DenseEnergy(nnx.Module):
    """Three spectrally normalised layers on all pixels at once: for small images.

    Each normalised kernel is multiplied by ``GAIN``: kernels of norm 1 pass on so little of a
    random signal that three layers of them are nearly linear. The output starts at zero, so that
    the first energy is flat. With a ``reference`` s the first density is N(0, s²), which the layers
    multiply:

        E(x) = |x|²/(2s²) - pixels/2 + layers(x)
    """

    def __init__(
        self,
        pixels: int,
        features: int,
        *,
        num_classes: int | None = None,
        reference: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.reference = reference
        widths = itertools.pairwise((pixels, features, features, features))
        rows = num_classes or 1  # with classes, biases and output have a row for each
        self.kernels = nnx.List([SpectralKernel(*pair, rngs=rngs) for pair in widths])
        self.biases = nnx.List([nnx.Param(jnp.zeros((rows, features))) for _ in self.kernels])
        self.output = nnx.Param(jnp.zeros((rows, features)))
        self.shift = nnx.Param(jnp.zeros(rows))

    def __call__(self, images: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Images ``[B, height, width, channels]`` in 0..1, labels ``[B]``, to energies ``[B]``."""
        rows = jnp.zeros(1, int) if labels is None else labels
        pixels = floating("images", images).reshape(len(images), math.prod(images.shape[1:]))
        x = 2 * pixels - 1
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            x = jax.nn.silu(GAIN * (x @ kernel()) + bias[...][rows])
        energy = (x * self.output[...][rows]).sum(axis=1) + self.shift[...][rows]
        if self.reference is None:
            return energy
        return energy + ((pixels / self.reference) ** 2 - 1).sum(axis=1) / 2


def make_network(
    model: ModelConfig, shape: tuple[int, ...], num_classes: int | None = None
) -> Callable[[nnx.Rngs], nnx.Module]:
    """``(rngs) -> network`` for images of this shape, and for labels if there are classes."""
    sizes: dict[str, Any] = {"channels": shape[-1], "num_classes": num_classes}
    network: Callable[..., nnx.Module]
    if model.network == "dense":
        sizes = {"pixels": math.prod(shape), "num_classes": num_classes}
        network = functools.partial(DenseEnergy, **sizes, reference=model.reference)
    elif model.network == "mnist":
        if shape != (28, 28, 1):
            raise ValueError(f"model.network=mnist takes images of 28 × 28 × 1, got {shape}")
        network = functools.partial(MnistEnergy, stem_features=model.features)
    elif model.network == "multiscale":
        network = functools.partial(MultiscaleEnergy, **sizes)
    else:
        large = model.network == "resnet_large"
        sizes |= {"blocks": RESNET_LARGE, "dropout": 0.5} if large else {"blocks": RESNET}
        network = functools.partial(ResNetEnergy, **sizes)
    return lambda rngs: network(features=model.features, rngs=rngs)
