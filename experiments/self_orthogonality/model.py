"""The network under comparison: stock Flax layers, whose responses are handed out as well."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.orthogonal import filter_responses

LAYERS = ("first", "second", "dense")


class Bias(nnx.Module):
    """What stands in the place of batch normalisation."""

    def __init__(self, features: int):
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Adds the bias, over all leading axes."""
        return x + jnp.expand_dims(self.bias[...], tuple(range(x.ndim - 1)))


class Classifier(nnx.Module):
    """Image -> two convolutions of stride 2 -> dense -> logits, ReLU between them."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        first_features: int,
        second_features: int,
        dense_features: int,
        batch_norm: bool,
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        options: dict[str, Any] = {"strides": 2, "use_bias": False, "rngs": rngs}
        self.first = nnx.Conv(channels, first_features, (5, 5), **options)
        self.second = nnx.Conv(first_features, second_features, (3, 3), **options)
        flat = math.ceil(height / 4) * math.ceil(width / 4) * second_features
        self.dense = nnx.Linear(flat, dense_features, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(dense_features, num_classes, rngs=rngs)
        widths = {"first": first_features, "second": second_features, "dense": dense_features}
        for name, features in widths.items():
            norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs) if batch_norm else None
            setattr(self, f"{name}_norm", norm or Bias(features))

    def __call__(
        self, images: jax.Array, *, stop_input_gradient: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits ``[B, classes]``, and each hidden layer's responses ``[B, ..., features]``.

        The responses are those before normalisation, bias and ReLU. Compiled, they are not computed
        a second time.
        """
        x, responses = images, {}
        for name in LAYERS:
            layer = getattr(self, name)
            x = x.reshape(len(x), -1) if name == "dense" else x
            responses[name] = filter_responses(
                x, layer.kernel[...], strides=2, stop_input_gradient=stop_input_gradient
            )
            x = nnx.relu(getattr(self, f"{name}_norm")(layer(x)))
        return self.out(x), responses
