"""A language model of stacked ON-LSTM layers with tied word vectors.

    ids -> embedding E -> ON-LSTM × num_layers -> features · Eᵀ + bias = logits

The widths are embed, hidden, …, hidden, embed: the last layer has the width of the word vectors, so
that input and output share E. Dropout is that of Merity, Keskar, Socher, "Regularizing and
Optimizing LSTM Language Models", 2017, arXiv 1708.02182: one mask for all steps of a sequence,
whole words of E, and recurrent weights.

Source: arXiv 1810.09536, section 5.1.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import _checks
from zoo.ordered._loop import dot
from zoo.ordered.ordered_lstm import (
    Depths,
    MasterGates,
    MasterInput,
    OnLstm,
    OnLstmCarry,
    OnLstmParams,
    initial_carry,
    master_gates,
    on_lstm,
)
from zoo.ordered.regularization import dropout, weight_drop


class LanguageModelOutput(NamedTuple):
    """The result of :class:`OnLstmLanguageModel`."""

    logits: jax.Array  # [B, T, V] in at least float32
    features: jax.Array  # [B, T, embed], the last layer before its dropout
    carries: tuple[OnLstmCarry, ...]  # one per layer, after the last step
    depths: Depths  # [layers, B, T] each, after reading each word


class OnLstmLanguageModel(nnx.Module):
    """ON-LSTM language model, see the module docstring.

    Args:
        vocab_size: V, number of tokens.
        embed_features: width of the word vectors and of the last layer.
        hidden_features: width of the other layers.
        num_layers: number of layers.
        chunk_size: C, units that share a master gate value; must divide both widths.
        master_input: ``"complement"`` (paper), ``"reverse"`` (article) or ``"none"`` (plain LSTM).
        embedding_dropout: share of words whose vector is 0 for one call, at input only.
        input_dropout: locked dropout of the embedded words.
        hidden_dropout: locked dropout between layers.
        output_dropout: locked dropout of the features before the logits.
        recurrent_dropout: share of recurrent weights set to 0 for one call, see ``weight_drop``.
        inverted_weight_drop: False scales as the original does, see ``weight_drop``.
        param_dtype: dtype of the parameters.
        rngs: Flax's random streams; ``params`` is used.

    Raises:
        ValueError: if ``chunk_size`` does not divide a width, or ``num_layers`` < 1.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = OnLstmLanguageModel(10, 4, 4, 3, chunk_size=2, rngs=nnx.Rngs(0))
    >>> output = model(jnp.zeros((2, 5), jnp.int32))
    >>> output.logits.shape, output.depths.forget.shape
    ((2, 5, 10), (3, 2, 5))

    Reference: arXiv 1810.09536, section 5.1; arXiv 1708.02182.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_features: int,
        hidden_features: int,
        num_layers: int,
        *,
        chunk_size: int,
        master_input: MasterInput = "complement",
        embedding_dropout: float = 0.1,
        input_dropout: float = 0.5,
        hidden_dropout: float = 0.3,
        output_dropout: float = 0.45,
        recurrent_dropout: float = 0.45,
        inverted_weight_drop: bool = True,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.embedding_dropout = embedding_dropout
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.output_dropout = output_dropout
        self.recurrent_dropout = recurrent_dropout
        self.inverted_weight_drop = inverted_weight_drop
        self.chunk_size = chunk_size
        table = (vocab_size, embed_features)
        # The published ±0.1 at its 400 features; narrower vectors get the same length. With ±0.1
        # at 32 features the model learns word frequencies, and then nothing for an epoch.
        bound = 2 * embed_features**-0.5
        key = rngs.params()
        self.embedding = nnx.Param(jax.random.uniform(key, table, param_dtype, -bound, bound))
        self.bias = nnx.Param(jnp.zeros((vocab_size,), param_dtype))
        inner = [hidden_features] * (num_layers - 1)
        widths = [embed_features, *inner, embed_features]
        self.layers = nnx.List(
            OnLstm(
                before,
                after,
                chunk_size=chunk_size,
                master_input=master_input,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for before, after in itertools.pairwise(widths)
        )

    def initial_carries(self, batch: int, dtype: Any = None) -> tuple[OnLstmCarry, ...]:
        """The carries of ``batch`` sequences that have read nothing, one per layer.

        In the dtype of the embedding, as those after a step are, if ``dtype`` is None.
        """
        dtype = self.embedding[...].dtype if dtype is None else dtype
        return tuple(
            initial_carry(batch, layer.features, chunk_size=self.chunk_size, dtype=dtype)
            for layer in self.layers
        )

    def __call__(
        self,
        ids: jax.Array,
        carries: tuple[OnLstmCarry, ...] | None = None,
        *,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> LanguageModelOutput:
        """Reads ``ids`` and predicts at each position what comes next.

        Args:
            ids: ``[B, T]`` int. An id outside the vocabulary gives NaN logits from there on.
            carries: the ``carries`` of an earlier call to go on from, zeros if None.
            key: typed key for dropout, consumed; None for evaluation.
            mask: ``[B, T]`` bool, false at padding, which is not read: see :func:`on_lstm`.

        Returns:
            ``LanguageModelOutput``.

        Raises:
            TypeError: if ``ids`` are not integers; ValueError: if their shape is not [batch, time],
                a mask differs from it, or there is not one carry per layer.
        """
        ids = _checks.integers("ids", ids)
        _checks.shapes(ids=(ids, "B T"), mask=(ids if mask is None else mask, "B T"))
        if carries is not None and len(carries) != len(self.layers):
            raise ValueError(
                f"carries must hold one carry for each of {len(self.layers)} layers, "
                f"got {len(carries)}"
            )
        before = carries or (None,) * len(self.layers)
        keys = iter(() if key is None else jax.random.split(key, 2 * len(self.layers) + 2))

        def drop(x: jax.Array, rate: float, shared_axes: tuple[int, ...] = ()) -> jax.Array:
            if key is None or not rate:
                return x
            return dropout(next(keys), x, rate=rate, shared_axes=shared_axes)

        table = self.embedding[...]
        words = drop(table, self.embedding_dropout, (1,))
        # Ids outside the table must not silently read a wrong row. Time goes first from here on.
        x = _look_up(words, ids.T)
        x = drop(x, self.input_dropout, (0,))
        after, depths = [], []
        for index, (layer, carry) in enumerate(zip(self.layers, before, strict=True)):
            if index:
                x = drop(x, self.hidden_dropout, (0,))
            x, carry, depth = on_lstm(
                self._params(layer, None if key is None else next(keys)),
                x,
                carry,
                chunk_size=layer.chunk_size,
                master_input=layer.master_input,
                mask=None if mask is None else mask.T,
            )
            after.append(carry)
            depths.append(depth)
        features = x.swapaxes(0, 1)
        last = drop(features, self.output_dropout, (1,))
        wide = jnp.promote_types(last.dtype, jnp.float32)
        logits = jnp.einsum("btd,vd->btv", last, table, preferred_element_type=wide)
        logits += self.bias[...].astype(wide)[None, None]
        by_layer = jax.tree.map(lambda *xs: jnp.stack(xs).swapaxes(1, 2), *depths)
        return LanguageModelOutput(logits, features, tuple(after), by_layer)

    def _params(self, layer: OnLstm, key: jax.Array | None = None) -> OnLstmParams:
        """The layer's parameters with weight drop, for evaluation if the key is None."""
        params = layer.params
        weights = weight_drop(
            key,
            params.recurrent_kernel,
            rate=self.recurrent_dropout,
            inverted=self.inverted_weight_drop,
        )
        return params._replace(recurrent_kernel=weights)

    def generate(
        self,
        key: jax.Array,
        ids: jax.Array,
        *,
        length: int,
        temperature: float | jax.Array = 1.0,
    ) -> jax.Array:
        """Continues a text: each next word is drawn from softmax(logits / temperature).

        Args:
            key: typed key, consumed.
            ids: ``[B, T]`` int, T ≥ 1, the beginning of the text.
            length: number of words to draw.
            temperature: 1 draws from the model, less prefers its likely words, 0 takes the
                likeliest.

        Returns:
            ``[B, length]`` int32; -1 in a row whose text holds an id outside the vocabulary. In a
            jitted function it is one compiled loop.

        Raises:
            ValueError: if ``length`` < 1, ``ids`` hold no word or the temperature is negative.

        >>> import jax, jax.numpy as jnp
        >>> model = OnLstmLanguageModel(10, 4, 4, 1, chunk_size=2, rngs=nnx.Rngs(0))
        >>> model.generate(jax.random.key(0), jnp.array([[1, 2]]), length=5).shape
        (1, 5)
        """
        _checks.count("length", length, at_least=1)
        if not ids.shape[-1]:
            raise ValueError(f"ids must hold at least one word to begin with, got {ids.shape}")
        temperature = _checks.number("temperature", temperature, at_least=0)
        beginning = self(ids)
        # The one a Gumbel variable lifts above all others is a draw from the softmax.
        noise_scale = jnp.asarray(temperature, beginning.logits.dtype)

        def step(state: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            logits, carries = state
            noise = jax.random.gumbel(key, logits.shape, logits.dtype)
            word = jnp.argmax(logits + noise_scale * noise, axis=-1).astype(jnp.int32)
            word = jnp.where(jnp.isnan(logits).any(axis=-1), -1, word)
            output = self(word[:, None], carries)
            return (output.logits[:, 0], output.carries), word

        start = (beginning.logits[:, -1], beginning.carries)
        _, words = jax.lax.scan(step, start, jax.random.split(key, length))
        return words.T

    def master_gates(self, ids: jax.Array) -> tuple[MasterGates, ...]:
        """The master gates of every layer, ``[B, T, L]``, while it reads ``ids`` ``[B, T]``."""
        x = _look_up(self.embedding[...], _checks.integers("ids", ids).T)
        gates = []
        for layer in self.layers:
            kind, params = layer.master_input, self._params(layer)
            hidden = on_lstm(params, x, chunk_size=self.chunk_size, master_input=kind).hidden
            before = jnp.concatenate([jnp.zeros_like(hidden[:1]), hidden[:-1]])
            first = OnLstmParams(*(p[..., : -4 * layer.features] for p in params))
            logits = dot(x, first.input_kernel) + dot(before, first.recurrent_kernel)
            layer_gates = master_gates(logits + first.bias[None, None], master_input=kind)
            gates.append(jax.tree.map(lambda gate: gate.swapaxes(0, 1), layer_gates))
            x = hidden
        return tuple(gates)


def _look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of the table; NaN for an id outside it, which would otherwise read another row."""
    rows = table.at[ids]
    return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
