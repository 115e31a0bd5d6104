"""Classifier of sentence pairs: one recurrent encoder for both, then a perceptron.

    u, v = hidden state at the last token of premise and hypothesis
    logits = W₂ · elu(W₁ · [u; v; u·v; |u - v|] + b₁) + b₂

A plain LSTM is an ON-LSTM of a single level with the article's input gate: both of its master gates
are a softmax over one logit, which is 1, so that ω = 1 and nothing is left but the ordinary gates.
It runs the same code at the same speed; its two master columns change nothing.

Source: arXiv 1810.09536, section 5.4, and its code.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.ordered import OnLstm, OnLstmParams, on_lstm
from zoo.ordered.regularization import dropout

from .logic import RELATIONS, TOKENS

Encoder = Literal["on_lstm", "lstm"]


class PairClassifier(nnx.Module):
    """See the module docstring."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        embed_features: int,
        features: int,
        chunk_size: int,
        master_input: Literal["complement", "reverse"],
        classifier_features: int,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.encoder = encoder
        self.dropout = dropout
        table = (1 + len(TOKENS), embed_features)
        bound = embed_features**-0.5
        self.embedding = nnx.Param(
            jax.random.uniform(rngs.params(), table, minval=-bound, maxval=bound)
        )
        self.layer = OnLstm(
            embed_features,
            features,
            chunk_size=chunk_size if encoder == "on_lstm" else features,
            master_input=master_input if encoder == "on_lstm" else "reverse",
            rngs=rngs,
        )
        self.inner = nnx.Linear(4 * features, classifier_features, rngs=rngs)
        self.outer = nnx.Linear(classifier_features, len(RELATIONS), rngs=rngs)

    def __call__(self, batch: dict[str, jax.Array], *, key: jax.Array | None = None) -> jax.Array:
        """Logits of the relations [B, 7]; see ``PairBatches`` for the batch; no key, no dropout."""
        keys = iter(() if key is None else jax.random.split(key, 4))

        def drop(x: jax.Array) -> jax.Array:
            if key is None or not self.dropout:
                return x
            return dropout(next(keys), x, rate=self.dropout)

        def read(ids: jax.Array, lengths: jax.Array) -> jax.Array:
            hidden = self.layer(drop(self.embedding[...][ids.T])).hidden
            last = jnp.maximum(lengths - 1, 0)[None, :, None]
            return jnp.take_along_axis(hidden, last, axis=0)[0]

        both = [(batch[name], batch[f"{name}_length"]) for name in ("longer", "shorter")]
        if both[0][0].shape == both[1][0].shape:  # one loop compiles faster than two
            longer, shorter = jnp.split(read(*map(jnp.concatenate, zip(*both, strict=True))), 2)
        else:
            longer, shorter = (read(*one) for one in both)
        swapped = batch["swapped"][:, None]
        u, v = jnp.where(swapped, shorter, longer), jnp.where(swapped, longer, shorter)
        joined = jnp.concatenate([u, v, u * v, jnp.abs(u - v)], axis=-1)
        return self.outer(drop(nnx.elu(self.inner(drop(joined)))))

    def depths(self, ids: jax.Array) -> jax.Array:
        """How much is forgotten at each token, [B, T] in [0, 1]; of a plain LSTM, 1 - mean of f."""
        x, layer = self.embedding[...][ids.T], self.layer
        if self.encoder == "on_lstm":
            return layer(x).depths.forget.T
        plain = OnLstmParams(*(p[..., 2:] for p in layer.params))
        output = on_lstm(plain, x, chunk_size=layer.chunk_size, master_input="none")
        return output.depths.forget.T
