"""The energies a run can train."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.energy_model.config import ModelConfig
from zoo.energy import (
    RESNET,
    RESNET_LARGE,
    MnistEnergy,
    MultiscaleEnergy,
    ResNetEnergy,
    SpectralKernel,
)

GAIN = 6.0


class DenseEnergy(nnx.Module):
    """Three spectrally normalised layers on all pixels at once: for images of 8 × 8.

    Behind each normalised kernel stands the factor ``GAIN``: kernels of norm 1 keep so little of a
    random signal that three layers of them are all but linear. The output starts at zero, so that
    the first energy is flat and becomes as steep as the samples ask for.
    """

    def __init__(self, pixels: int, features: int, *, rngs: nnx.Rngs):
        """Draws the parameters."""
        widths = (pixels, features, features, features)
        self.kernels = nnx.List(
            [SpectralKernel(*pair, rngs=rngs) for pair in itertools.pairwise(widths)]
        )
        self.biases = nnx.List([nnx.Param(jnp.zeros(features)) for _ in self.kernels])
        self.output = nnx.Linear(features, 1, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images ``[B, height, width, channels]`` in 0..1 to energies ``[B]``."""
        x = 2 * images.reshape(len(images), -1) - 1
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            x = jax.nn.silu(GAIN * (x @ kernel()) + bias[...][None])
        return self.output(x)[:, 0]


def make_network(model: ModelConfig, shape: tuple[int, ...]) -> Callable[[nnx.Rngs], nnx.Module]:
    """Makes the network for images of this shape, given random streams."""
    height, width, channels = shape
    if model.network == "mnist" and shape != (28, 28, 1):
        raise ValueError(f"model.network=mnist takes images of 28 × 28 × 1, got {shape}")

    def make(rngs: nnx.Rngs) -> nnx.Module:
        if model.network == "dense":
            return DenseEnergy(height * width * channels, model.features, rngs=rngs)
        if model.network == "mnist":
            return MnistEnergy(model.features, stem_features=model.features, rngs=rngs)
        if model.network == "multiscale":
            return MultiscaleEnergy(model.features, channels=channels, rngs=rngs)
        large = model.network == "resnet_large"
        return ResNetEnergy(
            model.features,
            channels=channels,
            blocks=RESNET_LARGE if large else RESNET,
            dropout=0.5 if large else 0.0,
            rngs=rngs,
        )

    return make
