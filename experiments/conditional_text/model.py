"""A causal Transformer that is told the class of its text in one of three ways.

    norm       every LayerNorm is conditional on the vector of the class
    prefix     the text begins with a token of the class
    embedding  the vector of the class is added to every embedded token

All three know a further class K, «not told», which is what guidance compares with.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.conditional_text.config import Config, Variant
from experiments.conditional_text.texts import Tokens
from zoo.conditional import ClassCondition, ConditionalLayerNorm
from zoo.transformer import Transformer, TransformerConfig, load_bert
from zoo.transformer.bert_weights import bert_config
from zoo.transformer.layers import KeyValueCache


class Generator(nnx.Module):
    """A language model of K classes: logits of V tokens, given what came before and the class.

    Args:
        config: sizes.
        variant: how the class is told.
        num_classes: K.
        tokens: V tokens, of which one begins a text.
        rngs: Flax's random streams; ``params`` is used.
    """

    def __init__(
        self, config: Config, variant: Variant, num_classes: int, tokens: Tokens, *, rngs: nnx.Rngs
    ):
        self.variant, self.num_classes = variant, num_classes
        self.size, self.start = tokens.size, tokens.start
        model = config.model
        if model.pretrained:
            transformer = pretrained_config(config)
        else:
            untold = num_classes + 1
            transformer = TransformerConfig(
                vocab_size=tokens.size + (untold if variant == "prefix" else 0),
                features=model.features,
                num_layers=model.num_layers,
                num_heads=model.num_heads,
                feedforward_features=model.feedforward_features,
                max_positions=config.training.length,
                num_segments=untold if variant == "embedding" else 0,
                mask="causal",
                norm_position="pre",
                head="tied",
                dropout=model.dropout,
            )
        if variant != "norm":
            self.model = Transformer(transformer, rngs=rngs)
            return
        norm = functools.partial(
            ConditionalLayerNorm,
            condition_features=model.condition_features,
            hidden_features=model.hidden_features,
        )
        self.model = Transformer(transformer, make_norm=norm, rngs=rngs)
        self.condition = ClassCondition(
            num_classes,
            model.condition_features,
            initializer=nnx.initializers.normal(model.initial_condition),
            rngs=rngs,
        )

    def __call__(
        self,
        ids: jax.Array,
        labels: jax.Array,
        *,
        document_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Ids ``[B, T]`` and labels ``[B]`` in 0..K, K for «not told», to logits ``[B, T, V]``."""
        ids, told = self._told(ids, labels)
        return self.model(ids, document_ids=document_ids, key=key, **told)[..., : self.size]

    def init_cache(self, batch_size: int, length: int | None = None) -> KeyValueCache:
        """As `zoo.decoding` asks for it."""
        return self.model.init_cache(batch_size, length)

    def decode(
        self, ids: jax.Array, cache: KeyValueCache, *, condition: jax.Array
    ) -> tuple[jax.Array, KeyValueCache]:
        """As `zoo.decoding` asks for it; the condition is the labels."""
        ids, told = self._told(ids, condition)
        logits, cache = self.model.decode(ids, cache, **told)
        return logits[..., : self.size], cache

    def _told(self, ids: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        if self.variant == "prefix":
            return jnp.where(ids == self.start, self.size + labels[:, None], ids), {}
        if self.variant == "embedding":
            return ids, {"segment_ids": jnp.broadcast_to(labels[:, None], ids.shape)}
        told = (labels != self.num_classes)[:, None]
        vectors = self.condition(jnp.where(told[:, 0], labels, 0))
        return ids, {"condition": jnp.where(told, vectors, 0)}


def pretrained_config(config: Config) -> TransformerConfig:
    """The BERT of a folder, reading from left to right."""
    found = bert_config(pathlib.Path(config.model.pretrained).expanduser())
    if found.max_positions < config.training.length:
        raise ValueError(
            f"training.length must be at most the {found.max_positions} positions of "
            f"model.pretrained, got {config.training.length}"
        )
    return dataclasses.replace(
        found, mask="causal", head="mlm", pooler=False, dropout=config.model.dropout
    )


def with_pretrained(parameters: Any, config: Config) -> Any:
    """The parameters of a Generator with the weights of the folder.

    What the folder lacks stays as it was: the conditions, and the head if it holds an encoder.
    """
    folder = pathlib.Path(config.model.pretrained).expanduser()
    own = dataclasses.replace(bert_config(folder), pooler=False)
    weights = nnx.to_pure_dict(nnx.state(load_bert(folder, config=own)[0], nnx.Param))

    def filled(old: Any, new: Any) -> Any:
        if isinstance(old, dict):
            return {
                name: filled(old[name], new[name]) if name in new else old[name] for name in old
            }
        return jax.device_put(np.asarray(new), old.sharding)

    return parameters | {"model": filled(parameters["model"], weights)}
