"""The interface between a model and a decoder: one token in, the logits of the next one out.

    logits, state = step_fn(tokens, state)      tokens [B] int32, logits [B, V]

The state is any pytree of arrays, of the same shapes and dtypes before and after: keys and values
of a Transformer, the carry of a recurrent network, the condition of a caption. ``state_axes`` gives
the batch axis of each leaf, like ``in_axes`` of ``jax.vmap``; None marks what all rows share, such
as parameters. Parameters in the state, not in a closure, are arguments of the compiled program, and
one step function makes one program.

Guidance from a condition u (none at all, or one to keep away from) to a condition c:

    z = z_u + scale · (z_c - z_u)

Source: Jonathan Ho, Tim Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598; for
language models Guillaume Sanchez et al., "Stay on topic with Classifier-Free Guidance", 2023, arXiv
2306.17806.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo._checks import accumulator, count, floating, integers, number, shapes
from zoo.decoding.filters import ngram_completions, penalize_repetition

AllowedTokens = Callable[[jax.Array, jax.Array], jax.Array]


class StepFunction(Protocol):
    """See the module docstring."""

    def __call__(self, tokens: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """``[B]`` int32 and the state to logits ``[B, V]`` and the next state."""


class Prefilled(NamedTuple):
    """A model that has read all tokens of a prompt but the last."""

    step_fn: StepFunction
    state: Any
    start: jax.Array  # [B] int32, the last token of the prompt
    state_axes: Any  # tree prefix of the state


class ModelState(NamedTuple):
    """The state of a model's step function."""

    model: Any  # parameters
    memory: Any  # keys and values, or carries
    condition: Any  # [B, E], or None
    segments: Any = None  # [B] int32 of the next token, for the prefix mask


class GuidedState(NamedTuple):
    """The state of a guided step function."""

    conditional: Any
    unconditional: Any
    scale: Any  # [] float32


def prefill(
    model: Any,
    prompt: jax.Array,
    *,
    max_length: int,
    mask: jax.Array | None = None,
    condition: jax.Array | None = None,
) -> Prefilled:
    """Reads a prompt in one call, so that its continuation can be sampled or searched for.

    With the prefix mask the prompt is the prefix: its tokens attend to each other, the last one
    included, and what is written is segment 1.

    Args:
        model: with a key/value cache (``init_cache(batch, length)`` and ``decode(ids, cache,
            condition=…) -> logits, cache``, such as ``zoo.transformer.Transformer`` with
            ``mask="causal"`` or ``"prefix"``), or recurrent (``initial_carries(batch)`` and
            ``model(ids, carries)`` with ``.logits`` and ``.carries``, such as
            ``zoo.ordered.OnLstmLanguageModel``).
        prompt: ``[B, T]`` int, T ≥ 1. To generate without a prompt, give the token that begins or
            separates texts.
        max_length: of the continuation.
        mask: ``[B, T]`` bool for prompts of unequal length, False at padding, wherever it is; every
            row is continued as if it were alone. ``decode`` and ``init_cache`` of the model are
            called with ``mask=`` and ``padded=True``. None: there is no padding.
        condition: ``[B, E]``, for a model with conditional norms.

    Returns:
        ``Prefilled``: arguments of :func:`sample` and :func:`beam_search`.

    Raises:
        TypeError: if the prompt does not consist of integers, or the mask is not bool.
        ValueError: if a row of the prompt has no token, prompt and continuation are longer than the
            cache can be, a shape does not fit, or a recurrent model is given a condition.

    >>> from flax import nnx
    >>> from zoo.decoding import sample
    >>> from zoo.transformer import Transformer, TransformerConfig
    >>> config = TransformerConfig(vocab_size=11, features=8, num_layers=1, num_heads=2,
    ...                            feedforward_features=16, max_positions=6, mask="causal")
    >>> @jax.jit
    ... def write(model, key, prompt):
    ...     read = prefill(model, prompt, max_length=4)
    ...     return sample(key, read.step_fn, read.state, start=read.start, max_length=4).tokens
    >>> model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    >>> jax.eval_shape(write, model, jax.random.key(0), jnp.array([[3, 1, 4]])).shape
    (1, 4)
    """
    prompt = as_ids("prompt", prompt)
    given = {} if condition is None else {"condition": (condition, "B E")}
    given |= {} if mask is None else {"mask": (mask, "B T")}
    sizes = shapes(prompt=(prompt, "B T"), **given)
    rows, time = sizes["B"], count("the number of tokens in prompt", sizes["T"], at_least=1)
    length = time + count("max_length", max_length, at_least=1) - 1  # the last token is not read
    cached = hasattr(model, "init_cache")
    if not cached and condition is not None:
        raise ValueError("condition must be None for a recurrent model, got an array")
    if hasattr(model, "unstacked"):
        model = model.unstacked()

    if mask is not None:
        mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
        prompt, mask = _padding_first(prompt, mask)
    prefix = getattr(getattr(model, "config", None), "mask", None) == "prefix"
    padded: dict[str, Any] = {} if mask is None else {"padded": True}

    def empty(rows: int) -> Any:
        return model.init_cache(rows, length, **padded) if cached else model.initial_carries(rows)

    try:
        memory = empty(rows)
    except ValueError as error:
        raise ValueError(
            f"a prompt of {time} tokens and max_length={max_length} need a cache of {length}: "
            f"{error}"
        ) from error
    one, two = (jax.eval_shape(lambda rows=rows: empty(rows)) for rows in (1, 2))
    axes = jax.tree.map(_batch_axis, one, two)
    last = prompt[:, -1]
    read = prompt if prefix else prompt[:, :-1]
    options: dict[str, Any] = {} if mask is None else {"mask": mask[:, : read.shape[1]]}
    if prefix:  # the last token is read again by the first step, whose logits are the first
        options |= {"segment_ids": jnp.zeros_like(read)}
        _, memory = model.decode(read, memory, condition=condition, **options)
        memory = model.rewind(memory, 1)
    elif time > 1 and cached:
        _, memory = model.decode(read, memory, condition=condition, **options)
    elif time > 1 and mask is None:
        memory = model(read, memory).carries
    elif time > 1:
        memory = _read_unequal(model, read, memory, axes, **options)
    step_fn = _cached_step if cached else _recurrent_step
    segments = jnp.zeros_like(last) if prefix else None
    state = ModelState(model, memory, condition, segments)
    return Prefilled(step_fn, state, last, ModelState(None, axes, 0, 0))


