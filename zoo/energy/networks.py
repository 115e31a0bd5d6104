"""The energy networks of the original, from images to one energy each.

Every convolution and all linear layers but the last are spectrally normalised; there is no other
normalisation. Labels enter a residual block through the biases before both convolutions and the
gain after the second:

    h = act(conv₁(x + b₁[y])),   out = act(pool(conv₂(h + b₂[y])·(g[y] + c) + skip(x)))

Activations are leaky ReLUs of slope 0.2, convolutions have no other bias, and the last features are
summed over space, so that the energy grows with the size of the image.

Source: Du, Mordatch, 2019, arXiv 1903.08689, and its code.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo._checks import count, integers, shapes
from zoo._cpu import convolution
from zoo.energy.chains import check_scaled
from zoo.energy.spectral import SpectralKernel

activation = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
Block = tuple[int, bool]  # output channels, halve the resolution

# Blocks of the published networks, in units of the first width.
RESNET: tuple[Block, ...] = ((1, True), (1, False), (2, True), (2, False), (2, True), (2, False))
RESNET_LARGE: tuple[Block, ...] = (
    *((1, True), (1, False), (1, False)),
    *((2, True), (2, False), (2, False)),
    *((4, True), (4, False), (4, False)),
)
# The full-size part of the multi-scale network; each coarser part lacks the last stage of two.
MULTISCALE: tuple[Block, ...] = (
    *((1, False), (1, True)),
    *((1, False), (2, True)),
    *((2, False), (4, True)),
    *((4, False), (8, True)),
)


class MnistEnergy(nnx.Module):
    """Four convolutions and two linear layers, for images of 28 × 28.

    1,246,017 parameters at 64 features.
    """

    def __init__(self, features: int = 64, *, stem_features: int = 64, rngs: nnx.Rngs):
        """Draws the parameters.

        Args:
            features: channels of the first strided convolution, doubled by the next two.
            stem_features: channels before it.
            rngs: stream ``params``.
        """
        f = features = count("features", features, at_least=1)
        stem_features = count("stem_features", stem_features, at_least=1)
        widths = (1, stem_features, f, 2 * f, 4 * f)
        self.convolutions = nnx.List(
            [
                SpectralKernel(size, size, *pair, rngs=rngs)
                for size, pair in zip((3, 4, 4, 4), itertools.pairwise(widths), strict=True)
            ]
        )
        self.hidden = SpectralKernel(4 * 4 * 4 * f, 2 * f, rngs=rngs)
        self.hidden_bias = nnx.Param(jnp.zeros(2 * f))
        self.output = _output(2 * f, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The energies.

        Args:
            images: ``[B, 28, 28, 1]`` in 0..1.

        Returns:
            ``[B]``.

        Raises:
            ValueError: images of another shape.
            TypeError: images that are not floating-point, such as bytes.
        """
        shapes(images=(images, "B 28 28 1"))
        x = _pixels(images, self.output)
        for number, kernel in enumerate(self.convolutions):
            x = activation(convolution(x, kernel(), stride=2 if number else 1))
        x = activation(
            x.reshape(len(x), math.prod(x.shape[1:])) @ self.hidden() + self.hidden_bias[...][None]
        )
        return self.output(x)[:, 0]


class ResidualBlock(nnx.Module):
    """Two convolutions beside a skip, with the label in biases and gain."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        halve: bool,
        num_classes: int | None = None,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters; the second convolution starts at zero.

        Args:
            in_features: channels in.
            features: channels out.
            halve: average 2 × 2 pixels at the end.
            num_classes: K, or None without labels.
            dropout: rate after the first convolution.
            rngs: streams ``params`` and, for dropout, ``dropout``.
        """
        self.halve = halve
        rows = () if num_classes is None else (num_classes,)
        self.first = SpectralKernel(3, 3, in_features, features, rngs=rngs)
        self.second = SpectralKernel(3, 3, features, features, start_at_zero=True, rngs=rngs)
        self.first_bias = nnx.Param(jnp.zeros((*rows, in_features)))
        self.second_bias = nnx.Param(jnp.zeros((*rows, features)))
        self.gain = nnx.Param(jnp.ones((*rows, features)))
        if num_classes is not None:
            self.shared_gain = nnx.Param(jnp.zeros(features))
        widens = in_features != features
        self.skip = SpectralKernel(3, 3, in_features, features, rngs=rngs) if widens else None
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """``x [B, height, width, in_features]``, ``labels [B]`` to ``[B, ..., features]``."""

        def of_class(table: nnx.Param) -> jax.Array:
            row = table[...] if labels is None else table[...][labels]
            return row.reshape(-1, 1, 1, row.shape[-1])

        hidden = convolution(x + of_class(self.first_bias), self.first())
        hidden = activation(self.dropout(hidden))
        gain = of_class(self.gain)
        if labels is not None:
            gain = gain + self.shared_gain[...].reshape(1, 1, 1, -1)
        hidden = convolution(hidden + of_class(self.second_bias), self.second()) * gain
        out = hidden + (x if self.skip is None else convolution(x, self.skip()))
        return activation(nnx.avg_pool(out, (2, 2), (2, 2)) if self.halve else out)


