"""Beam search: keeps the K most probable partial hypotheses, for all rows of a batch together.

    live      K partial hypotheses per row, by s = Σ log p
    finished  the N best complete ones, by s / length^α, where length counts the end token
    step      extends every live hypothesis by every token: those that end compete for the N
              finished places, and the K most probable of the others stay live

Diverse beams: G groups of K / G hypotheses, each with a search and places of its own. At every step
they choose one after the other, and a token loses λ for every hypothesis of the groups before that
took it at this step: the choice is by s - λ count, the score remains s.

A row is done when no live hypothesis can still enter its N best; what is live at ``max_length``
competes as it is. So no better text is lost because a worse one ended first, and α = 0 finds the
N most probable texts whenever K hypotheses cover the space.

Source: https://kexue.fm/archives/7124, whose decoder has one row and no α, and drops what is
finished and not best; Yonghui Wu et al., "Google's Neural Machine Translation System", 2016, arXiv
1609.08144, section 7; Ashwin Vijayakumar et al., "Diverse Beam Search", 2016, arXiv 1610.02424
(Hamming diversity).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo._checks import accumulator, count, number
from zoo._closures import run_current
from zoo.decoding.steps import (
    AllowedTokens,
    Rules,
    StepFunction,
    apply_rules,
    check_context,
    check_penalty,
    check_start,
    check_step,
    flatten_axes,
    make_rules,
    map_state,
    read_start,
    repeat_rows,
    tail_matches,
)


class Beams(NamedTuple):
    """The result of :func:`beam_search`, best first."""

    tokens: jax.Array  # [B, N, T] int32; after the end token pad_id, -1 where there is no text
    lengths: jax.Array  # [B, N] int32, tokens before the end token or stop sequence
    scores: jax.Array  # [B, N]; -inf where there are fewer texts, NaN where logits were NaN


class _Search(NamedTuple):
    step: jax.Array  # []
    last: jax.Array  # [B, G, K / G]
    state: Any  # of B K rows
    live_tokens: jax.Array  # [B, G, K / G, T]
    live_sums: jax.Array  # [B, G, K / G]
    finished: Beams  # with an axis of groups too


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
    num_groups: int = 1,
    diversity_penalty: float | jax.Array = 0.0,
    repetition_penalty: float | jax.Array = 1.0,
    context: ArrayLike | None = None,
    no_repeat_ngram: int | None = None,
    min_length: int = 0,
    banned: Sequence[int] = (),
    allowed_tokens: AllowedTokens | None = None,
    end_id: int | Sequence[int] | None = None,
    stop_sequences: Sequence[Sequence[int]] = (),
    pad_id: int = 0,
) -> Beams:
    """The most probable continuations of every row, see the module docstring.

    What is banned has probability 0, and the other tokens share its own.

    Args:
        step_fn: see `zoo.decoding.steps`; the same object compiles once, and what it closes over is
            read in every call.
        state: its state, for B rows.
        start: ``[B]`` int, the first token to read; or ``[B, T]``, read one by one.
        beam_size: K in 1..V; 1 is greedy search.
        max_length: most tokens of a text, with the end token.
        length_penalty: α; 0 compares sums of log p, 1 means, more prefers longer texts.
        state_axes: batch axis of each leaf of the state, a tree prefix as for ``jax.vmap``; None
            is shared by all rows.
        num_results: N in 1..K; None: K.
        num_groups: G, which must divide K and N.
        diversity_penalty: λ; more than 0 for several groups, which else would be equal.
        repetition_penalty: see :func:`penalize_repetition`; of written tokens and of ``context``.
        context: as for :func:`sample`, likewise the next one.
        no_repeat_ngram: n, see :func:`sample`.
        min_length: fewest tokens before the end token; a stop sequence before ends nothing.
        banned: tokens that are never written.
        allowed_tokens: see :func:`sample`; called for all hypotheses, ``[B K, P + T]``.
        end_id: the token, or tokens, that end a text; None: none does.
        stop_sequences: of tokens, each of which ends a text.
        pad_id: what follows the end.

    Returns:
        ``Beams``; with groups N / G results of each, group by group.

    Raises:
        TypeError: if ``start`` is not integer, or the step function changes the state's form.
        ValueError: if a number is out of its range, an axis of the state is not that of B rows, or
            all tokens are banned.

    >>> table = jnp.log(jnp.array([[0.6, 0.4, 0.0], [0.5, 0.32, 0.18], [0.1, 0.1, 0.8]]))
    >>> def step_fn(tokens, state):
    ...     return table[tokens], state
    >>> found = beam_search(step_fn, (), start=[1], beam_size=3, max_length=2, end_id=2)
    >>> found.tokens.tolist()
    [[[0, 0], [0, 1], [2, 0]]]
    >>> jnp.exp(found.scores).tolist()
    [[0.30, 0.20, 0.18]]
    """
    max_length = count("max_length", max_length, at_least=1)
    beam_size = count("beam_size", beam_size, at_least=1)
    num_results = beam_size if num_results is None else num_results
    num_results = count("num_results", num_results, at_least=1, at_most=beam_size)
    num_groups = count("num_groups", num_groups, at_least=1, at_most=beam_size)
    if beam_size % num_groups or num_results % num_groups:
        raise ValueError(
            "num_groups must divide beam_size and num_results, got "
            f"{num_groups} for {beam_size} and {num_results}"
        )
    diversity = number("diversity_penalty", diversity_penalty, at_least=0)
    if num_groups > 1 and isinstance(diversity, float) and diversity == 0:
        raise ValueError(
            f"diversity_penalty must be more than 0 for num_groups={num_groups}, got 0: the groups "
            "would be equal"
        )
    rules = make_rules(
        end_id=end_id,
        stop_sequences=stop_sequences,
        pad_id=pad_id,
        min_length=min_length,
        banned=banned,
        max_length=max_length,
        no_repeat_ngram=no_repeat_ngram,
        allowed_tokens=allowed_tokens,
    )
    start = check_start(start)
    return run_current(
        _beam_search,
        state,
        start,
        check_context(context, start),
        number("length_penalty", length_penalty),
        check_penalty(repetition_penalty),
        diversity,
        step_fn=step_fn,
        flat_axes=flatten_axes(state_axes),
        beam_size=beam_size,
        groups=num_groups,
        num_results=num_results,
        max_length=max_length,
        rules=rules,
    )


def _beam_search(
    state: Any,
    start: jax.Array,
    context: jax.Array | None,
    length_penalty: float | jax.Array,
    repetition_penalty: Any,
    diversity: float | jax.Array,
    *,
    step_fn: StepFunction,
    flat_axes: Any,
    beam_size: int,
    groups: int,
    num_results: int,
    max_length: int,
    rules: Rules,
) -> Beams:
    logits = check_step(step_fn, state, start, rules)
    rows, size = logits.shape
    width, kept = beam_size // groups, num_results // groups  # of one group
    count("beam_size", width, at_most=size)
    axes = jax.tree.unflatten(flat_axes[1], flat_axes[0])
    dtype = accumulator(logits.dtype)
    penalty = jnp.asarray(length_penalty, dtype)

    def score(sums: jax.Array, length: ArrayLike) -> jax.Array:
        return sums / jnp.asarray(length, dtype) ** penalty

    def can_improve(search: _Search) -> jax.Array:
        # Sums only fall, so a hypothesis can at best keep its sum and reach the best length.
        length = jnp.where(penalty > 0, max_length, search.step + 1)
        best = score(search.live_sums.max(axis=-1), length)
        return (search.step < max_length) & (best > search.finished.scores[..., -1]).any()

    def extend(search: _Search) -> _Search:
        step, live, finished = search.step, search.live_tokens, search.finished
        logits, state = step_fn(search.last.reshape(-1), search.state)
        written = live.reshape(-1, max_length)
        z = apply_rules(logits, context, written, step, rules, repetition_penalty)
        # What cannot be written has probability 0, also where nothing can; and what follows it
        # counts no more, whatever the model makes of it.
        log_p = jnp.where(jnp.isneginf(z), -jnp.inf, jax.nn.log_softmax(z))
        before = search.live_sums[..., None]
        sums = before + log_p.reshape(rows, groups, width, size)
        sums = jnp.where(jnp.isneginf(before), -jnp.inf, sums)
        for *tail, end in rules.endings:
            ends = tail_matches(live, step, tail, rules.min_length)
            ended = score(jnp.where(ends, sums[..., end], -jnp.inf), step + 1)
            lengths = jnp.full_like(ended, step - len(tail), jnp.int32)
            finished = _best(finished, Beams(live.at[..., step].set(end), lengths, ended))
            sums = sums.at[..., end].set(jnp.where(ends, -jnp.inf, sums[..., end]))
        live_sums, parent, token = _choose(sums, jnp.asarray(diversity, dtype))
        # NaN sums come first from here on: no score is greater, so the search of the row ends.
        broken = jnp.isnan(sums).any(axis=(1, 2, 3))[:, None, None]
        from_all = (parent + width * jnp.arange(groups)[None, :, None]).reshape(rows, beam_size)
        return _Search(
            step + 1,
            token,
            map_state(functools.partial(_take_parents, from_all), axes, state),
            jnp.take_along_axis(live, parent[..., None], axis=2).at[..., step].set(token),
            jnp.where(broken, jnp.nan, live_sums),
            finished,
        )

    state, last = read_start(step_fn, state, start)
    # Made from `last`, so that under shard_map they vary over devices as it does.
    zeros = jnp.zeros_like(last)[:, None, None]
    room = jnp.broadcast_to(zeros[..., None] + rules.pad_id, (rows, groups, width, max_length))
    none = jnp.broadcast_to(zeros - jnp.inf, (rows, groups, width)).astype(dtype)
    context = None if context is None else jnp.repeat(context, beam_size, axis=0)
    search = _Search(
        step=jnp.int32(0),
        last=jnp.broadcast_to(last[:, None, None], (rows, groups, width)),
        state=repeat_rows(state, axes, rows, beam_size),
        live_tokens=room,
        live_sums=none.at[..., 0].set(0),  # all of a group are the same empty text: one counts
        finished=Beams(
            room[:, :, :kept],
            jnp.broadcast_to(zeros, (rows, groups, kept)),
            none[:, :, :kept],
        ),
    )
    search = lax.while_loop(can_improve, extend, search)
    cut = jnp.where(search.step == max_length, score(search.live_sums, max_length), -jnp.inf)
    lengths = jnp.full_like(cut, max_length, jnp.int32)
    found = _best(search.finished, Beams(search.live_tokens, lengths, cut))
    found = jax.tree.map(lambda x: x.reshape(rows, num_results, *x.shape[3:]), found)
    broken = jnp.isnan(search.live_sums).any(axis=(1, 2))[:, None]
    scores = jnp.where(broken | jnp.isnan(penalty) | jnp.isnan(diversity), jnp.nan, found.scores)
    is_text = scores > -jnp.inf  # false for NaN too
    return Beams(
        jnp.where(is_text[..., None], found.tokens, -1),
        jnp.where(is_text, found.lengths, 0),
        scores,
    )


def _choose(sums: jax.Array, diversity: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the sums ``[B, G, K, V]``, K for every group: sums, parents and tokens ``[B, G, K]``."""
    rows, groups, width, size = sums.shape
    taken = jnp.zeros((rows, size), sums.dtype)  # how often, by the groups before
    chosen = []
    for group in range(groups):
        own = sums[:, group]
        steered = own - diversity * taken[:, None] if group else own
        best, places = lax.top_k(steered.reshape(rows, width * size), width)
        if group:
            best = jnp.take_along_axis(own.reshape(rows, width * size), places, axis=1)
        parent, token = places // size, places % size
        if group + 1 < groups:
            is_alive = (best > -jnp.inf)[..., None]
            taken += jnp.sum(is_alive * jax.nn.one_hot(token, size, dtype=taken.dtype), axis=1)
        chosen.append((best, parent, token))
    best, parent, token = (jnp.stack(parts, axis=1) for parts in zip(*chosen, strict=True))
    return best, parent, token


def _best(kept: Beams, others: Beams) -> Beams:
    """The best of both by score, as many as were kept."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), kept, others)
    scores, places = lax.top_k(both.scores, kept.scores.shape[2])
    tokens = jnp.take_along_axis(both.tokens, places[..., None], axis=2)
    return Beams(tokens, jnp.take_along_axis(both.lengths, places, axis=2), scores)


def _take_parents(parent: jax.Array, leaf: jax.Array, axis: int) -> jax.Array:
    """A state ``[…, B K, …]`` for the hypotheses that continue the parents ``[B, K]``."""
    axis %= leaf.ndim
    by_row = leaf.reshape(*leaf.shape[:axis], *parent.shape, *leaf.shape[axis + 1 :])

    def take(row: jax.Array, chosen: jax.Array) -> jax.Array:
        return row.at[(slice(None),) * axis + (chosen,)].get(mode="promise_in_bounds")

    return jax.vmap(take, in_axes=(axis, 0), out_axes=axis)(by_row, parent).reshape(leaf.shape)
