"""A class-conditional causal Transformer, conditioned on the class in one of three ways.

    norm       every LayerNorm is conditional on the vector of the class
    prefix     the text begins with a token of the class
    embedding  the vector of the class is added to every embedded token

All three know a further label K, the null label: unconditional, which guidance compares with.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from zoo.conditional import ClassCondition, ConditionalLayerNorm
from zoo.data import Vocabulary
from zoo.transformer import Transformer, TransformerConfig, load_bert
from zoo.transformer.weights import bert_config

from ..command_line import local_path
from .config import Config, Variant
from .texts import start_of

SIZES = ("features", "num_layers", "num_heads", "feedforward_features", "dropout")


class Generator(nnx.Module):
    """A language model of K classes: logits of V tokens, given the previous ones and the class.

    Args:
        config: sizes.
        variant: how the class enters.
        num_classes: K.
        vocabulary: V tokens.
        rngs: Flax's random streams; ``params`` is used.
    """

    def __init__(
        self,
        config: Config,
        variant: Variant,
        num_classes: int,
        vocabulary: Vocabulary,
        *,
        rngs: nnx.Rngs,
    ):
        self.variant, self.null_label = variant, num_classes
        self.size, self.start = len(vocabulary), start_of(vocabulary)
        transformer = transformer_config(config, variant, num_classes, self.size)
        if variant != "norm":
            self.model = Transformer(transformer, rngs=rngs)
            return
        model = config.model
        norm = functools.partial(
            ConditionalLayerNorm,
            condition_features=model.condition_features,
            hidden_features=model.hidden_features,
        )
        self.model = Transformer(transformer, make_norm=norm, rngs=rngs)
        draw = nnx.initializers.normal(model.initial_condition)
        self.condition = ClassCondition(
            num_classes, model.condition_features, initializer=draw, rngs=rngs
        )

    def __call__(
        self,
        ids: jax.Array,
        labels: jax.Array,
        *,
        document_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Ids ``[B, T]`` and labels ``[B]`` in 0..K to logits ``[B, T, V]``."""
        ids, inputs = self._inputs(ids, labels)
        return self.model(ids, document_ids=document_ids, key=key, **inputs)[..., : self.size]

    def init_cache(self, batch_size: int, length: int | None = None) -> Any:
        """The cache of `zoo.decoding`."""
        return self.model.init_cache(batch_size, length)

    def decode(self, ids: jax.Array, cache: Any, *, condition: jax.Array) -> tuple[jax.Array, Any]:
        """The step of `zoo.decoding`; the condition is the labels, ``[B, 1]``."""
        ids, inputs = self._inputs(ids, condition[:, 0])
        logits, cache = self.model.decode(ids, cache, **inputs)
        return logits[..., : self.size], cache

    def _inputs(self, ids: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Ids and keywords for the Transformer."""
        if self.variant == "prefix":
            return jnp.where(ids == self.start, self.size + labels[:, None], ids), {}
        if self.variant == "embedding":
            return ids, {"segment_ids": jnp.broadcast_to(labels[:, None], ids.shape)}
        has_class = labels != self.null_label
        vectors = self.condition(jnp.where(has_class, labels, 0))
        return ids, {"condition": jnp.where(has_class[:, None], vectors, 0)}


def transformer_config(
    config: Config, variant: Variant, num_classes: int, vocab_size: int
) -> TransformerConfig:
    """The Transformer behind a Generator: from scratch, or a BERT that reads from left to right."""
    model, length = config.model, config.training.length
    if model.pretrained:
        found = bert_config(local_path(model.pretrained))
        if found.max_positions < length:
            raise ValueError(
                f"training.length must be at most the {found.max_positions} positions of "
                f"model.pretrained, got {length}"
            )
        causal: dict[str, Any] = {
            "mask": "causal",
            "head": "mlm",
            "pooler": False,
            "dropout": model.dropout,
            "attention_dropout": 0.0,
        }
        return dataclasses.replace(found, **causal)
    labels = num_classes + 1
    return TransformerConfig(
        vocab_size=vocab_size + (labels if variant == "prefix" else 0),
        **{name: getattr(model, name) for name in SIZES},
        max_positions=length,
        num_segments=labels if variant == "embedding" else 0,
        mask="causal",
        norm_position="pre",
        head="tied",
    )


def with_pretrained(init: Callable[[jax.Array], Any], config: Config) -> Callable[[jax.Array], Any]:
    """The initialiser of a Generator, then the weights of the pretrained model.

    What its folder lacks stays as drawn: the conditions, and the head if it holds an encoder.
    """
    folder = local_path(config.model.pretrained)
    own = dataclasses.replace(bert_config(folder), pooler=False)
    weights = nnx.to_pure_dict(nnx.state(load_bert(folder, config=own)[0], nnx.Param))

    def init_pretrained(key: jax.Array) -> Any:
        parameters = init(key)
        model = flatten_dict(parameters["model"]) | flatten_dict(weights)
        return parameters | {"model": unflatten_dict(model)}

    return init_pretrained
