"""The Transformer of BERT, GPT and UniLM: one model, three masks, two places for LayerNorm.

    x_0     = LN(token[id] + segment[s] + position[t]) [· P + c]          (post; pre: without LN)
    post    a = LN(x + attention(x));    x' = LN(a + feedforward(a))      BERT
    pre     a = x + attention(LN(x));    x' = a + feedforward(LN(a))      GPT-2, with a last LN
    logits  = LN(gelu(x W + b)) · tokenᵀ + bias                           head "mlm"
    logits  = x · tokenᵀ                                                  head "tied"

The projection P is there for embeddings of another width than the layers, as in ELECTRA; rotary
positions have no table and turn queries and keys instead.

The parameters of all layers are stacked along a leading axis, whether the layers run in a loop
(``scan_layers``) or unrolled: one checkpoint fits both.

Source: Jacob Devlin et al., "BERT", 2018, arXiv 1810.04805; Alec Radford et al., "Language Models
are Unsupervised Multitask Learners", 2019; the facts of the original code are those of bert4keras,
https://kexue.fm/archives/7055.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from zoo._checks import accumulator, count, integers, shapes
from zoo.transformer.attention import attention_mask, document_positions, rotary_angles
from zoo.transformer.config import TransformerConfig, check_inputs, embedding_width
from zoo.transformer.layers import (
    ACTIVATIONS,
    KeyValueCache,
    Layer,
    LayerNorm,
    MakeNorm,
    PaddedCache,
    align,
    apply_norm,
    constrain_rows,
    dropout,
    look_up,
    make_initializer,
)

# All layers stacked, or one per layer; with a mask for rows of unequal length.
Cache = KeyValueCache | tuple[KeyValueCache, ...] | PaddedCache


class Transformer(nnx.Module):
    """The model of the module docstring.

    Args:
        config: sizes and variants.
        make_norm: builds every LayerNorm, as ``make_norm(num_features, epsilon=…, rngs=…)``. A norm
            that takes a condition gets the one that the model is called with.
        rngs: Flax's random streams; ``params`` is used.

    >>> config = TransformerConfig(vocab_size=11, features=8, num_layers=2, num_heads=2,
    ...                            feedforward_features=16, max_positions=6)
    >>> model = Transformer(config, rngs=nnx.Rngs(0))
    >>> model(jnp.array([[3, 1, 4, 1, 5]])).shape
    (1, 5, 11)

    Reference: arXiv 1810.04805; https://kexue.fm/archives/7055.
    """

    def __init__(
        self, config: TransformerConfig, *, make_norm: MakeNorm = LayerNorm, rngs: nnx.Rngs
    ):
        self.config = config
        draw = make_initializer(config, rngs)
        norm = functools.partial(make_norm, epsilon=config.epsilon, rngs=rngs)
        width = embedding_width(config)
        self.token_embedding = nnx.Param(draw(config.vocab_size, width))
        if config.positions == "learned":
            self.position_embedding = nnx.Param(draw(config.max_positions, width))
        if config.num_segments:
            self.segment_embedding = nnx.Param(draw(config.num_segments, width))
        if config.norm_position == "post":
            self.embedding_norm = norm(width)
        else:
            self.final_norm = norm(config.features)
        if width != config.features:
            self.embedding_kernel = nnx.Param(draw(width, config.features))
            self.embedding_bias = nnx.Param(jnp.zeros(config.features))

        @nnx.vmap
        def layers(key: jax.Array) -> Layer:
            return Layer(config, make_norm, rngs=nnx.Rngs(key))

        self.layers: Any = layers(jax.random.split(rngs.params(), config.num_layers))
        if config.head == "mlm":
            self.head_kernel = nnx.Param(draw(config.features, width))
            self.head_bias = nnx.Param(jnp.zeros(width))
            self.head_norm = norm(width)
            self.output_bias = nnx.Param(jnp.zeros(config.vocab_size))
        if config.head != "none" and not config.tie_embeddings:
            columns = width if config.head == "mlm" else config.features
            self.output_embedding = nnx.Param(draw(config.vocab_size, columns))
        if config.pooler:
            self.pooler_kernel = nnx.Param(draw(config.features, config.features))
            self.pooler_bias = nnx.Param(jnp.zeros(config.features))

    def __call__(
        self,
        ids: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        mask: jax.Array | None = None,
        document_ids: jax.Array | None = None,
        condition: jax.Array | None = None,
        positions: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The logits of every token of the vocabulary.

        Args:
            ids: ``[B, T]`` int. An id outside the vocabulary gives NaN.
            segment_ids: ``[B, T]`` int; None: all 0. The prefix mask needs them.
            mask: ``[B, T]`` bool, False at padding, whose ids may be anything; None: there is none.
                Rows padded on the left need ``document_ids=mask.astype(int)`` too: else position 0
                is the first of the padding.
            document_ids: ``[B, T]`` int, for rows packed with several documents: they do not attend
                to each other, and positions restart. A document longer than ``max_positions`` makes
                its row NaN; the row may be longer. None: each row is one document.
            condition: passed to every norm; None: norms are called without.
            positions: ``[B, P]`` int, where to compute logits, NaN outside 0..T-1; None:
                everywhere.
            key: typed key for dropout, consumed; None for evaluation.

        Returns:
            ``[B, T or P, V]`` in at least float32.

        Raises:
            TypeError: if ids are not integers or the mask is not bool.
            ValueError: if a shape does not fit, a row is longer than ``max_positions``, segments
                are missing or unexpected, or the model has no head.
        """
        x = self.encode(
            ids,
            segment_ids=segment_ids,
            mask=mask,
            document_ids=document_ids,
            condition=condition,
            key=key,
        )
        if positions is not None:
            positions = integers("positions", positions)
            shapes(ids=(ids, "B T"), positions=(positions, "B P"))
            positions = jnp.where(positions < 0, x.shape[1], positions)  # it counts from the end
            x = jnp.take_along_axis(x, positions[..., None], axis=1, mode="fill")
        return self.logits(x, condition=condition)

    def encode(
        self,
        ids: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        mask: jax.Array | None = None,
        document_ids: jax.Array | None = None,
        condition: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The last hidden states ``[B, T, D]``; arguments and errors as in a call of the model."""
        config = self.config
        check_inputs(config, ids, segment_ids, mask, document_ids)
        keys = None if key is None else jax.random.split(key, config.num_layers + 1)
        if document_ids is None:
            positions = jnp.arange(ids.shape[1])[None]
        else:
            positions = document_positions(document_ids)
        x = self._embed(
            ids,
            segment_ids,
            condition,
            positions,
            mask=mask,
            in_order=document_ids is None,
            key=None if keys is None else keys[0],
        )
        # Fused kernels skip what the flag hides, not what an equal array hides.
        causal = config.mask == "causal" and mask is None and document_ids is None
        attended = attention_mask(
            "bidirectional" if causal else config.mask,
            segment_ids=segment_ids,
            mask=mask,
            document_ids=document_ids,
            length=ids.shape[1],
        )
        x, _ = self._run_layers(x, attended, condition, positions, keys, None, causal=causal)
        return x if config.norm_position == "post" else apply_norm(self.final_norm, x, condition)

    def unstacked(self) -> "Transformer":
        """The same model with separate layers, for decoding token by token.

        A loop over stacked layers copies every layer's weights and cache out of the stack and the
        cache back, which takes most of the time for one token.

        Returns:
            A model that computes the same; its cache is a tuple, one per layer. Its parameters have
            the paths ``layers/0/…``, so that placement rules, checkpoints and ``save_bert`` want
            those of the stacked one.
        """
        if isinstance(self.layers, nnx.List):
            return self
        model = nnx.merge(*nnx.split(self))
        graph, parameters = nnx.split(self.layers)
        parts = _unstacked(parameters, self.config.num_layers)
        model.layers = nnx.List([nnx.merge(graph, part) for part in parts])
        return model

    def init_cache(
        self, batch_size: int, length: int | None = None, *, padded: bool = False
    ) -> Cache:
        """An empty cache for ``batch_size`` rows of at most ``length`` tokens.

        Args:
            batch_size: B.
            length: S; None: ``max_positions``.
            padded: whether ``decode`` may be given a mask. The length counts padding too and may
                then exceed ``max_positions``, as long as the tokens of a row do not.

        Returns:
            The cache, in the dtype of the parameters.

        Raises:
            ValueError: if the length is not in 1..max_positions.
        """
        config = self.config
        length = config.max_positions if length is None else count("length", length, at_least=1)
        if not padded:
            count("length", length, at_least=1, at_most=config.max_positions)
        units = config.features // config.num_heads
        dtype = self.token_embedding[...].dtype

        def empty(*layers: int) -> KeyValueCache:
            rows = (*layers, batch_size, config.num_heads)
            keys, values = (jnp.zeros(rows + s, dtype) for s in ((units, length), (length, units)))
            return KeyValueCache(keys, values, jnp.zeros(layers, jnp.int32))

        unstacked = isinstance(self.layers, nnx.List)
        layers = tuple(empty() for _ in self.layers) if unstacked else empty(config.num_layers)
        return PaddedCache(layers, jnp.zeros((batch_size, length), bool)) if padded else layers

    def rewind(self, cache: Cache, count: int) -> Cache:
        """The cache without its last ``count`` places, to read them again or read others."""
        if isinstance(cache, PaddedCache):
            return cache._replace(layers=self.rewind(cache.layers, count))
        if isinstance(cache, KeyValueCache):
            return cache._replace(length=cache.length - count)
        return tuple(layer._replace(length=layer.length - count) for layer in cache)

    def decode(
        self,
        ids: jax.Array,
        cache: Cache,
        *,
        segment_ids: jax.Array | None = None,
        mask: jax.Array | None = None,
        condition: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Reads more tokens of rows whose beginning is in the cache.

        The logits equal those of a call with the complete rows at these positions. Read a prompt in
        one call, then what is generated token by token; with the prefix mask, the prompt is segment
        0 and must be complete in the first call.

        Args:
            ids: ``[B, T]`` int, the next T tokens.
            cache: from :meth:`init_cache` or an earlier call.
            segment_ids: ``[B, T]`` int; the prefix mask needs them.
            mask: ``[B, T]`` bool, False at padding, wherever it is: it has no position and nothing
                attends to it. Needs a cache that is ``padded``. None: there is none.
            condition: as in a call of the model.

        Returns:
            Logits ``[B, T, V]``, NaN from the call on in which the rows become longer than the
            cache; and the cache.

        Raises:
            TypeError: if ids are not integers or the mask is not bool.
            ValueError: if a shape does not fit, the cache is not padded, these tokens alone are
                more than it has room for, it belongs to another model, or the mask is
                ``"bidirectional"``.
        """
        config = self.config
        if config.mask == "bidirectional":
            raise ValueError(
                "decode needs mask='causal' or 'prefix', got 'bidirectional': every token would "
                "change the hidden states of all earlier ones"
            )
        padded = isinstance(cache, PaddedCache)
        # A padded row may have more places than the model positions.
        places = jnp.zeros_like(ids) if padded else None
        check_inputs(config, ids, segment_ids, mask, places)
        if mask is not None and not padded:
            raise ValueError(
                "mask needs a cache with a place for it: init_cache(batch_size, length, "
                "padded=True)"
            )
        layers: Any = cache.layers if isinstance(cache, PaddedCache) else cache
        unstacked = isinstance(self.layers, nnx.List)
        if isinstance(layers, KeyValueCache) == unstacked:
            kinds = "an unstacked model", "a model with stacked layers"
            ours, other = kinds if unstacked else kinds[::-1]
            raise ValueError(
                f"cache must come from init_cache of this model, {ours}; got that of {other}"
            )
        first: Any = layers[0] if unstacked else layers
        shapes(ids=(ids, "B T"), cache=(first.keys, "... B N H S"))
        start = jnp.ravel(first.length)[0]
        length, room = ids.shape[1], first.keys.shape[-1]
        if length > room:
            raise ValueError(
                f"ids have {length} positions, but the cache has room for {room}: "
                "init_cache(batch_size, length) with a larger length"
            )
        positions = places = start + jnp.arange(length)[None]
        order = jnp.arange(room)[None, None]
        attended = order <= places[..., None]
        if config.mask == "prefix" and segment_ids is not None and length > 1:
            # c_j ≤ c_i among these tokens; all of them attend to the earlier ones.
            segments = segment_ids if mask is None else jnp.where(mask, segment_ids, 0)
            c = jnp.cumsum(segments, axis=1, dtype=jnp.int32)
            within = lax.dynamic_update_slice_in_dim(
                jnp.zeros((len(c), length, room), bool), c[:, None] <= c[:, :, None], start, axis=2
            )
            attended = within | (order < start)
        if isinstance(cache, PaddedCache):
            given = jnp.ones(ids.shape, bool) if mask is None else mask
            before = jnp.sum(cache.mask & (order[0] < start), axis=1, keepdims=True)
            positions = before + jnp.cumsum(given, axis=1) - 1
            known = lax.dynamic_update_slice_in_dim(cache.mask, given, start, axis=1)
            attended &= known[:, None]
            # Padding may have nothing before it: its own place keeps it finite.
            attended |= ~attended.any(axis=-1, keepdims=True) & (order == places[..., None])
        x = self._embed(ids, segment_ids, condition, positions, mask=mask)
        x = jnp.where(start + length <= room, x, jnp.nan)
        x, layers = self._run_layers(x, attended, condition, positions, None, layers, causal=False)
        if config.norm_position == "pre":
            x = apply_norm(self.final_norm, x, condition)
        after = PaddedCache(layers, known) if padded else layers
        return self.logits(x, condition=condition), after

    def _run_layers(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        condition: jax.Array | None,
        positions: jax.Array,
        keys: jax.Array | None,
        cache: Any,
        *,
        causal: bool,
    ) -> tuple[jax.Array, Any]:
        config, angles = self.config, None
        if config.positions == "rotary":
            units = config.features // config.num_heads
            angles = rotary_angles(positions, units, base=config.rotary_base)
        if isinstance(self.layers, nnx.List):
            after = []
            for number, layer in enumerate(self.layers):
                one = functools.partial(layer, causal=causal, angles=angles)
                apply = _checkpointed(one, config.remat)
                key = None if keys is None else keys[1 + number]
                before = None if cache is None else cache[number]
                x, extended = apply(x, mask, condition, key, before)
                after.append(extended)
            return x, None if cache is None else tuple(after)
        graph, parameters = nnx.split(self.layers)

        def run(x: jax.Array, inputs: Any) -> tuple[jax.Array, KeyValueCache | None]:
            parameters, key, cache = inputs
            module = nnx.merge(graph, parameters)
            return module(x, mask, condition, key, cache, causal=causal, angles=angles)

        run = _checkpointed(run, config.remat)
        inputs = (parameters, None if keys is None else keys[1:], cache)
        if config.scan_layers:
            return lax.scan(run, x, inputs)
        caches = []
        for one in _unstacked(inputs, config.num_layers):
            x, extended = run(x, one)
            caches.append(extended)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)

    def logits(self, hidden: jax.Array, *, condition: jax.Array | None = None) -> jax.Array:
        """The head: hidden states ``[..., D]`` to logits ``[..., V]``."""
        config = self.config
        if config.head == "none":
            raise ValueError(
                "this Transformer has head='none' and no logits: use encode(), or a config "
                "with head='mlm' or 'tied'"
            )
        x = hidden
        if config.head == "mlm":
            x = x @ self.head_kernel[...] + align(self.head_bias, x)
            x = apply_norm(self.head_norm, ACTIVATIONS[config.activation](x), condition)
        wide = accumulator(x.dtype)
        table = self.token_embedding if config.tie_embeddings else self.output_embedding
        y = jnp.einsum("...d,vd->...v", x, table[...], preferred_element_type=wide)
        if config.head == "mlm":
            y += align(self.output_bias, y).astype(wide)
        return checkpoint_name(y, "logits")

    def pool(self, hidden: jax.Array) -> jax.Array:
        """BERT's pooler, tanh(W x + b) of the first position: ``[B, D]``.

        Raises:
            ValueError: if the model has no pooler.
        """
        if not self.config.pooler:
            raise ValueError("this Transformer has no pooler: use a config with pooler=True")
        first = hidden[:, 0]
        return jnp.tanh(first @ self.pooler_kernel[...] + align(self.pooler_bias, first))

    def _embed(
        self,
        ids: jax.Array,
        segment_ids: jax.Array | None,
        condition: jax.Array | None,
        positions: jax.Array,
        *,
        mask: jax.Array | None = None,
        in_order: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """``[B, T, D]``; positions are ``[B or 1, T]``, and 0, 1, … if they are in order."""

        def given(numbers: Any) -> Any:
            """0 at padding: a NaN there would reach all others, as 0 · NaN."""
            return numbers if mask is None else jnp.where(mask, numbers, 0)

        x = look_up(self.token_embedding, given(ids))
        if self.config.positions == "learned":
            if in_order:
                x += self.position_embedding[: ids.shape[1]][None]
            else:
                x += look_up(self.position_embedding, given(positions))
        if self.config.num_segments and segment_ids is None:
            x += self.segment_embedding[0][None, None]
        elif self.config.num_segments:
            x += look_up(self.segment_embedding, given(segment_ids))
        if self.config.norm_position == "post":
            x = apply_norm(self.embedding_norm, x, condition)
        x = dropout(checkpoint_name(constrain_rows(x), "embeddings"), self.config.dropout, key)
        if embedding_width(self.config) != self.config.features:
            x = x @ self.embedding_kernel[...] + align(self.embedding_bias, x)
        return x


def _checkpointed(layer: Callable, remat: str | tuple[str, ...] | None) -> Callable:
    policies = jax.checkpoint_policies
    if remat is None:
        return layer
    if isinstance(remat, tuple):
        return jax.checkpoint(layer, policy=policies.save_only_these_names(*remat))
    dots = policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(layer, policy=dots if remat == "dots" else policies.nothing_saveable)


def _unstacked(tree: Any, size: int) -> list[Any]:
    """The slices along the first axis. The gradient of a split is one concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    columns = [[part.squeeze(0) for part in lax.split(leaf, [1] * size)] for leaf in leaves]
    return [jax.tree.unflatten(structure, row) for row in zip(*columns, strict=True)]
