"""How a model is asked for one token after the other.

A step function reads one token a row and says what may come next:

    logits, state = step_fn(tokens, state)      tokens [B] int32, logits [B, V]

The state is any pytree of arrays, of the same shapes and dtypes before and after: keys and values
of a Transformer, the carry of a recurrent network, the condition of a caption. ``state_axes`` says
which axis of each leaf is that of the rows, as ``in_axes`` of ``jax.vmap`` does; None is shared by
all rows, such as parameters. Parameters that are in the state, not in a closure, are arguments of
the compiled program, and one step function makes one program.

Guidance between two conditions c and u (u: none at all, or one to keep away from):

    z = z_u + scale · (z_c - z_u)

Source: Jonathan Ho, Tim Salimans, «Classifier-Free Diffusion Guidance», 2022, arXiv 2207.12598; for
language models Guillaume Sanchez et al., «Stay on topic with Classifier-Free Guidance», 2023, arXiv
2306.17806.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

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
    """Reads a prompt at once, so that its continuation can be sampled or searched for.

    Args:
        model: with a key/value cache (``init_cache(batch, length)`` and ``decode(ids, cache,
            condition=…) -> logits, cache``, such as ``zoo.transformer.Transformer`` with
            ``mask="causal"``), or recurrent (``initial_carries(batch)`` and ``model(ids, carries)``
            with ``.logits`` and ``.carries``, such as ``zoo.ordered.OnLstmLanguageModel``).
        prompt: ``[B, T]`` int, T ≥ 1, rows of one length. A text from nothing starts with the token
            that begins or separates texts.
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
    if not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise TypeError(f"prefill: prompt must be integers, got {prompt.dtype}; encode it first")
    if prompt.ndim != 2 or not prompt.shape[1]:
        raise ValueError(
            "prefill: prompt must be [batch, time] with at least one token a row, got "
            f"{prompt.shape}"
        )
    if max_length < 1:
        raise ValueError(f"prefill: max_length must be at least 1, got {max_length}")
    if condition is not None and len(condition) != len(prompt):
        raise ValueError(
            f"prefill: condition must have one row for each of {len(prompt)} prompts, got shape "
            f"{condition.shape}"
        )
    cached = hasattr(model, "init_cache")
    if hasattr(model, "unstacked"):
        model = model.unstacked()
    if not cached and condition is not None:
        raise ValueError("prefill: a recurrent model takes no condition, got one")
    length = prompt.shape[1] + max_length - 1  # the last token is written, not read

    def empty(rows: int) -> Any:
        return model.init_cache(rows, length) if cached else model.initial_carries(rows)

    try:
        memory = empty(len(prompt))
    except ValueError as error:
        raise ValueError(
            f"prefill: a prompt of {prompt.shape[1]} tokens and max_length={max_length} need a "
            f"cache of {length}: {error}"
        ) from error
    start = prompt[:, -1].astype(jnp.int32)
    if prompt.shape[1] > 1:
        before = prompt[:, :-1]
        if cached:
            _, memory = model.decode(before, memory, condition=condition)
        else:
            memory = model(before, memory).carries
    one, two = (jax.eval_shape(lambda rows=rows: empty(rows)) for rows in (1, 2))
    axes = ModelState(None, jax.tree.map(_growing_axis, one, two), 0)
    step_fn = _cached_step if cached else _recurrent_step
    return Prefilled(step_fn, ModelState(model, memory, condition), start, axes)


def _growing_axis(one: Any, two: Any) -> int | None:
    """The axis in which the shapes for one row and for two differ."""
    differ = [
        i for i, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if len({*sizes}) > 1
    ]
    return differ[0] if differ else None


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
    """Logits guided away from one condition to another: z_u + scale · (z_c - z_u).

    Args:
        conditional: z_c, ``[..., V]``.
        unconditional: z_u, ``[..., V]``.
        scale: 0 gives z_u, 1 gives z_c, more overstates what the condition changes.

    Returns:
        ``[..., V]``, -inf where either is.

    Raises:
        ValueError: if the shapes differ.

    >>> guide_logits(jnp.array([1.0, 3.0]), jnp.array([1.0, 2.0]), scale=2.0)
    Array([1., 4.], dtype=float32)

    Reference: arXiv 2207.12598; arXiv 2306.17806.
    """
    if conditional.shape != unconditional.shape:
        raise ValueError(
            "guide_logits: conditional and unconditional must have one shape, got "
            f"{conditional.shape} and {unconditional.shape}"
        )
    excluded = jnp.isneginf(conditional) | jnp.isneginf(unconditional)
    c, u = (jnp.where(excluded, 0, z) for z in (conditional, unconditional))
    guided = u + jnp.asarray(scale, u.dtype) * (c - u)
    return jnp.where(excluded, -jnp.inf, guided)


def guide(
    conditional: Prefilled, unconditional: Prefilled, *, scale: float | jax.Array
) -> Prefilled:
    """One decoder of two, whose logits are those of :func:`guide_logits`; both read every token.

    Args:
        conditional: a model with the condition that is wanted.
        unconditional: the same one without, or with one to keep away from.
        scale: see :func:`guide_logits`.

    Returns:
        ``Prefilled`` as :func:`prefill` returns it.

    Raises:
        ValueError: if they do not continue the same number of rows.

    >>> def step_fn(tokens, state):
    ...     return state, state
    >>> one, other = (Prefilled(step_fn, jnp.array([z]), jnp.array([0]), 0)
    ...               for z in ([1.0, 3.0], [1.0, 2.0]))
    >>> guided = guide(one, other, scale=2.0)
    >>> guided.step_fn(guided.start, guided.state)[0]
    Array([[1., 4.]], dtype=float32)
    """
    if conditional.start.shape != unconditional.start.shape:
        raise ValueError(
            "guide: both must continue the same rows, got "
            f"{conditional.start.shape} and {unconditional.start.shape} tokens"
        )
    return Prefilled(
        _GuidedStep(conditional.step_fn, unconditional.step_fn),
        GuidedState(conditional.state, unconditional.state, jnp.asarray(scale, jnp.float32)),
        conditional.start,
        GuidedState(conditional.state_axes, unconditional.state_axes, None),
    )


