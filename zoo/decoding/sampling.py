"""Texts drawn from a model, token by token, in one compiled loop.

    w_t ~ softmax(filter(z_t)),   z_t, state = step(w_{t-1}, state)

The loop ends when every row has ended: by an end token, or by a stop sequence of several.

Source: https://kexue.fm/archives/7124; see `zoo.decoding.filters`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo._checks import accumulator, count, typed_key
from zoo._closures import run_current
from zoo.decoding.filters import check_filters, check_top_k, filter_logits, is_zero
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
    read_start,
    repeat_rows,
    tail_matches,
)


class Samples(NamedTuple):
    """The result of :func:`sample`."""

    tokens: jax.Array  # [B, T] int32; after the end token pad_id, -1 where no token was possible
    lengths: jax.Array  # [B] int32, tokens before the end token or stop sequence
    log_probabilities: jax.Array  # [B, T], of each token by the model, before any filter; then 0
    # With num_samples N: [B, N, T], [B, N], [B, N, T].


def sample(
    key: jax.Array,
    step_fn: StepFunction,
    state: Any,
    *,
    start: ArrayLike,
    max_length: int,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    top_p: float | jax.Array | None = None,
    min_p: float | jax.Array | None = None,
    repetition_penalty: float | jax.Array = 1.0,
    context: ArrayLike | None = None,
    no_repeat_ngram: int | None = None,
    min_length: int = 0,
    banned: Sequence[int] = (),
    allowed_tokens: AllowedTokens | None = None,
    end_id: int | Sequence[int] | None = None,
    stop_sequences: Sequence[Sequence[int]] = (),
    pad_id: int = 0,
    num_samples: int | None = None,
    state_axes: Any = 0,
) -> Samples:
    """Draws continuations of every row, see the module docstring.

    Args:
        key: typed key, consumed.
        step_fn: see `zoo.decoding.steps`; the same object compiles once, and what it closes over is
            read in every call.
        state: its state, for B rows.
        start: ``[B]`` int, the first token to read; or ``[B, T]``, read one by one
            (:func:`prefill` reads a prompt in one call).
        max_length: most tokens to draw, with the end token.
        temperature: see :func:`filter_logits`; 0 is greedy.
        top_k: see :func:`filter_logits`.
        top_p: see :func:`filter_logits`.
        min_p: see :func:`filter_logits`.
        repetition_penalty: see :func:`penalize_repetition`; of drawn tokens and of ``context``.
        context: ``[B, P]`` int, earlier tokens such as the prompt, negative at padding, for what
            looks back: ``repetition_penalty``, ``no_repeat_ngram``, ``allowed_tokens``.
        no_repeat_ngram: n; no n tokens of context and text in a row occur twice. None: they may.
        min_length: fewest tokens before the end token; a stop sequence before ends nothing.
        banned: tokens that are never drawn.
        allowed_tokens: a function ``(tokens, end) -> allowed`` from the context and the text
            ``tokens[:, :end]`` of ``[B, P + T]`` int32, negative where there is none, to
            ``[B, V]`` bool. The same object compiles once.
        end_id: the token, or tokens, that end a row; None: none does.
        stop_sequences: of tokens, each of which ends a row when the text ends with it.
        pad_id: what follows the end.
        num_samples: N, continuations of each row; the prompt is read once. None: one, without axis.
        state_axes: batch axis of each leaf of the state, a tree prefix as for ``jax.vmap``; None is
            shared by all rows. Read with ``num_samples`` only.

    Returns:
        ``Samples``. If the logits of a row are NaN (a cache that is too short, say) or all -inf,
        its tokens are -1 from there on and their log-probabilities NaN.

    Raises:
        TypeError: if ``start`` is not integer, the key is not a typed key, or the step function
            changes the state's form.
        ValueError: if a number is out of its range, an axis of the state is not that of B rows, or
            all tokens are banned.

    >>> def step_fn(tokens, state):  # a clock
    ...     return 50.0 * jax.nn.one_hot((tokens + 1) % 4, 4), state
    >>> sample(jax.random.key(0), step_fn, (), start=[0, 2], max_length=5, end_id=3).tokens
    Array([[1, 2, 3, 0, 0],
           [3, 0, 0, 0, 0]], dtype=int32)
    """
    typed_key("key", key)
    max_length = count("max_length", max_length, at_least=1)
    top_k = None if top_k is None else count("top_k", top_k, at_least=1)
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
    penalty = check_penalty(repetition_penalty)
    temperature, top_p, min_p = check_filters(temperature, top_p, min_p)
    filters = None
    if not is_zero(temperature):
        filters = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    start = check_start(start)
    copies = 1 if num_samples is None else count("num_samples", num_samples, at_least=1)
    found = run_current(
        _sample,
        key,
        state,
        start,
        check_context(context, start),
        filters,
        penalty,
        step_fn=step_fn,
        max_length=max_length,
        top_k=top_k,
        rules=rules,
        copies=copies,
        flat_axes=flatten_axes(state_axes if copies > 1 else None),
    )
    if num_samples is None:
        return found
    return jax.tree.map(lambda x: x.reshape(len(start), copies, *x.shape[1:]), found)


def _sample(
    key: jax.Array,
    state: Any,
    start: jax.Array,
    context: jax.Array | None,
    filters: dict[str, Any] | None,
    penalty: Any,
    *,
    step_fn: StepFunction,
    max_length: int,
    top_k: int | None,
    rules: Rules,
    copies: int,
    flat_axes: Any,
) -> Samples:
    """:func:`sample`; without filters it is greedy."""
    logits = check_step(step_fn, state, start, rules)
    check_top_k(top_k, logits.shape[1])
    dtype = accumulator(logits.dtype)

    def is_running(carry: Any) -> jax.Array:
        step, finished, *_ = carry
        return (step < max_length) & ~finished.all()

    def draw(carry: Any) -> Any:
        step, finished, last, state, out = carry
        logits, state = step_fn(last, state)
        z = apply_rules(logits, context, out.tokens, step, rules, penalty)
        if filters is None:
            token = jnp.argmax(z, axis=-1)
        else:
            z = filter_logits(z, top_k=top_k, **filters)
            token = jax.random.categorical(jax.random.fold_in(key, step), z)
        token = jnp.where(finished, rules.pad_id, token.astype(jnp.int32))
        # The comparison is false for NaN too.
        possible = finished | (_pick(z, token) > -jnp.inf)
        wide = logits.astype(dtype)
        log_probability = _pick(wide, token) - jax.nn.logsumexp(wide, axis=-1)
        column = jnp.where(finished, 0, jnp.where(possible, log_probability, jnp.nan))
        finished |= ~possible
        tokens = out.tokens.at[:, step].set(token)
        lengths = jnp.where(finished, out.lengths, step + 1)
        for ending in rules.endings:
            ends = ~finished & tail_matches(tokens, step + 1, ending, rules.min_length)
            lengths = jnp.where(ends, step + 1 - len(ending), lengths)
            finished |= ends
        out = Samples(tokens, lengths, out.log_probabilities.at[:, step].set(column))
        return step + 1, finished, token, state, out

    state, last = read_start(step_fn, state, start)
    if copies > 1:
        axes = jax.tree.unflatten(flat_axes[1], flat_axes[0])
        state = repeat_rows(state, axes, len(last), copies)
        last = jnp.repeat(last, copies)
        context = None if context is None else jnp.repeat(context, copies, axis=0)
    # Made from `last`, so that under shard_map they vary over devices as it does.
    zeros = jnp.zeros_like(last)
    room = jnp.broadcast_to(zeros[:, None], (len(last), max_length))
    out = Samples(room + rules.pad_id, zeros, room.astype(dtype))
    carry = (jnp.int32(0), zeros != 0, last, state, out)
    *_, out = lax.while_loop(is_running, draw, carry)
    broken = jnp.cumsum(jnp.isnan(out.log_probabilities), axis=1) > 0
    return Samples(
        jnp.where(broken, -1, out.tokens),
        out.lengths,
        jnp.where(broken, jnp.nan, out.log_probabilities),
    )


def _pick(z: jax.Array, token: jax.Array) -> jax.Array:
    """The entry of each row's token: [B]."""
    return jnp.take_along_axis(z, token[:, None], axis=-1)[:, 0]
