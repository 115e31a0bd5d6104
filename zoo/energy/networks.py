"""The energy networks of the original: images in, one energy each out.

Every convolution and all but the last linear layer are spectrally normalised, nothing else
normalises. Labels enter a residual block through the bias of what goes into each convolution and
through the gain of what leaves the second:

    h = act(conv₁(x + b₁[y])),   out = act(pool(conv₂(h + b₂[y])·(g[y] + c) + skip(x)))

Activations are leaky ReLUs of slope 0.2, convolutions have no bias of their own, the last features
are summed over space, so that the energy is extensive: twice the picture, twice the energy.

Source: Du, Mordatch, 2019, arXiv 1903.08689, and its code.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

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
        f = features
        self.convolutions = nnx.List(
            [
                SpectralKernel(3, 3, 1, stem_features, rngs=rngs),
                SpectralKernel(4, 4, stem_features, f, rngs=rngs),
                SpectralKernel(4, 4, f, 2 * f, rngs=rngs),
                SpectralKernel(4, 4, 2 * f, 4 * f, rngs=rngs),
            ]
        )
        self.hidden = SpectralKernel(4 * 4 * 4 * f, 2 * f, rngs=rngs)
        self.hidden_bias = nnx.Param(jnp.zeros(2 * f))
        self.output = nnx.Linear(2 * f, 1, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The energies.

        Args:
            images: ``[B, 28, 28, 1]`` in 0..1.

        Returns:
            ``[B]``.

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (28, 28, 1):
            raise ValueError(f"images: expected [B, 28, 28, 1], got {list(images.shape)}")
        x = images
        for number, kernel in enumerate(self.convolutions):
            x = activation(convolution(x, kernel(), stride=2 if number else 1))
        x = activation(x.reshape(len(x), -1) @ self.hidden() + self.hidden_bias[...][None])
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
        self.skip = (
            None
            if in_features == features
            else SpectralKernel(3, 3, in_features, features, rngs=rngs)
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """One block.

        Args:
            x: ``[B, height, width, in_features]``.
            labels: integers ``[B]``, or None.

        Returns:
            ``[B, height, width, features]``, halved on request.
        """

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
        self.num_classes = num_classes
        self.least_size = 2 ** sum(halve for _, halve in blocks)
        self.stem = SpectralKernel(3, 3, channels, features, rngs=rngs)
        widths = [features, *(features * units for units, _ in blocks)]
        self.blocks = nnx.List(
            [
                ResidualBlock(
                    before,
                    after,
                    halve=halve,
                    num_classes=num_classes,
                    dropout=dropout,
                    rngs=rngs,
                )
                for before, after, (_, halve) in zip(widths, widths[1:], blocks, strict=False)
            ]
        )
        self.output = nnx.Linear(
            widths[-1], 1, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
        )

    def __call__(self, images: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """The energies.

        Args:
            images: ``[B, height, width, channels]`` in 0..1.
            labels: integers ``[B]``, just when the network has classes.

        Returns:
            ``[B]``. A label out of range gives NaN.

        Raises:
            ValueError: labels missing, not wanted or of another batch; images without their axes or
                too small.
        """
        if images.ndim != 4:
            raise ValueError(
                f"images: expected [B, height, width, channels], got {list(images.shape)}"
            )
        if min(images.shape[1:3]) < self.least_size:
            raise ValueError(
                f"images: this network halves them to 1/{self.least_size}, so height and width "
                f"must be at least {self.least_size}, got {list(images.shape[1:3])}"
            )
        if (labels is None) != (self.num_classes is None):
            raise ValueError(
                f"labels: this network has num_classes={self.num_classes}, got "
                f"{'no labels' if labels is None else 'labels'}; give labels just when it has them"
            )
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"labels: expected {images.shape[:1]}, got {labels.shape}")
        x = activation(convolution(images, self.stem()))
        for block in self.blocks:
            x = block(x, labels)
        energy = self.output(jax.nn.relu(x).sum(axis=(1, 2)))[:, 0]
        if labels is None or self.num_classes is None:
            return energy
        return jnp.where((labels >= 0) & (labels < self.num_classes), energy, jnp.nan)


class MultiscaleEnergy(nnx.Module):
    """The mean energy of the image, of its half and of its quarter, each seen by its own network.

        E(x) = mean_s E_s(pool^s(x)),   pool: means of 3 × 3 pixels, every second one

    The coarse networks see the whole picture, the fine one its strokes. The pools, the stages and
    their widths are those of improved contrastive divergence; the parts are ``ResNetEnergy`` with
    its spectral normalisation, where that code has instance norm, weight standardisation and, at
    one place, attention.

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

        Args:
            features: channels of the first convolution of each network.
            channels: of the images.
            num_scales: 1 to 4.
            num_classes: K, or None for an energy of the image alone.
            rngs: stream ``params``.

        Raises:
            ValueError: num_scales outside 1…4.
        """
        if not 1 <= num_scales <= len(MULTISCALE) // 2:
            raise ValueError(f"num_scales must be in 1..{len(MULTISCALE) // 2}, got {num_scales}")
        self.parts = nnx.List(
            [
                ResNetEnergy(
                    features,
                    channels=channels,
                    blocks=MULTISCALE[: len(MULTISCALE) - 2 * scale],
                    num_classes=num_classes,
                    rngs=rngs,
                )
                for scale in range(num_scales)
            ]
        )

    def __call__(self, images: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """The energies.

        Args:
            images: ``[B, height, width, channels]`` in 0..1, at least 16 pixels high and wide.
            labels: integers ``[B]``, just when the network has classes.

        Returns:
            ``[B]``. A label out of range gives NaN.

        Raises:
            ValueError: as ``ResNetEnergy``.
        """
        energies = []
        for part in self.parts:
            energies.append(part(images, labels))
            images = nnx.avg_pool(images, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return jnp.stack(energies).mean(axis=0)


def convolution(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """``[B, H, W, I]`` and ``[h, w, I, O]`` to ``[B, ⌈H/stride⌉, ⌈W/stride⌉, O]``, same padding.

    XLA's CPU compiler has slow convolutions inside loops, and every chain is a loop: there the same
    numbers come from matrix products.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_sum_of_products, stride=stride),
        default=functools.partial(_convolution, stride=stride),
    )


