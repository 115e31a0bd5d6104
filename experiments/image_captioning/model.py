"""The captioner: a causal Transformer whose norms are conditional on the vector of a picture."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from zoo.conditional import ConditionalLayerNorm
from zoo.transformer import Transformer, TransformerConfig

from ..command_line import local_path
from ..efficientnet import enlarge, load_efficientnet
from .config import Config
from .data import Vectors

SIZES = ("features", "num_layers", "num_heads", "feedforward_features", "dropout")


class TrainedEncoder(nnx.Module):
    """An encoder with its scaling: before the first step it gives the vectors of the frozen one.

    Args:
        encoder: from images ``[B, S, S, 3]`` to features ``[B, E]``.
        size: S, to which images are enlarged.
        mean: of the features, ``[E]``; a parameter.
        deviation: of the features, ``[E]``; a parameter.
    """

    def __init__(self, encoder: Any, size: int, mean: np.ndarray, deviation: np.ndarray):
        self.encoder, self.size = encoder, size
        self.mean, self.deviation = nnx.Param(mean), nnx.Param(deviation)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images ``[B, H, W, 3]`` of bytes to image vectors ``[B, E]``."""
        features = self.encoder(enlarge(images, self.size).astype(self.mean.dtype))
        return (features - self.mean[...][None]) / self.deviation[...][None]


class Captioner(nnx.Module):
    """The Transformer, and what computes its condition from a picture.

    Args:
        transformer: has conditional norms.
        encoder: trained along with it, or None where pictures come as their vectors.
    """

    def __init__(self, transformer: Transformer, encoder: TrainedEncoder | None = None):
        self.transformer, self.encoder = transformer, encoder

    def condition(self, images: jax.Array) -> jax.Array:
        """The image vectors ``[B, E]``."""
        return images if self.encoder is None else self.encoder(images)


def make_captioner(
    config: Config, transformer: TransformerConfig, vectors: Vectors, *, rngs: nnx.Rngs
) -> Captioner:
    """A captioner before training."""
    make_norm = functools.partial(
        ConditionalLayerNorm,
        condition_features=len(vectors.mean),
        hidden_features=config.model.hidden_features,
    )
    writer = Transformer(transformer, make_norm=make_norm, rngs=rngs)
    if not config.data.train_encoder:
        return Captioner(writer)
    network = load_efficientnet(local_path(config.data.encoder))
    size = config.data.image_size
    return Captioner(writer, TrainedEncoder(network, size, vectors.mean, vectors.deviation))


def transformer_config(config: Config, vocab_size: int) -> TransformerConfig:
    """The Transformer; it reads the end token, then the words."""
    model = config.model
    return TransformerConfig(
        vocab_size=vocab_size,
        **{name: getattr(model, name) for name in SIZES},
        max_positions=config.data.max_words + 1,
        num_segments=0,
        mask="causal",
        norm_position="pre",
        head="tied",
    )