class ResNetEnergy(nnx.Module):
    """The residual network of the original, with or without labels.

    ``RESNET`` at 128 features has 5,315,841 parameters, ``RESNET_LARGE`` 18,591,105 (with dropout
    0.5, which is active in training and in its chains).
    """

    def __init__(
        self,
        features: int = 128,
        *,
        channels: int = 3,
        blocks: Sequence[Block] = RESNET,
        num_classes: int | None = None,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
            features: channels of the first convolution.
            channels: of the images.
            blocks: (channels in units of ``features``, whether to halve the resolution) each.
            num_classes: K, or None for an energy of the image alone.
            dropout: rate within the blocks.
            rngs: streams ``params`` and, for dropout, ``dropout``.
        """
        features = count("features", features, at_least=1)
        channels = count("channels", channels, at_least=1)
        if num_classes is not None:
            num_classes = count("num_classes", num_classes, at_least=1)
        self.num_classes = num_classes
        self.least_size = 2 ** sum(halve for _, halve in blocks)
        self.stem = SpectralKernel(3, 3, channels, features, rngs=rngs)
        widths = [features, *(features * units for units, _ in blocks)]
        options: dict[str, Any] = {"num_classes": num_classes, "dropout": dropout, "rngs": rngs}
        self.blocks = nnx.List(
            [
                ResidualBlock(*pair, halve=halve, **options)
                for pair, (_, halve) in zip(itertools.pairwise(widths), blocks, strict=True)
            ]
        )
        self.output = _output(widths[-1], rngs)

    def __call__(self, images: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """The energies.

        Args:
            images: ``[B, height, width, channels]`` in 0..1.
            labels: integers ``[B]`` if the network has classes, else None.

        Returns:
            ``[B]``. A label out of range gives NaN.

        Raises:
            ValueError: labels missing, not wanted or of another batch; images of another rank or
                too small.
            TypeError: images that are not floating-point, such as bytes; labels that are no
                integers.
        """
        size = shapes(images=(images, "B height width channels"))
        if min(size["height"], size["width"]) < self.least_size:
            raise ValueError(
                f"images must be at least {self.least_size} pixels high and wide, to be halved as "
                f"often as this network does, got {list(images.shape)}"
            )
        if (labels is None) != (self.num_classes is None):
            raise ValueError(
                f"labels: this network has num_classes={self.num_classes}, got "
                f"{'no labels' if labels is None else 'labels'}"
            )
        if labels is not None:
            labels = integers("labels", labels)
            shapes(images=(images, "B height width channels"), labels=(labels, "B"))
        x = activation(convolution(_pixels(images, self.output), self.stem()))
        for block in self.blocks:
            x = block(x, labels)
        energy = self.output(jax.nn.relu(x).sum(axis=(1, 2)))[:, 0]
        if labels is None or self.num_classes is None:
            return energy
        return jnp.where((labels >= 0) & (labels < self.num_classes), energy, jnp.nan)


class MultiscaleEnergy(nnx.Module):
    """The mean energy of the image at several scales, each seen by its own network.

        E(x) = mean_s E_s(pool^s(x)),   pool: means of 3 × 3 pixels, every second one

    The pools, the stages and their widths are those of improved contrastive divergence; the parts
    are ``ResNetEnergy`` with its spectral normalisation, where that code has instance norm, weight
    standardisation and, at one place, attention.

    Reference: Du, Li, Tenenbaum, Mordatch, 2021, arXiv 2012.01316, and its code.
    """

    def __init__(
        self,
        features: int = 128,
        *,
        channels: int = 3,
        num_scales: int = 3,
        num_classes: int | None = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        The options are those of ``ResNetEnergy``, with ``num_scales`` from 1 to 4.
        """
        num_scales = count("num_scales", num_scales, at_least=1, at_most=len(MULTISCALE) // 2)
        options: dict[str, Any] = {"channels": channels, "num_classes": num_classes, "rngs": rngs}
        stages = [MULTISCALE[: len(MULTISCALE) - 2 * scale] for scale in range(num_scales)]
        self.parts = nnx.List([ResNetEnergy(features, blocks=s, **options) for s in stages])

    def __call__(self, images: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """The energies.

        Args, Returns, Raises: as ``ResNetEnergy``; images of at least 16 × 16 at 3 scales.
        """
        energies = []
        for part in self.parts:
            energies.append(part(images, labels))
            images = nnx.avg_pool(images, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return jnp.stack(energies).mean(axis=0)


def _pixels(images: jax.Array, layer: nnx.Linear) -> jax.Array:
    """The images in the wider dtype of theirs and the parameters', as all layers compute in it."""
    check_scaled("images", jnp.result_type(images))
    return jnp.asarray(images, jnp.promote_types(jnp.result_type(images), layer.kernel.dtype))


def _output(features: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(features, 1, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
