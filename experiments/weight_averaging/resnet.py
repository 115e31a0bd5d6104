"""Residual network for small images: three stages of n blocks, depth 6n + 2.

Source: Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep Residual Learning for Image
Recognition", 2015, arXiv 1512.03385, section 4.2, with shortcuts A: strided, and padded with zeros.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx


def convolution(inputs: int, outputs: int, *, stride: int = 1, rngs: nnx.Rngs) -> nnx.Conv:
    """A 3 × 3 convolution as it stands before a batch normalisation."""
    initializer = nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
    return nnx.Conv(
        inputs, outputs, (3, 3), strides=stride, use_bias=False, kernel_init=initializer, rngs=rngs
    )


class Block(nnx.Module):
    """x + f(x), with f of two convolutions."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, rngs: nnx.Rngs) -> None:
        self.stride, self.growth = stride, outputs - inputs
        self.first = convolution(inputs, outputs, stride=stride, rngs=rngs)
        self.first_norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.second = convolution(outputs, outputs, rngs=rngs)
        self.second_norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[batch, height, width, inputs]`` -> the same, thinned by the stride."""
        y = nnx.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        x = x[:, :: self.stride, :: self.stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.growth)))
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    """The complete network: ``[batch, height, width, channels]`` -> logits ``[batch, classes]``."""

    def __init__(
        self, channels: int, classes: int, *, depth: int, width: int, rngs: nnx.Rngs
    ) -> None:
        self.stem = convolution(channels, width, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        blocks, inputs = [], width
        for stage in range(3):
            for number in range((depth - 2) // 6):
                outputs, stride = width * 2**stage, 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(inputs, outputs, stride=stride, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images in 0..1 -> logits."""
        x = nnx.relu(self.stem_norm(self.stem(2 * x - 1)))
        x = functools.reduce(lambda x, block: block(x), self.blocks, x)
        return self.head(x.mean(axis=(1, 2)))
