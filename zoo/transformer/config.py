"""Sizes and variants of a Transformer."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from zoo.transformer.attention import PATTERNS, Pattern

# What the layers tag with `jax.ad_checkpoint.checkpoint_name`, to be kept or read by name.
TAGS = ("embeddings", "attention", "feedforward", "hidden", "logits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and variants of a :class:`Transformer`; the defaults are BERT-base.

    Attributes:
        vocab_size: V, number of tokens.
        features: D, width of the model.
        num_layers: number of layers.
        num_heads: N; must divide the features.
        feedforward_features: inner width of the feed-forward part.
        max_positions: longest sequence, or longest document in packed rows.
        num_segments: number of segments; 0: no segment embedding.
        mask: ``"bidirectional"``, ``"causal"`` or ``"prefix"``, see ``zoo.transformer.attention``.
        norm_position: ``"post"`` (BERT) or ``"pre"`` (GPT-2).
        activation: ``"gelu"`` (by the error function), ``"gelu_tanh"`` or ``"relu"``.
        head: ``"mlm"``, ``"tied"``, or ``"none"`` for an encoder without logits.
        pooler: whether there is BERT's pooler, tanh(W x + b) of the first position.
        dropout: rate for embeddings and for what attention and feed-forward part add. Attention
            weights are not dropped: fused kernels cannot.
        epsilon: of LayerNorm.
        initial_scale: standard deviation of the truncated normal that kernels start from.
        scan_layers: one compiled layer in a loop instead of all written out. Compiles faster; the
            numbers are the same.
        remat: what the forward pass keeps for the gradient: None keeps all, ``"full"`` the input of
            each layer, ``"dots"`` also the matrix products, a tuple of names what carries these
            tags, among ``TAGS``.
        attention_implementation: None, ``"xla"`` or ``"cudnn"``.

    Raises:
        ValueError: if a size is not positive or the heads do not divide the features.

    >>> TransformerConfig(vocab_size=100, features=60, num_heads=8)
    Traceback (most recent call last):
    ...
    ValueError: num_heads must divide features, got num_heads=8 and features=60
    """

    vocab_size: int
    features: int = 768
    num_layers: int = 12
    num_heads: int = 12
    feedforward_features: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    mask: Pattern = "bidirectional"
    norm_position: Literal["post", "pre"] = "post"
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    head: Literal["mlm", "tied", "none"] = "mlm"
    pooler: bool = False
    dropout: float = 0.1
    epsilon: float = 1e-12
    initial_scale: float = 0.02
    scan_layers: bool = True
    remat: str | tuple[str, ...] | None = None
    attention_implementation: Literal["xla", "cudnn"] | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "features",
            "num_layers",
            "num_heads",
            "feedforward_features",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_segments < 0:
            raise ValueError(f"num_segments must be at least 0, got {self.num_segments}")
        if self.features % self.num_heads:
            raise ValueError(
                f"num_heads must divide features, got num_heads={self.num_heads} and "
                f"features={self.features}"
            )
        for name, known in (
            ("mask", PATTERNS),
            ("norm_position", ("post", "pre")),
            ("activation", ("gelu", "gelu_tanh", "relu")),
            ("head", ("mlm", "tied", "none")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not (self.epsilon > 0 and self.initial_scale > 0):
            raise ValueError(
                f"epsilon and initial_scale must be positive, got {self.epsilon} and "
                f"{self.initial_scale}"
            )
        names = self.remat if isinstance(self.remat, tuple) else ()
        if isinstance(self.remat, str) and self.remat not in ("full", "dots"):
            raise ValueError(f"remat must be None, 'full', 'dots' or names, got {self.remat!r}")
        if set(names) - set(TAGS):
            raise ValueError(f"remat names must be among {TAGS}, got {names}")


def check_inputs(
    config: TransformerConfig,
    ids: jax.Array,
    segment_ids: jax.Array | None,
    mask: jax.Array | None,
    document_ids: jax.Array | None,
) -> None:
    """Refuses what a model of this config cannot read; only shapes and dtypes are looked at."""
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids must be integers, got {ids.dtype}; encode the text first")
    if ids.ndim != 2:
        raise ValueError(f"ids must be [batch, time], got shape {ids.shape}")
    for name, other in (
        ("segment_ids", segment_ids),
        ("mask", mask),
        ("document_ids", document_ids),
    ):
        if other is not None and other.shape != ids.shape:
            raise ValueError(f"{name} must have the shape of ids, {ids.shape}, got {other.shape}")
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"mask must be bool, True at tokens, got {mask.dtype}; use ids != pad_id")
    if ids.shape[1] > config.max_positions:
        raise ValueError(
            f"ids have {ids.shape[1]} positions, but the model has max_positions="
            f"{config.max_positions}: cut the rows, or make a model with more positions"
        )
    if segment_ids is None and config.mask == "prefix":
        raise ValueError("segment_ids must be given for mask='prefix': 0 is read, 1 is written")
    if segment_ids is not None and not config.num_segments and config.mask != "prefix":
        raise ValueError("segment_ids must be None for a model with num_segments=0")
