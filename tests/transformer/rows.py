"""Battery rows of `zoo.transformer`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.battery import BadInput, Row
from zoo import transformer
from zoo.transformer import optimizers

VOCAB, TIME = 6, 5
MASKING = {"vocab_size": VOCAB, "mask_id": 4, "special_ids": (0,)}


def loss_arguments(generator, batch, dtype):
    shape = (*batch, TIME)
    return (
        jnp.asarray(generator.normal(size=(*shape, VOCAB)), dtype),
        jnp.asarray(generator.integers(VOCAB, size=shape), jnp.int32),
        jnp.asarray(generator.integers(2, size=shape), bool),
    )


def ids_of(generator, batch):
    return jnp.asarray(generator.integers(1, VOCAB, size=(*batch, TIME)), jnp.int32)


def masking_arguments(generator, batch, dtype):
    key = jax.random.key(int(generator.integers(100)))
    starts = jnp.asarray(generator.integers(2, size=(*batch, TIME)), bool)
    return key, ids_of(generator, batch), starts


def mask(key, ids, starts):
    return transformer.mask_tokens(key, ids, word_starts=starts, rate=0.5, **MASKING)[:3]


def padded_arguments(generator, batch, dtype):
    given = np.arange(TIME) < generator.integers(1, TIME + 1, size=(*batch, 1))
    return ids_of(generator, batch), jnp.asarray(given)


def next_of(ids, given):
    return transformer.next_tokens(ids, mask=given)[:3]


def prefix_arguments(generator, batch, dtype):
    key = jax.random.key(int(generator.integers(100)))
    return key, *padded_arguments(generator, batch, dtype)


def cut(key, ids, given):
    return tuple(transformer.split_prefix(key, ids, sep_id=3, mask=given))


LOGITS, TARGETS, WEIGHTS = loss_arguments(np.random.default_rng(0), (2,), jnp.float32)
KEY, IDS = jax.random.key(0), jnp.ones((2, TIME), jnp.int32)
WORDS, RAW_KEY = LOGITS[..., 0], jnp.zeros(2, jnp.uint32)


def loss(*arguments):
    return lambda: transformer.masked_cross_entropy(*arguments)


def masked(**options):
    return lambda: transformer.mask_tokens(KEY, IDS, word_starts=None, **options)


def bad(error, argument, expected, got, call):
    return BadInput(f"{argument}: {got}", call, error, argument, expected, got)


def bad_ids(call):
    return bad(TypeError, "ids", "integers", "float32", call)


def bad_key(call):
    return bad(TypeError, "key", "typed key", "uint32", call)


def bad_shape(name, call):
    return bad(ValueError, name, r"\(2, 5\)", r"\(1, 5\)", call)


# Each row has its own draws: a part of the rows, or a copy of the key, draws others.
RANDOM = {
    "differentiable": (),
    "random": True,
    "skip": {"shard_map_equals_unsharded": "each device draws for the rows that it has"},
}

ROWS = [
    Row(
        name="zoo.transformer.masked_cross_entropy",
        function=transformer.masked_cross_entropy,
        arguments=loss_arguments,
        axes=(0, 0, 0),
        out_axes=None,
        wide=True,
        extreme=0.1,  # the difference of two logits, summed over all positions
        axis_name=True,
        pmap=True,
        mask=(0, 2),
        classes=lambda ids: transformer.masked_cross_entropy(
            jnp.arange(900.0).reshape(3, 300) % 7, ids, jnp.ones(3)
        ),
        bad=(
            bad(TypeError, "logits", "floating", "int32", loss(LOGITS.astype(int), IDS, WEIGHTS)),
            bad(TypeError, "targets", "integers", "float32", loss(LOGITS, LOGITS, WEIGHTS)),
            bad_shape("weights", loss(LOGITS, TARGETS, WEIGHTS[:1])),
        ),
    ),
    Row(
        name="zoo.transformer.mask_tokens",
        function=mask,
        arguments=masking_arguments,
        axes=(None, 0, 0),
        bad=(
            bad_ids(lambda: mask(KEY, WORDS, WEIGHTS)),
            bad_key(lambda: mask(RAW_KEY, IDS, None)),
            bad_shape("word_starts", lambda: mask(KEY, IDS, WEIGHTS[:1])),
            bad(ValueError, "rate", "≤ 1", "got 15", masked(rate=15.0)),
            bad(ValueError, "random_rate", "≤ 1", "got 1.1", masked(random_rate=0.3)),
            bad(ValueError, "mask_id", "at most 49", "got 103", masked(vocab_size=50)),
        ),
        **RANDOM,
    ),
    Row(
        name="zoo.transformer.next_tokens",
        function=next_of,
        arguments=padded_arguments,
        axes=(0, 0),
        differentiable=(),
        bad=(
            bad_ids(lambda: next_of(WORDS, None)),
            bad_shape("mask", lambda: next_of(IDS, WEIGHTS[:1])),
            bad_shape("document_ids", lambda: transformer.next_tokens(IDS, document_ids=IDS[:1])),
        ),
    ),
    Row(
        name="zoo.transformer.split_prefix",
        function=cut,
        arguments=prefix_arguments,
        axes=(None, 0, 0),
        bad=(
            bad_ids(lambda: cut(KEY, WORDS, None)),
            bad_key(lambda: cut(RAW_KEY, IDS, None)),
            bad_shape("mask", lambda: cut(KEY, IDS, WEIGHTS[:1])),
            bad(ValueError, "ids", "at least 3", "got 2", lambda: cut(KEY, IDS[:, :2], None)),
        ),
        **RANDOM,
    ),
]

FILES = "reads or writes a checkpoint on the host"
EXEMPT = {
    "zoo.transformer.load_bert": FILES,
    "zoo.transformer.load_transformer": FILES,
    "zoo.transformer.save_transformer": FILES,
    "zoo.transformer.pack_sentences": "takes lists of sentences, on the host",
    "zoo.transformer.placement_rules": "takes a config and gives rules, no array",
}
NO_EXAMPLE = {"zoo.transformer.save_transformer": FILES}

TRANSFORMATIONS = [
    functools.partial(optimizers.scale_by_uncorrected_adam, b1=0.8),
    functools.partial(optimizers.scale_by_layer_trust_ratio),
    functools.partial(optimizers.uncorrected_lamb, learning_rate=0.1, weight_decay=0.5),
    functools.partial(optimizers.lazy_rows, optimizer=optax.adamw(0.1, weight_decay=0.5)),
]
TREES = {
    "zoo.transformer.optimizers.excluding": lambda tree: jax.tree.map(
        jnp.asarray, optimizers.excluding()(tree)
    )
}
