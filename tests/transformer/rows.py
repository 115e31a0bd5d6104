"""Battery rows of `zoo.transformer`."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.battery import BadInput, Row
from zoo import transformer

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


def bad_loss(function):
    return (
        BadInput(
            "integer logits",
            lambda: function(LOGITS.astype(int), TARGETS, WEIGHTS),
            TypeError,
            argument="logits",
            expected="floating-point",
            got="int32",
        ),
        BadInput(
            "one-hot targets",
            lambda: function(LOGITS, LOGITS, WEIGHTS),
            TypeError,
            argument="targets",
            expected="integers",
            got="float32",
        ),
        BadInput(
            "weights of one row",
            lambda: function(LOGITS, TARGETS, WEIGHTS[:1]),
            ValueError,
            argument="weights",
            expected=r"\(2, 5\)",
            got=r"\(1, 5\)",
        ),
    )


BAD_IDS = {"argument": "ids", "expected": "integers", "got": "float32"}
BAD_KEY = {"argument": "key", "expected": "typed key", "got": "uint32"}


def bad_shape(name, call):
    return BadInput(
        f"{name} of other rows",
        call,
        ValueError,
        argument=name,
        expected=r"\(2, 5\)",
        got=r"\(1, 5\)",
    )


# Each row has its own draws: a part of the rows, or a copy of the key, draws others.
RANDOM = {
    "differentiable": (),
    "random": True,
    "skip": {"shard_map_equals_unsharded": "each device draws for the rows that it sees"},
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
        bad=bad_loss(transformer.masked_cross_entropy),
    ),
    Row(
        name="zoo.transformer.cross_entropy_sums",
        function=transformer.cross_entropy_sums,
        arguments=loss_arguments,
        axes=(0, 0, 0),
        out_axes=None,
        wide=True,
        extreme=0.01,
        skip={"shard_map_equals_unsharded": "gives the sums of its part"},
        bad=bad_loss(transformer.cross_entropy_sums),
    ),
    Row(
        name="zoo.transformer.mask_tokens",
        function=mask,
        arguments=masking_arguments,
        axes=(None, 0, 0),
        bad=(
            BadInput(
                "words instead of ids",
                lambda: mask(KEY, LOGITS[..., 0], WEIGHTS),
                TypeError,
                **BAD_IDS,
            ),
            BadInput(
                "a raw key", lambda: mask(jnp.zeros(2, jnp.uint32), IDS, None), TypeError, **BAD_KEY
            ),
            bad_shape("word_starts", lambda: mask(KEY, IDS, WEIGHTS[:1])),
            BadInput(
                "a share of 15",
                lambda: transformer.mask_tokens(KEY, IDS, word_starts=None, rate=15.0),
                ValueError,
                argument="rate",
                expected=r"\[0, 1\]",
                got="got 15",
            ),
            BadInput(
                "more than all replaced",
                lambda: transformer.mask_tokens(KEY, IDS, word_starts=None, random_rate=0.3),
                ValueError,
                argument="random_rate",
                expected=r"\[0, 1\]",
                got="got 1.1",
            ),
            BadInput(
                "a mask outside the vocabulary",
                lambda: transformer.mask_tokens(KEY, IDS, word_starts=None, vocab_size=50),
                ValueError,
                argument="mask_id",
                expected=r"0\.\.49",
                got="got 103",
            ),
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
            BadInput(
                "words instead of ids", lambda: next_of(LOGITS[..., 0], None), TypeError, **BAD_IDS
            ),
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
            BadInput(
                "words instead of ids", lambda: cut(KEY, LOGITS[..., 0], None), TypeError, **BAD_IDS
            ),
            BadInput(
                "a raw key", lambda: cut(jnp.zeros(2, jnp.uint32), IDS, None), TypeError, **BAD_KEY
            ),
            bad_shape("mask", lambda: cut(KEY, IDS, WEIGHTS[:1])),
            BadInput(
                "nothing to cut",
                lambda: cut(KEY, IDS[:, :2], None),
                ValueError,
                argument="ids",
                expected="at least 3",
                got=r"\(2, 2\)",
            ),
        ),
        **RANDOM,
    ),
]

OPTIMIZER = "an Optax transformation, tested in test_optimizers.py"
FILES = "reads or writes a checkpoint on the host"
EXEMPT = {
    "zoo.transformer.adamw": OPTIMIZER,
    "zoo.transformer.lamb": OPTIMIZER,
    "zoo.transformer.lazy_rows": OPTIMIZER,
    "zoo.transformer.scale_by_adam": OPTIMIZER,
    "zoo.transformer.scale_by_norm_ratio": OPTIMIZER,
    "zoo.transformer.piecewise_linear": "makes a schedule, tested in test_optimizers.py",
    "zoo.transformer.bert_config": FILES,
    "zoo.transformer.bert_state_dict": FILES,
    "zoo.transformer.load_bert": FILES,
    "zoo.transformer.save_bert": FILES,
    "zoo.transformer.pack_sentences": "takes lists of sentences, on the host",
    "zoo.transformer.placement_rules": "takes a config and gives rules, no array",
}

NO_EXAMPLE = {
    "zoo.transformer.bert_config": FILES,
    "zoo.transformer.save_bert": FILES,
}
