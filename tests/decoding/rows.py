"""Battery rows of `zoo.decoding`. The random side of `sample` is in test_decoding.py."""

import functools

import jax
import jax.numpy as jnp

from tests.battery import Row
from zoo import decoding
from zoo.decoding.filters import penalize_repetition

SIZE, END = 5, 4
LOOP = {"jit_equals_eager": "outside jit, its loop is the same compiled program"}


def normal(generator, shape, dtype):
    return jnp.asarray(generator.normal(size=shape), dtype)


def logits(generator, batch, dtype):
    return (normal(generator, (*batch, SIZE), dtype),)


def penalized_arguments(generator, batch, dtype):
    tokens = generator.integers(-1, SIZE + 1, size=(*batch, 3))
    return *logits(generator, batch, dtype), jnp.asarray(tokens)


def text_arguments(generator, batch, dtype):
    """Logits of each row that the last token shifts, and the first tokens."""
    start = jnp.asarray(generator.integers(SIZE, size=batch), jnp.int32)
    return *logits(generator, batch, dtype), start


def step(tokens, state):
    return jnp.take_along_axis(
        state, (jnp.arange(SIZE)[None] + 2 * tokens[:, None]) % SIZE, axis=1
    ), state


def probabilities(logits):
    filtered = decoding.filter_logits(logits, temperature=0.7, top_k=4, top_p=0.9, min_p=0.05)
    return jax.nn.softmax(filtered)


def greedy(logits, start):
    return decoding.sample(
        jax.random.key(0),
        step,
        logits,
        start=start,
        max_length=3,
        temperature=0.0,
        repetition_penalty=1.5,
        no_repeat_ngram=2,
        context=start[:, None],
        end_id=END,
    )


def search(logits, start):
    return decoding.beam_search(
        step,
        logits,
        start=start,
        beam_size=4,
        num_groups=2,
        diversity_penalty=0.25,
        max_length=3,
        length_penalty=0.5,
        end_id=END,
        stop_sequences=[(0, 1)],
    )


ROWS = [
    Row(
        name="zoo.decoding.filter_logits",
        function=probabilities,
        arguments=logits,
        axes=(0,),
        extreme=0.5,  # 0.7 divides it
        pmap=True,
    ),
    Row(
        name="zoo.decoding.filters.penalize_repetition",
        function=functools.partial(penalize_repetition, penalty=1.5),
        arguments=penalized_arguments,
        axes=(0, 0),
        extreme=0.5,
    ),
    Row(
        name="zoo.decoding.sample",
        function=greedy,
        arguments=text_arguments,
        axes=(0, 0),
        differentiable=(),
        wide=True,
        skip=LOOP,
    ),
    Row(
        name="zoo.decoding.beam_search",
        function=search,
        arguments=text_arguments,
        axes=(0, 0),
        differentiable=(),
        wide=True,
        skip=LOOP,
    ),
]

EXEMPT = {
    "zoo.decoding.prefill": "reads a model; test_decoding.py decodes with two kinds of them",
    "zoo.decoding.guide": "joins two decoders; test_decoding.py compares with the formula",
}


def decoded(box):
    """Scores of tokens that a closed-over number shifts, and tokens that another forbids."""
    start = jnp.zeros(1, jnp.int32)

    def shifted(tokens, state):
        return box[0] * jnp.arange(float(SIZE))[None] - tokens[:, None], state

    return lambda: (
        decoding.sample(jax.random.key(0), shifted, (), start=start, max_length=2),
        decoding.beam_search(shifted, (), start=start, beam_size=2, max_length=2),
    )


CLOSURES = {"zoo.decoding.sample and beam_search": decoded}
