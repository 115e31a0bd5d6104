"""The captioner: a causal Transformer whose norms see a picture, and the eye that looks at it."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.efficientnet import enlarged
from experiments.image_captioning.config import Config
from experiments.image_captioning.data import Vectors, encoder_of
from zoo.conditional import ConditionalLayerNorm
from zoo.transformer import Transformer, TransformerConfig


class TrainedEncoder(nnx.Module):
    """An encoder with its scaling, so that training begins with the vectors of the frozen one.

    Args:
        encoder: from images ``[B, S, S, 3]`` to features ``[B, E]``.
        size: S, to which images are enlarged.
        mean: of the features, ``[E]``; trained on.
        deviation: of the features, ``[E]``; trained on.
    """

    def __init__(self, encoder: nnx.Module, size: int, mean: np.ndarray, deviation: np.ndarray):
        self.encoder, self.size = encoder, size
        self.mean, self.deviation = nnx.Param(mean), nnx.Param(deviation)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images ``[B, H, W, 3]`` of bytes to image vectors ``[B, E]``."""
        features: Any = self.encoder
        vectors = features(enlarged(images, self.size).astype(self.mean.dtype))
        return (vectors - self.mean[...][None]) / self.deviation[...][None]


class Captioner(nnx.Module):
    """The Transformer, and what makes its condition of a picture.

    Args:
        transformer: whose norms are conditional.
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
    """A captioner at its start."""
    make_norm = functools.partial(
        ConditionalLayerNorm,
        condition_features=len(vectors.mean),
        hidden_features=config.model.hidden_features,
    )
    writer = Transformer(transformer, make_norm=make_norm, rngs=rngs)
    if not config.data.train_encoder:
        return Captioner(writer)
    scale = vectors.mean, vectors.deviation
    return Captioner(
        writer, TrainedEncoder(encoder_of(config.data), config.data.image_size, *scale)
    )


def transformer_config(config: Config, vocab_size: int) -> TransformerConfig:
    """The Transformer; it reads the end token, then the words."""
    model = config.model
    return TransformerConfig(
        vocab_size=vocab_size,
        features=model.features,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        feedforward_features=model.feedforward_features,
        max_positions=config.data.max_words + 1,
        num_segments=0,
        mask="causal",
        norm_position="pre",
        head="tied",
        dropout=model.dropout,
    )
