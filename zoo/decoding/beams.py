"""Beam search: keeps the K most probable partial hypotheses, for all rows of a batch together.

    live      K partial hypotheses per row, by s = Σ log p
    finished  the N best complete ones, by s / length^α, where length counts the end token
    step      extends every live hypothesis by every token: those that end compete for the N
              finished places, and the K most probable of the others stay live

A row is done when no live hypothesis can still enter its N best; what is live at ``max_length``
competes as it is. So no better text is lost because a worse one ended first, and α = 0 finds the
N most probable texts whenever K hypotheses cover the space.

Source: https://kexue.fm/archives/7124, whose decoder has one row and no α, and drops what is
finished and not best; Yonghui Wu et al., "Google's Neural Machine Translation System", 2016, arXiv
1609.08144, section 7.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo._checks import accumulator, count, number
from zoo.decoding.steps import (
    Rules,
    StepFunction,
    apply_rules,
    check_penalty,
    check_start,
    check_step,
    make_rules,
    read_start,
)


class Beams(NamedTuple):
    """The result of :func:`beam_search`, best first."""

    tokens: jax.Array  # [B, N, T] int32; after the end token pad_id, -1 where there is no text
    lengths: jax.Array  # [B, N] int32, tokens before the end token
    scores: jax.Array  # [B, N]; -inf where there are fewer texts, NaN where logits were NaN


class _Search(NamedTuple):
    step: jax.Array  # []
    last: jax.Array  # [B, K]
    state: Any  # of B K rows
    live_tokens: jax.Array  # [B, K, T]
    live_sums: jax.Array  # [B, K], in descending order
    finished: Beams


def beam_search(
    step_fn: StepFunction,
    state: Any,
    *,
    start: ArrayLike,
    beam_size: int,
    max_length: int,
    length_penalty: float | jax.Array = 0.0,
    state_axes: Any = 0,
    num_results: int | None = None,
    repetition_penalty: float | jax.Array = 1.0,
    min_length: int = 0,
    banned: Sequence[int] = (),
    end_id: int | None = None,
    pad_id: int = 0,
) -> Beams:
    """The most probable continuations of every row, see the module docstring.

    What is banned has probability 0, and the other tokens share its own.

    Args:
        step_fn: see `zoo.decoding.steps`; the same object compiles once.
        state: its state, for B rows.
        start: ``[B]`` int, the first token to read; or ``[B, T]``, read one by one.
        beam_size: K in 1..V; 1 is greedy search.
        max_length: most tokens of a text, with the end token.
        length_penalty: α; 0 compares sums of log p, 1 means, more prefers longer texts.
        state_axes: batch axis of each leaf of the state, a tree prefix as for ``jax.vmap``; None
            is shared by all rows.
        num_results: N in 1..K; None: K.
        repetition_penalty: see :func:`penalize_repetition`; of written tokens, not of ``start``.
        min_length: fewest tokens before the end token.
        banned: tokens that are never written.
        end_id: the token that ends a text; None: all have ``max_length`` tokens.
        pad_id: what follows it.

    Returns:
        ``Beams``.

    Raises:
        TypeError: if ``start`` is not integer, or the step function changes the state's form.
        ValueError: if a number is out of its range, or all tokens are banned.

    >>> table = jnp.log(jnp.array([[0.6, 0.4, 0.0], [0.5, 0.32, 0.18], [0.1, 0.1, 0.8]]))
    >>> def step_fn(tokens, state):
    ...     return table[tokens], state
    >>> found = beam_search(step_fn, (), start=[1], beam_size=3, max_length=2, end_id=2)
    >>> found.tokens.tolist()
    [[[0, 0], [0, 1], [2, 0]]]
    >>> jnp.exp(found.scores).tolist()
    [[0.30, 0.20, 0.18]]
    """
    axes, tree = jax.tree.flatten(state_axes, is_leaf=lambda axis: axis is None)
    max_length = count("max_length", max_length, at_least=1)
    beam_size = count("beam_size", beam_size, at_least=1)
    num_results = beam_size if num_results is None else num_results
    num_results = count("num_results", num_results, at_least=1, at_most=beam_size)
    rules = make_rules(
        end_id=end_id, pad_id=pad_id, min_length=min_length, banned=banned, max_length=max_length
    )
    return _beam_search(
        state,
        check_start(start),
        number("length_penalty", length_penalty),
        check_penalty(repetition_penalty),
        step_fn,
        (tuple(axes), tree),
        beam_size,
        num_results,
        max_length,
        rules,
    )


@functools.partial(jax.jit, static_argnums=range(4, 10))
def _beam_search(
    state: Any,
    start: jax.Array,
    length_penalty: float | jax.Array,
    repetition_penalty: Any,
    step_fn: StepFunction,
    flat_axes: Any,
    beam_size: int,
    num_results: int,
    max_length: int,
    rules: Rules,
) -> Beams:
    logits = check_step(step_fn, state, start, rules)
    rows, size = logits.shape
    count("beam_size", beam_size, at_most=size)
    axes = jax.tree.unflatten(flat_axes[1], flat_axes[0])
    dtype = accumulator(logits.dtype)
    penalty = jnp.asarray(length_penalty, dtype)

    def score(sums: jax.Array, length: ArrayLike) -> jax.Array:
        return sums / jnp.asarray(length, dtype) ** penalty

    def can_improve(search: _Search) -> jax.Array:
        # Sums only fall, so a hypothesis can at best keep its sum and reach the best length.
        length = jnp.where(penalty > 0, max_length, search.step + 1)
        best = score(search.live_sums[:, 0], length)
        return (search.step < max_length) & (best > search.finished.scores[:, -1]).any()

    def extend(search: _Search) -> _Search:
        step, live, finished = search.step, search.live_tokens, search.finished
        logits, state = step_fn(search.last.reshape(-1), search.state)
        z = apply_rules(logits, live.reshape(-1, max_length), step, rules, repetition_penalty)
        # What cannot be written has probability 0, also where nothing can; and what follows it
        # counts no more, whatever the model makes of it.
        log_p = jnp.where(jnp.isneginf(z), -jnp.inf, jax.nn.log_softmax(z))
        before = search.live_sums[..., None]
        sums = before + log_p.reshape(rows, beam_size, size)
        sums = jnp.where(jnp.isneginf(before), -jnp.inf, sums)
        if rules.end_id is not None:
            texts = live.at[:, :, step].set(rules.end_id)
            ended = score(sums[..., rules.end_id], step + 1)
            finished = _best(finished, Beams(texts, jnp.full_like(ended, step, jnp.int32), ended))
            sums = sums.at[..., rules.end_id].set(-jnp.inf)
        live_sums, places = lax.top_k(sums.reshape(rows, beam_size * size), beam_size)
        parent, token = places // size, places % size
        # NaN sums come first from here on: no score is greater, so the search of the row ends.
        broken = jnp.isnan(sums).any(axis=(1, 2))[:, None]
        return _Search(
            step + 1,
            token,
            _map_state(functools.partial(_take_parents, parent), axes, state),
            jnp.take_along_axis(live, parent[..., None], axis=1).at[:, :, step].set(token),
            jnp.where(broken, jnp.nan, live_sums),
            finished,
        )

    state, last = read_start(step_fn, state, start)
    # Made from `last`, so that under shard_map they vary over devices as it does.
    zeros = jnp.zeros_like(last)[:, None]
    room = jnp.broadcast_to(zeros[..., None] + rules.pad_id, (rows, beam_size, max_length))
    none = jnp.broadcast_to(zeros - jnp.inf, (rows, beam_size)).astype(dtype)
    search = _Search(
        step=jnp.int32(0),
        last=jnp.repeat(last[:, None], beam_size, axis=1),
        state=_map_state(lambda leaf, axis: jnp.repeat(leaf, beam_size, axis=axis), axes, state),
        live_tokens=room,
        live_sums=none.at[:, 0].set(0),  # all K are the same empty text: one counts
        finished=Beams(
            room[:, :num_results],
            jnp.broadcast_to(zeros, (rows, num_results)),
            none[:, :num_results],
        ),
    )
    search = lax.while_loop(can_improve, extend, search)
    cut = jnp.where(search.step == max_length, score(search.live_sums, max_length), -jnp.inf)
    lengths = jnp.full_like(cut, max_length, jnp.int32)
    found = _best(search.finished, Beams(search.live_tokens, lengths, cut))
    broken = jnp.isnan(search.live_sums).any(axis=1)[:, None] | jnp.isnan(penalty)
    scores = jnp.where(broken, jnp.nan, found.scores)
    is_text = scores > -jnp.inf  # false for NaN too
    return Beams(
        jnp.where(is_text[..., None], found.tokens, -1),
        jnp.where(is_text, found.lengths, 0),
        scores,
    )


def _best(kept: Beams, others: Beams) -> Beams:
    """The best of both by score, as many as were kept."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), kept, others)
    scores, places = lax.top_k(both.scores, kept.scores.shape[1])
    tokens = jnp.take_along_axis(both.tokens, places[..., None], axis=1)
    return Beams(tokens, jnp.take_along_axis(both.lengths, places, axis=1), scores)


def _map_state(function: Any, axes: Any, state: Any) -> Any:
    """``function(leaf, axis)`` for every leaf of a state that has a batch axis."""

    def below(axis: int | None, part: Any) -> Any:
        return part if axis is None else jax.tree.map(lambda leaf: function(leaf, axis), part)

    return jax.tree.map(below, axes, state, is_leaf=lambda axis: axis is None)


def _take_parents(parent: jax.Array, leaf: jax.Array, axis: int) -> jax.Array:
    """A state ``[…, B K, …]`` for the hypotheses that continue the parents ``[B, K]``."""
    axis %= leaf.ndim
    by_row = leaf.reshape(*leaf.shape[:axis], *parent.shape, *leaf.shape[axis + 1 :])

    def take(row: jax.Array, chosen: jax.Array) -> jax.Array:
        return row.at[(slice(None),) * axis + (chosen,)].get(mode="promise_in_bounds")

    return jax.vmap(take, in_axes=(axis, 0), out_axes=axis)(by_row, parent).reshape(leaf.shape)