def _padding_first(prompt: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows that end with their last token; padding becomes -1, which is no token."""
    if mask.dtype != bool:
        raise TypeError(f"mask must be bool, True at tokens, got {mask.dtype}; use ids != pad_id")
    if not isinstance(mask, jax.core.Tracer) and not np.asarray(mask).any(axis=1).all():
        raise ValueError("mask must leave every row of prompt a token, got a row of padding alone")
    return align_right(jnp.where(mask, prompt, -1))


def align_right(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tokens ``[B, T]`` of every row behind its negative ids, which are none; and the mask."""
    order = jnp.argsort(ids >= 0, axis=1, stable=True)
    ids = jnp.take_along_axis(ids, order, axis=1)
    return ids, ids >= 0


def _read_unequal(model: Any, ids: jax.Array, carries: Any, axes: Any, *, mask: jax.Array) -> Any:
    """The carries of a recurrent model after the tokens of every row, without its padding."""

    def step(carries: Any, column: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        tokens, given = column
        after = model(jnp.where(given, tokens, 0)[:, None], carries).carries

        def choose(axis: int, old: jax.Array, new: jax.Array) -> jax.Array:
            rows = given.reshape(tuple(-1 if i == axis else 1 for i in range(old.ndim)))
            return jnp.where(rows, new, old)

        return jax.tree.map(choose, axes, carries, after), None

    return lax.scan(step, carries, (ids.T, mask.T))[0]


def _batch_axis(one: Any, two: Any) -> int | None:
    """The axis in which the shapes for one row and for two differ."""
    pairs = enumerate(zip(one.shape, two.shape, strict=True))
    return next((axis for axis, (a, b) in pairs if a != b), None)


def _cached_step(tokens: jax.Array, state: ModelState) -> tuple[jax.Array, ModelState]:
    model, cache, condition, segments = state
    options = {} if segments is None else {"segment_ids": segments[:, None]}
    logits, cache = model.decode(tokens[:, None], cache, condition=condition, **options)
    after = None if segments is None else jnp.ones_like(segments)
    return logits[:, 0], ModelState(model, cache, condition, after)


def _recurrent_step(tokens: jax.Array, state: ModelState) -> tuple[jax.Array, ModelState]:
    output = state.model(tokens[:, None], state.memory)
    return output.logits[:, 0], state._replace(memory=output.carries)


def guide_logits(
    conditional: jax.Array, unconditional: jax.Array, *, scale: float | jax.Array
) -> jax.Array:
    """Logits guided from one condition to another: z_u + scale · (z_c - z_u).

    Args:
        conditional: z_c, ``[..., V]``.
        unconditional: z_u, ``[..., V]``.
        scale: 0 gives z_u, 1 gives z_c, more exaggerates what the condition changes.

    Returns:
        ``[..., V]``, -inf where either is.

    Raises:
        TypeError: if logits are not floats.
        ValueError: if the shapes differ, or the scale is not finite.

    >>> guide_logits(jnp.array([1.0, 3.0]), jnp.array([1.0, 2.0]), scale=2.0)
    Array([1., 4.], dtype=float32)

    Reference: arXiv 2207.12598; arXiv 2306.17806.
    """
    if conditional.shape != unconditional.shape:
        raise ValueError(
            "conditional and unconditional must have one shape, got "
            f"{conditional.shape} and {unconditional.shape}"
        )
    c, u = floating("conditional", conditional), floating("unconditional", unconditional)
    dtype = jnp.result_type(c, u)
    wide = accumulator(dtype)
    excluded = jnp.isneginf(c) | jnp.isneginf(u)
    c, u = (jnp.where(excluded, 0, z).astype(wide) for z in (c, u))
    guided = u + jnp.asarray(number("scale", scale), wide) * (c - u)
    return jnp.where(excluded, -jnp.inf, guided).astype(dtype)


def guide(
    conditional: Prefilled, unconditional: Prefilled, *, scale: float | jax.Array
) -> Prefilled:
    """Joins two decoders to one with the logits of :func:`guide_logits`; both read every token.

    Args:
        conditional: a model with the condition that is wanted.
        unconditional: the same one without, or with one to keep away from.
        scale: see :func:`guide_logits`.

    Returns:
        ``Prefilled`` as :func:`prefill` returns it.

    Raises:
        ValueError: if they do not continue the same number of rows, or the scale is not finite.

    >>> def step_fn(tokens, state):
    ...     return state, state
    >>> one, other = (Prefilled(step_fn, jnp.array([z]), jnp.array([0]), 0)
    ...               for z in ([1.0, 3.0], [1.0, 2.0]))
    >>> guided = guide(one, other, scale=2.0)
    >>> guided.step_fn(guided.start, guided.state)[0]
    Array([[1., 4.]], dtype=float32)
    """
    shapes(conditional=(conditional.start, "B"), unconditional=(unconditional.start, "B"))
    scale = jnp.asarray(number("scale", scale), jnp.float32)
    return Prefilled(
        _GuidedStep(conditional.step_fn, unconditional.step_fn),
        GuidedState(conditional.state, unconditional.state, scale),
        conditional.start,
        GuidedState(conditional.state_axes, unconditional.state_axes, None),
    )


@dataclasses.dataclass(frozen=True)
class _GuidedStep:
    """A step function that equals every other one of the same two, so that it compiles once."""

    conditional: StepFunction
    unconditional: StepFunction

    def __call__(self, tokens: jax.Array, state: GuidedState) -> tuple[jax.Array, GuidedState]:
        c, conditional = self.conditional(tokens, state.conditional)
        u, unconditional = self.unconditional(tokens, state.unconditional)
        logits = guide_logits(c, u, scale=state.scale)
        return logits, GuidedState(conditional, unconditional, state.scale)


# What `sample` and `beam_search` share.


class Rules(NamedTuple):
    """Constraints on a continuation that are known before tracing."""

    endings: tuple[tuple[int, ...], ...]  # end ids and stop sequences, longest first
    pad_id: int
    min_length: int
    banned: tuple[int, ...]
    no_repeat_ngram: int | None
    allowed_tokens: AllowedTokens | None

    @property
    def end_ids(self) -> list[int]:
        """The endings of one token."""
        return [ending[0] for ending in self.endings if len(ending) == 1]


def make_rules(
    *,
    end_id: Any,
    stop_sequences: Sequence[Sequence[Any]],
    pad_id: Any,
    min_length: Any,
    banned: Sequence[Any],
    max_length: int,
    no_repeat_ngram: Any,
    allowed_tokens: AllowedTokens | None,
) -> Rules:
    """The rules as plain Python numbers, whatever kind of scalar they were given as."""
    ends = end_id if np.ndim(end_id) else [] if end_id is None else [end_id]
    endings: set[tuple[int, ...]] = {(count("end_id", token),) for token in ends}
    for stop in stop_sequences:
        if not np.ndim(stop) == 1 or not len(stop):
            raise ValueError(
                f"stop_sequences must be sequences of at least one id, got {stop!r:.80}; "
                "end_id takes single ids"
            )
        endings.add(tuple(count("stop_sequences", token) for token in stop))
    n = no_repeat_ngram
    return Rules(
        tuple(sorted(endings, key=lambda ending: (-len(ending), ending))),
        count("pad_id", pad_id),
        count("min_length", min_length, at_most=max_length),
        tuple(count("banned", token) for token in banned),
        None if n is None else count("no_repeat_ngram", n, at_least=1),
        allowed_tokens,
    )


def check_context(context: Any, start: jax.Array) -> jax.Array | None:
    """The earlier tokens ``[B, P]``, behind the negative ids, which are none."""
    if context is None:
        return None
    context = as_ids("context", context)
    shapes(start=(start, "B T"[: 2 * start.ndim - 1]), context=(context, "B P"))
    return align_right(context)[0]


def check_penalty(repetition_penalty: Any) -> Any:
    """The penalty, None for 1, which changes nothing; a traced one out of its range is NaN."""
    penalty = number("repetition_penalty", repetition_penalty, above=0)
    return None if not isinstance(penalty, jax.core.Tracer) and penalty == 1 else penalty


def as_ids(name: str, x: Any) -> jax.Array:
    """``x`` as int32; -1, which is no token, for what is out of its range."""
    ids = integers(name, x)
    return jnp.where((ids >= 0) & (ids <= jnp.iinfo(jnp.int32).max), ids, -1).astype(jnp.int32)


def check_start(start: Any) -> jax.Array:
    """The first tokens ``[B]`` or ``[B, T]``, T ≥ 1, as int32."""
    start = as_ids("start", start)
    if start.ndim not in (1, 2) or 0 in start.shape[1:]:
        raise ValueError(
            f"start must be [B], or [B, T] with at least one token per row, got {start.shape}"
        )
    return start


def check_step(step_fn: StepFunction, state: Any, start: jax.Array, rules: Rules) -> Any:
    """The shape of the logits; refuses a step function or rules that cannot work with them."""
    logits, after = jax.eval_shape(step_fn, jax.ShapeDtypeStruct(start.shape[:1], jnp.int32), state)
    if logits.ndim != 2 or len(logits) != len(start):
        raise ValueError(
            f"step_fn must return logits [{len(start)}, V] for {len(start)} rows of start, got "
            f"{logits.shape}"
        )

    def described(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): jax.typeof(leaf).str_short() for path, leaf in leaves}

    given, got = described(state), described(after)
    for leaf in sorted({*given, *got}):
        if given.get(leaf) != got.get(leaf):
            raise TypeError(
                "step_fn must return a state of the form that it is given; expected "
                f"state{leaf}: {given.get(leaf)}, got {got.get(leaf)}"
            )
    size = logits.shape[1]
    stops = [token for ending in rules.endings if len(ending) > 1 for token in ending]
    named = {"end_id": rules.end_ids, "stop_sequences": stops}
    for name, ids in {**named, "pad_id": [rules.pad_id], "banned": rules.banned}.items():
        for token in ids:
            count(name, token, at_most=size - 1)
    if len({*rules.banned, *(rules.end_ids if rules.min_length else ())}) == size:
        raise ValueError(
            f"banned must leave one of {size} tokens to write, got all of them"
            + (" (with end_id, until min_length is reached)" if rules.min_length else "")
        )
    return logits


def apply_rules(
    logits: jax.Array,
    context: jax.Array | None,
    written: jax.Array,
    step: jax.Array,
    rules: Rules,
    penalty: Any,
) -> jax.Array:
    """The logits ``[R, V]`` under the rules, in at least float32.

    ``written`` [R, T] holds the tokens so far; places from ``step`` on are ignored. ``context``
    [R, P] is that of :func:`check_context`, ``penalty`` that of :func:`check_penalty`.
    """
    z = logits.astype(accumulator(logits.dtype))
    place = lax.broadcasted_iota(jnp.int32, written.shape, 1)
    earlier, end = jnp.where(place < step, written, -1), step
    if context is not None:
        earlier, end = jnp.concatenate([context, earlier], axis=1), context.shape[1] + step
    if penalty is not None:
        # Also before the first token is written, a penalty that is no number shows.
        z = penalize_repetition(z, earlier, penalty=penalty) + 0 * jnp.asarray(penalty, z.dtype)
    n = rules.no_repeat_ngram
    if n is not None and n <= earlier.shape[1]:
        z = jnp.where(ngram_completions(earlier, end, n, z.shape[1]), -jnp.inf, z)
    if rules.allowed_tokens is not None:
        allowed = rules.allowed_tokens(earlier, end)
        if allowed.shape != z.shape or allowed.dtype != bool:
            raise ValueError(
                f"allowed_tokens must return bool {list(z.shape)} for tokens "
                f"{list(earlier.shape)}, got {allowed.dtype} {list(allowed.shape)}"
            )
        z = jnp.where(allowed, z, -jnp.inf)
    if rules.banned:
        z = z.at[:, jnp.array(rules.banned)].set(-jnp.inf)
    if rules.min_length and rules.end_ids:
        ends = jnp.array(rules.end_ids)
        z = z.at[:, ends].set(jnp.where(step < rules.min_length, -jnp.inf, z[:, ends]))
    return z


def tail_matches(
    written: jax.Array, length: jax.Array, tail: Sequence[int], least: int
) -> jax.Array:
    """Whether the first ``length`` tokens of ``[..., T]`` end with ``tail``: ``[...]`` bool.

    False for fewer than ``least`` tokens before it.
    """
    size = len(tail)
    if size > written.shape[-1]:
        return jnp.zeros(written.shape[:-1], bool)
    last = lax.dynamic_slice_in_dim(written, length - size, size, axis=written.ndim - 1)
    same = last == jnp.array(tail, jnp.int32).reshape((1,) * (written.ndim - 1) + (size,))
    return same.all(axis=-1) & (length - size >= least)


def map_state(function: Any, axes: Any, state: Any) -> Any:
    """``function(leaf, axis)`` for every leaf of a state that has a batch axis."""

    def below(axis: int | None, part: Any) -> Any:
        return part if axis is None else jax.tree.map(lambda leaf: function(leaf, axis), part)

    return jax.tree.map(below, axes, state, is_leaf=lambda axis: axis is None)


def repeat_rows(state: Any, axes: Any, rows: int, times: int) -> Any:
    """Each of B rows of a state, ``times`` times in a row."""

    def repeat(leaf: Any, axis: int) -> jax.Array:
        shape = jnp.shape(leaf)
        if not -len(shape) <= axis < len(shape) or shape[axis] != rows:
            raise ValueError(
                f"state_axes must give the axis of {rows} rows of start in every leaf, or None for "
                f"what all rows share; got {axis} for a leaf {list(shape)}"
            )
        return jnp.repeat(leaf, times, axis=axis)

    return map_state(repeat, axes, state)


def flatten_axes(state_axes: Any) -> tuple[tuple[Any, ...], Any]:
    """The axes as a hashable constant; ``jax.tree.unflatten(tree, axes)`` gives them back."""
    axes, tree = jax.tree.flatten(state_axes, is_leaf=lambda axis: axis is None)
    return tuple(axes), tree


def read_start(step_fn: StepFunction, state: Any, start: jax.Array) -> tuple[Any, jax.Array]:
    """Reads all tokens of ``[B, T]`` but the last: the state, and the last ones ``[B]``."""
    if start.ndim == 1:
        return state, start
    state, _ = lax.scan(
        lambda state, tokens: (step_fn(tokens, state)[1], None), state, start[:, :-1].T
    )
    return state, start[:, -1]
