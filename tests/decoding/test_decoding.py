"""Sampling and beam search on models whose answers are known, and on real ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from zoo.decoding import (
    sample,
)

END = 3
ROWS = np.array([0, 2])


def markov(tokens, table):
    """A text of which only the last token matters: the state is the table of transitions."""
    return table[tokens], table


def table_of(size, seed=0, scale=1.5):
    z = scale * np.random.default_rng(seed).normal(size=(size, size))
    return jax.nn.log_softmax(jnp.asarray(z, jnp.float32))


def test_every_way_to_choose_a_token_keeps_its_law():
    """χ² of 8192 draws a setting against the law by hand; seeds are fixed, the level is 1e-3."""
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    p = np.exp(logits)

    def law(weights):
        return np.asarray(weights) / np.sum(weights)

    settings = (  # what is not static is an argument of one program
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}, p),
        ({"temperature": 2.0, "top_p": 1.0, "min_p": 0.0}, law(p**0.5)),
        ({"temperature": 1.0, "top_p": 0.6, "min_p": 0.0}, law(p * [1, 1, 0, 0])),
        ({"temperature": 1.0, "top_p": 0.81, "min_p": 0.0}, law(p * [1, 1, 1, 0])),
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.25}, law(p * [1, 1, 1, 0])),
        ({"temperature": 0.5, "top_p": 0.9, "min_p": 0.0}, law(p**2 * [1, 1, 0, 0])),
        ({"top_k": 2, "banned": (0,)}, law(p * [0, 1, 1, 0])),
    )
    step_fn = functools.partial(markov, table=jnp.asarray(np.tile(logits, (4, 1)), jnp.float32))
    count = 8192

    def draw(tokens, state):
        return step_fn(tokens)[0], state

    for seed, (setting, expected) in enumerate(settings):
        found = sample(
            jax.random.key(seed), draw, (), start=np.zeros(count, int), max_length=1, **setting
        )
        tally = np.bincount(found.tokens[:, 0], minlength=4)
        possible = expected > 0
        assert tally[~possible].sum() == 0
        if possible.sum() > 1:
            test = stats.chisquare(tally[possible], count * expected[possible])
            assert test.pvalue > 1e-3, (setting, tally, expected)