@dataclasses.dataclass(frozen=True)
class _GuidedStep:
    """A step function that is equal to another one of the same two: no new program for it."""

    conditional: StepFunction
    unconditional: StepFunction

    def __call__(self, tokens: jax.Array, state: GuidedState) -> tuple[jax.Array, GuidedState]:
        c, conditional = self.conditional(tokens, state.conditional)
        u, unconditional = self.unconditional(tokens, state.unconditional)
        logits = guide_logits(c, u, scale=state.scale)
        return logits, GuidedState(conditional, unconditional, state.scale)


class Rules(NamedTuple):
    """What :func:`sample` and :func:`beam_search` keep to; known before tracing."""

    end_id: int | None
    pad_id: int
    min_length: int
    banned: tuple[int, ...]
    repetition_penalty: float


def check_start(name: str, start: Any) -> jax.Array:
    """The first tokens as int32."""
    start = jnp.asarray(start)
    if not jnp.issubdtype(start.dtype, jnp.integer):
        raise TypeError(f"{name}: start must be integers, got {start.dtype}")
    if start.ndim not in (1, 2) or (start.ndim == 2 and not start.shape[1]):
        raise ValueError(
            f"{name}: start must be [batch], or [batch, time] with at least one token a row, got "
            f"{start.shape}"
        )
    return start.astype(jnp.int32)


def check_step(name: str, step_fn: StepFunction, state: Any, start: jax.Array) -> Any:
    """Asks the step function for shapes; those of the logits."""
    tokens = jax.ShapeDtypeStruct(start.shape[:1], jnp.int32)
    logits, after = jax.eval_shape(step_fn, tokens, state)
    if logits.ndim != 2 or len(logits) != len(start):
        raise ValueError(
            f"{name}: step_fn must return logits [{len(start)}, vocabulary] for {len(start)} rows "
            f"of start, got {logits.shape}"
        )

    def described(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): jax.typeof(leaf).str_short() for path, leaf in leaves}

    if (given := described(state)) != (got := described(after)):
        wrong = sorted(name for name in {*given, *got} if given.get(name) != got.get(name))
        raise TypeError(
            f"{name}: step_fn must return a state of the form that it is given; expected "
            f"state{wrong[0]}: {given.get(wrong[0])}, got {got.get(wrong[0])}"
        )
    return logits


def check_rules(name: str, rules: Rules, size: int, max_length: int) -> None:
    """Refuses rules that leave nothing to write."""
    if max_length < 1:
        raise ValueError(f"{name}: max_length must be at least 1, got {max_length}")
    if not 0 <= rules.min_length <= max_length:
        raise ValueError(
            f"{name}: min_length must be in 0..{max_length} (max_length), got {rules.min_length}"
        )
    if not rules.repetition_penalty > 0:
        raise ValueError(
            f"{name}: repetition_penalty must be positive, got {rules.repetition_penalty}"
        )
    for what, ids in (
        ("end_id", () if rules.end_id is None else (rules.end_id,)),
        ("pad_id", (rules.pad_id,)),
        ("banned", rules.banned),
    ):
        wrong = [number for number in ids if not 0 <= number < size]
        if wrong:
            raise ValueError(
                f"{name}: {what} must be in the vocabulary, 0..{size - 1}, got {wrong}"
            )
    never = {*rules.banned} | ({rules.end_id} if rules.min_length else set())
    if len(never - {None}) == size:
        raise ValueError(
            f"{name}: banned must leave a token to write, got all {size} of the vocabulary"
            + (" (with end_id, until min_length is reached)" if rules.min_length else "")
        )


def constrained(logits: jax.Array, written: jax.Array, step: jax.Array, rules: Rules) -> jax.Array:
    """The logits ``[B, V]`` with what the rules say, in at least float32.

    ``written`` [B, T] are the tokens so far; from ``step`` on they do not count.
    """
    z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if rules.repetition_penalty != 1:
        place = lax.broadcasted_iota(jnp.int32, written.shape, 1)
        written = jnp.where(place < step, written, -1)
        z = penalize_repetition(z, written, penalty=rules.repetition_penalty)
    if rules.banned:
        z = z.at[:, jnp.array(rules.banned)].set(-jnp.inf)
    if rules.min_length and rules.end_id is not None:
        end = jnp.where(step < rules.min_length, -jnp.inf, z[:, rules.end_id])
        z = z.at[:, rules.end_id].set(end)
    return z


def map_rows(function: Any, axes: Any, state: Any) -> Any:
    """``function(leaf, axis)`` for every leaf of a state whose rows have an axis."""

    def below(axis: int | None, part: Any) -> Any:
        return part if axis is None else jax.tree.map(lambda leaf: function(leaf, axis), part)

    return jax.tree.map(below, axes, state, is_leaf=lambda axis: axis is None)


def read_start(step_fn: StepFunction, state: Any, start: jax.Array) -> tuple[Any, jax.Array]:
    """Reads all tokens of [B, T] but the last: the state, and the last ones [B]."""
    if start.ndim == 1:
        return state, start
    state, _ = lax.scan(
        lambda state, tokens: (step_fn(tokens, state)[1], None), state, start[:, :-1].T
    )
    return state, start[:, -1]
