"""Sizes and variants of a Transformer."""

import dataclasses
from typing import Literal

import jax

from zoo._checks import choice, count, integers, number, shapes
from zoo.transformer.attention import PATTERNS, Pattern

# Values tagged with `jax.ad_checkpoint.checkpoint_name`, to be kept or read by name.
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
        max_positions: longest sequence, or longest document in packed rows, which may be longer.
        num_segments: number of segments; 0: no segment embedding.
        mask: ``"bidirectional"``, ``"causal"`` or ``"prefix"``, see ``zoo.transformer.attention``.
        norm_position: ``"post"`` (BERT) or ``"pre"`` (GPT-2).
        activation: ``"gelu"`` (by the error function), ``"gelu_tanh"`` or ``"relu"``.
        positions: ``"learned"``, or ``"rotary"`` (RoFormer), see ``zoo.transformer.attention``.
        rotary_base: b of rotary positions.
        embedding_features: E, width of the embeddings, projected to D where it differs (ELECTRA);
            None: D.
        head: ``"mlm"``, ``"tied"``, or ``"none"`` for an encoder without logits.
        tie_embeddings: whether logits are products with the token embedding, in both heads; False:
            with a table of their own (an untied decoder).
        pooler: adds BERT's pooler, tanh(W x + b) of the first position.
        dropout: rate for embeddings and for what attention and feed-forward part add.
        attention_dropout: rate for attention weights. Fused kernels cannot drop them: with a key
            they are computed by XLA.
        epsilon: of LayerNorm.
        initial_scale: standard deviation of the truncated normal that kernels start from.
        scan_layers: whether one compiled layer runs in a loop; the numbers are the same as with
            all layers unrolled, and it compiles faster.
        remat: what the forward pass keeps for the gradient: None keeps all, ``"full"`` the input of
            each layer, ``"dots"`` also the matrix products, a tuple those values of ``TAGS``.
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
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = 10_000.0
    embedding_features: int | None = None
    head: Literal["mlm", "tied", "none"] = "mlm"
    tie_embeddings: bool = True
    pooler: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.0
    epsilon: float = 1e-12
    initial_scale: float = 0.02
    scan_layers: bool = True
    remat: str | tuple[str, ...] | None = None
    attention_implementation: Literal["xla", "cudnn"] | None = None

    def __post_init__(self) -> None:
        sizes = "vocab_size features num_layers num_heads feedforward_features max_positions"
        for name in sizes.split():
            count(name, getattr(self, name), at_least=1)
        count("num_segments", self.num_segments)
        if self.features % self.num_heads:
            raise ValueError(
                f"num_heads must divide features, got num_heads={self.num_heads} and "
                f"features={self.features}"
            )
        choice("mask", self.mask, PATTERNS)
        choice("norm_position", self.norm_position, ("post", "pre"))
        choice("activation", self.activation, ("gelu", "gelu_tanh", "relu"))
        choice("positions", self.positions, ("learned", "rotary"))
        number("rotary_base", self.rotary_base, above=0)
        if self.positions == "rotary" and self.features // self.num_heads % 2:
            raise ValueError(
                "positions='rotary' needs heads of an even number of units, got "
                f"{self.features // self.num_heads}"
            )
        if self.embedding_features is not None:
            width = count("embedding_features", self.embedding_features, at_least=1)
            if width != self.features and self.head == "tied" and self.tie_embeddings:
                raise ValueError(
                    "embedding_features must be features for head='tied' with tie_embeddings=True, "
                    f"got {width} and {self.features}"
                )
        choice("tie_embeddings", self.tie_embeddings, (True, False))
        choice("head", self.head, ("mlm", "tied", "none"))
        number("dropout", self.dropout, at_least=0, below=1)
        number("attention_dropout", self.attention_dropout, at_least=0, below=1)
        number("epsilon", self.epsilon, above=0)
        number("initial_scale", self.initial_scale, above=0)
        if isinstance(self.remat, tuple):
            for name in self.remat:
                choice("remat", name, TAGS)
        else:
            choice("remat", self.remat, (None, "full", "dots"))


def embedding_width(config: TransformerConfig) -> int:
    """E, the width of the embeddings."""
    return config.features if config.embedding_features is None else config.embedding_features


def check_inputs(
    config: TransformerConfig,
    ids: jax.Array,
    segment_ids: jax.Array | None,
    mask: jax.Array | None,
    document_ids: jax.Array | None,
) -> None:
    """Refuses inputs whose shapes or dtypes do not fit the config."""
    for name, numbers in (("segment_ids", segment_ids), ("document_ids", document_ids)):
        if numbers is not None:
            integers(name, numbers)
    others = {"segment_ids": segment_ids, "mask": mask, "document_ids": document_ids}
    given = {name: (other, "B T") for name, other in others.items() if other is not None}
    shapes(ids=(integers("ids", ids), "B T"), **given)
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"mask must be bool, True at tokens, got {mask.dtype}; use ids != pad_id")
    if document_ids is None and ids.shape[1] > config.max_positions:
        raise ValueError(
            f"ids have {ids.shape[1]} positions, but the model has max_positions="
            f"{config.max_positions}: cut the rows, or make a model with more positions"
        )
    if segment_ids is None and config.mask == "prefix":
        raise ValueError("segment_ids must be given for mask='prefix': 0 prompt, 1 continuation")
    if segment_ids is not None and not config.num_segments and config.mask != "prefix":
        raise ValueError("segment_ids must be None for a model with num_segments=0")