def _convolution(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _sum_of_products(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """The image, moved to every place of the kernel, times the matrix there.

    A stride is taken out first: its square of pixels becomes one pixel of as many more channels.
    """
    sizes, lengths = x.shape[1:3], kernel.shape[:2]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    edges = [_edges(*pair, stride) for pair in zip(sizes, lengths, strict=True)]
    fill = [(0, -length % stride) for length in lengths]
    x = _blocks(jnp.pad(x, ((0, 0), *edges, (0, 0))), stride)
    kernel = jnp.moveaxis(jnp.pad(kernel, (*fill, (0, 0), (0, 0))), -1, 0)
    kernel = jnp.moveaxis(_blocks(kernel, stride), 0, -1)
    height, width = (-(-size // stride) for size in sizes)
    products = [
        jnp.matmul(x[:, i : i + height, j : j + width], kernel[i, j], preferred_element_type=wide)
        for i, j in itertools.product(*map(range, kernel.shape[:2]))
    ]
    return functools.reduce(jnp.add, products).astype(x.dtype)


def _edges(size: int, length: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis: same padding, and on to whole strides for the last place."""
    out, places = -(-size // stride), -(-length // stride)
    before = max((out - 1) * stride + length - size, 0) // 2
    return before, (out + places - 1) * stride - size - before


def _blocks(x: jax.Array, side: int) -> jax.Array:
    """``[B, H, W, I]`` to ``[B, H/side, W/side, side²·I]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
    return x.reshape(batch, height // side, width // side, side * side * channels)
