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
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from zoo._checks import accumulator, count, floating, integers, number, shapes
from zoo.decoding.filters import penalize_repetition


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


class GuidedState(NamedTuple):
    """The state of a guided step function."""

    conditional: Any
    unconditional: Any
    scale: Any  # [] float32


def prefill(
    model: Any, prompt: jax.Array, *, max_length: int, condition: jax.Array | None = None
) -> Prefilled:
    """Reads a prompt in one call, so that its continuation can be sampled or searched for.

    Args:
        model: with a key/value cache (``init_cache(batch, length)`` and ``decode(ids, cache,
            condition=…) -> logits, cache``, such as ``zoo.transformer.Transformer`` with
            ``mask="causal"``), or recurrent (``initial_carries(batch)`` and ``model(ids, carries)``
            with ``.logits`` and ``.carries``, such as ``zoo.ordered.OnLstmLanguageModel``).
        prompt: ``[B, T]`` int, T ≥ 1, rows of one length. To generate without a prompt, give the
            token that begins or separates texts.
        max_length: of the continuation.
        condition: ``[B, E]``, for a model with conditional norms.

    Returns:
        ``Prefilled``: arguments of :func:`sample` and :func:`beam_search`.

    Raises:
        TypeError: if the prompt does not consist of integers.
        ValueError: if prompt and continuation are longer than the cache can be, a shape does not
            fit, or a recurrent model is given a condition.

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
    sizes = shapes(prompt=(prompt, "B T"), **given)
    rows, time = sizes["B"], count("the number of tokens in prompt", sizes["T"], at_least=1)
    length = time + count("max_length", max_length, at_least=1) - 1  # the last token is not read
    cached = hasattr(model, "init_cache")
    if not cached and condition is not None:
        raise ValueError("condition must be None for a recurrent model, got an array")
    if hasattr(model, "unstacked"):
        model = model.unstacked()

    def empty(rows: int) -> Any:
        return model.init_cache(rows, length) if cached else model.initial_carries(rows)

    try:
        memory = empty(rows)
    except ValueError as error:
        raise ValueError(
            f"a prompt of {time} tokens and max_length={max_length} need a cache of {length}: "
            f"{error}"
        ) from error
    if time > 1 and cached:
        _, memory = model.decode(prompt[:, :-1], memory, condition=condition)
    elif time > 1:
        memory = model(prompt[:, :-1], memory).carries
    one, two = (jax.eval_shape(lambda rows=rows: empty(rows)) for rows in (1, 2))
    axes = ModelState(None, jax.tree.map(_batch_axis, one, two), 0)
    step_fn = _cached_step if cached else _recurrent_step
    return Prefilled(step_fn, ModelState(model, memory, condition), prompt[:, -1], axes)


def _batch_axis(one: Any, two: Any) -> int | None:
    """The axis in which the shapes for one row and for two differ."""
    pairs = enumerate(zip(one.shape, two.shape, strict=True))
    return next((axis for axis, (a, b) in pairs if a != b), None)


def _cached_step(tokens: jax.Array, state: ModelState) -> tuple[jax.Array, ModelState]:
    model, cache, condition = state
    logits, cache = model.decode(tokens[:, None], cache, condition=condition)
    return logits[:, 0], ModelState(model, cache, condition)


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

    end_id: int | None
    pad_id: int
    min_length: int
    banned: tuple[int, ...]


def make_rules(
    *, end_id: Any, pad_id: Any, min_length: Any, banned: Sequence[Any], max_length: int
) -> Rules:
    """The rules as plain Python numbers, whatever kind of scalar they were given as."""
    return Rules(
        None if end_id is None else count("end_id", end_id),
        count("pad_id", pad_id),
        count("min_length", min_length, at_most=max_length),
        tuple(count("banned", token) for token in banned),
    )


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
    ends = () if rules.end_id is None else (rules.end_id,)
    for name, ids in (("end_id", ends), ("pad_id", (rules.pad_id,)), ("banned", rules.banned)):
        for token in ids:
            count(name, token, at_most=size - 1)
    if len({*rules.banned, *(ends if rules.min_length else ())}) == size:
        raise ValueError(
            f"banned must leave one of {size} tokens to write, got all of them"
            + (" (with end_id, until min_length is reached)" if rules.min_length else "")
        )
    return logits


def apply_rules(
    logits: jax.Array, written: jax.Array, step: jax.Array, rules: Rules, penalty: Any
) -> jax.Array:
    """The logits ``[B, V]`` under the rules, in at least float32.

    ``written`` [B, T] holds the tokens so far; places from ``step`` on are ignored. ``penalty`` is
    that of :func:`check_penalty`.
    """
    z = logits.astype(accumulator(logits.dtype))
    if penalty is not None:
        place = lax.broadcasted_iota(jnp.int32, written.shape, 1)
        written = jnp.where(place < step, written, -1)
        # Also before the first token is written, a penalty that is no number shows.
        z = penalize_repetition(z, written, penalty=penalty) + 0 * jnp.asarray(penalty, z.dtype)
    if rules.banned:
        z = z.at[:, jnp.array(rules.banned)].set(-jnp.inf)
    if rules.min_length and rules.end_id is not None:
        end = jnp.where(step < rules.min_length, -jnp.inf, z[:, rules.end_id])
        z = z.at[:, rules.end_id].set(end)
    return z


def read_start(step_fn: StepFunction, state: Any, start: jax.Array) -> tuple[Any, jax.Array]:
    """Reads all tokens of ``[B, T]`` but the last: the state, and the last ones ``[B]``."""
    if start.ndim == 1:
        return state, start
    state, _ = lax.scan(
        lambda state, tokens: (step_fn(tokens, state)[1], None), state, start[:, :-1].T
    )
    return state, start[:, -1]
