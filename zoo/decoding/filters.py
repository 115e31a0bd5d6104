"""Filters of the next token's logits z, applied in this order, each to what the others left.

    temperature  z / τ                                τ = 0 keeps the most probable token alone
    top-k        keeps the k largest, and those equal to the k-th
    top-p        keeps the smallest set of most probable tokens with Σ softmax(z) ≥ p: the token
                 that crosses p stays
    min-p        keeps softmax(z) ≥ min_p · max softmax(z)
    repetition   z / θ if z > 0 else z · θ, for tokens that occurred before

Source: Angela Fan et al., "Hierarchical Neural Story Generation", 2018, arXiv 1805.04833 (top-k);
Ari Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019, arXiv 1904.09751 (top-p);
Nguyen Nhat Minh et al., "Turning Up the Heat: Min-p Sampling", 2024, arXiv 2407.01082; Nitish
Keskar et al., "CTRL", 2019, arXiv 1909.05858 (repetition); https://kexue.fm/archives/7124.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo._checks import count, integers, number, widened
from zoo._cpu import largest


def filter_logits(
    logits: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    top_p: float | jax.Array | None = None,
    min_p: float | jax.Array | None = None,
) -> jax.Array:
    """The logits that a token is drawn from, see the module docstring.

    Args:
        logits: ``[..., V]``; -inf excludes a token.
        temperature: τ ≥ 0; 0 keeps the first of the largest logits, with the value 0. Where z / τ
            is beyond the dtype, the result is (z - max z) / τ, which has the same softmax.
        top_k: k in 1..V; None: all.
        top_p: p in (0, 1]; None: all. A sum that misses p only by rounding has reached it.
        min_p: share of the largest probability, in [0, 1]; None: all.

    Returns:
        ``[..., V]`` in the dtype of ``logits``: z / τ where a token stays, -inf elsewhere. NaN
        where a traced number is out of its range. Rows without a token stay so.

    Raises:
        TypeError: if ``logits`` are not floats or ``top_k`` is not an integer.
        ValueError: if a number is out of its range.

    >>> filter_logits(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), top_p=0.6).tolist()
    [-0.69, -1.20, -inf, -inf]
    """
    logits, z = widened("logits", logits)
    size = z.shape[-1]
    check_top_k(top_k, size)
    temperature, top_p, min_p = check_filters(temperature, top_p, min_p)
    z = _divide(z, jnp.asarray(temperature, z.dtype), largest=float(jnp.finfo(logits.dtype).max))
    # "Not less" instead of "at least": NaN stays NaN.
    if top_k is not None and top_k < size:
        z = jnp.where(z < largest(jnp.moveaxis(z, -1, 0), top_k)[-1][..., None], -jnp.inf, z)
    if top_p is not None:
        z = _nucleus(z, jnp.asarray(top_p, z.dtype))
    if min_p is not None:
        share = jnp.asarray(min_p, z.dtype)
        least = z.max(axis=-1, keepdims=True) + jnp.log(share)
        z = jnp.where(z < least, -jnp.inf, z + 0 * share)
    return z.astype(logits.dtype)


def penalize_repetition(
    logits: jax.Array, tokens: jax.Array, *, penalty: float | jax.Array
) -> jax.Array:
    """Makes tokens that occurred before less probable: z / θ if z > 0 else z θ.

    Args:
        logits: ``[..., V]``.
        tokens: ``[..., T]`` int, the earlier tokens; ids outside the vocabulary are ignored.
        penalty: θ > 0; 1 changes nothing, less favours repetition.

    Returns:
        ``[..., V]`` in the dtype of ``logits``.

    Raises:
        TypeError: if ``logits`` are not floats or ``tokens`` not integers.
        ValueError: if θ is not positive.

    >>> penalize_repetition(jnp.array([2.0, -2.0, 1.0]), jnp.array([0, 1, -1]), penalty=2.0)
    Array([ 1., -4.,  1.], dtype=float32)

    Reference: arXiv 1909.05858, section 4.1; as in common implementations, for both signs.
    """
    tokens = integers("tokens", tokens)
    logits, z = widened("logits", logits)
    factor = jnp.asarray(number("penalty", penalty, above=0), z.dtype)
    finite = jnp.where(jnp.isneginf(z), 0, z)
    penalized = jnp.where(z > 0, finite / factor, finite * factor)
    penalized = jnp.where(jnp.isneginf(z), z, penalized)
    occurs = mark_tokens(tokens, logits.shape[-1])
    return jnp.where(occurs, penalized.astype(logits.dtype), logits)


def mark_tokens(tokens: jax.Array, size: int) -> jax.Array:
    """Which ids occur among tokens ``[..., T]``: ``[..., V]`` bool; others than 0..V-1 are none."""

    @functools.partial(jnp.vectorize, signature="(t)->(v)")
    def mark(tokens: jax.Array) -> jax.Array:
        known = jnp.where(tokens < 0, size, tokens)  # negative ids would count from the end
        return jnp.zeros(size, bool).at[known].set(True, mode="drop")

    return mark(tokens)


def ngram_completions(tokens: jax.Array, end: ArrayLike, n: int, size: int) -> jax.Array:
    """Which ids would complete n tokens that stand in a row somewhere before.

    Args:
        tokens: ``[R, T]`` int; negative ones are none and complete nothing.
        end: the number of places that are filled; those from it on must be negative.
        n: length of what must not be repeated.
        size: V.

    Returns:
        ``[R, V]`` bool.

    >>> ngram_completions(jnp.array([[1, 2, 0, 1, 2, -1]]), 5, 3, 4)
    Array([[ True, False, False, False]], dtype=bool)
    """
    last = tokens[:, n - 1 :]  # of every n tokens
    tail = lax.dynamic_slice_in_dim(tokens, end - (n - 1), min(n - 1, tokens.shape[1]), axis=1)
    same = jnp.broadcast_to((tail >= 0).all(axis=1, keepdims=True), last.shape)
    for place in range(n - 1):
        before = tokens[:, place : place + last.shape[1]]
        same &= before == tail[:, place : place + 1]
    return mark_tokens(jnp.where(same, last, -1), size)


def check_filters(temperature: Any, top_p: Any, min_p: Any) -> tuple[Any, Any, Any]:
    """The numbers of :func:`filter_logits`, checked; a traced one out of its range is NaN."""
    none = "None keeps all tokens"
    return (
        number("temperature", temperature, at_least=0),
        None if top_p is None else number("top_p", top_p, above=0, at_most=1, advice=none),
        None if min_p is None else number("min_p", min_p, at_least=0, at_most=1, advice=none),
    )


def check_top_k(top_k: int | None, size: int) -> None:
    """Refuses a k that a vocabulary of this size does not have."""
    if top_k is not None:
        count("top_k", top_k, at_least=1, at_most=size)


def is_zero(temperature: Any) -> bool:
    """Whether the temperature is known to be 0 before tracing."""
    return not isinstance(temperature, jax.core.Tracer) and temperature == 0


def _divide(z: jax.Array, temperature: jax.Array, *, largest: float) -> jax.Array:
    """The quotient z / τ; (z - max z) / τ where that would not be finite, as for τ = 0."""
    best = z.max(axis=-1, keepdims=True)
    is_zero = temperature < jnp.finfo(z.dtype).tiny
    in_range = jnp.abs(best / temperature) <= largest  # false for NaN
    shifted = (is_zero | ~in_range) & (best > -jnp.inf)
    at_best, excluded = z == best, jnp.isneginf(z)
    # Neither what is excluded nor an infinite best reaches the division.
    distance = jnp.where(excluded | (shifted & at_best), 0, jnp.where(shifted, z - best, z))
    divided = jnp.where(excluded, -jnp.inf, distance / jnp.where(is_zero, 1, temperature))
    place = lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1)
    first = jnp.where(at_best, place, z.shape[-1]).min(axis=-1, keepdims=True)
    return jnp.where(is_zero & shifted & (place != first), -jnp.inf, divided)


@jax.jit
def _nucleus(z: jax.Array, top_p: jax.Array) -> jax.Array:
    """Bisects for the least probability that stays.

    Floats that are not negative are ordered like their bits, so 32 halvings find it exactly: 32
    sums over the vocabulary instead of a sort.
    """
    probabilities = jax.nn.softmax(z, axis=-1)
    integer = jnp.dtype(f"int{8 * z.dtype.itemsize}")
    bits = lax.bitcast_convert_type(probabilities, integer)
    reached = top_p - 4 * jnp.finfo(z.dtype).eps

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # the mass at or above low reaches p, at or above high not
        middle = low + (high - low) // 2
        mass = jnp.where(bits >= middle, probabilities, 0).sum(axis=-1, keepdims=True)
        return jnp.where(mass >= reached, middle, low), jnp.where(mass >= reached, high, middle)

    high = bits.max(axis=-1, keepdims=True) + 1
    low, _ = lax.fori_loop(0, 8 * z.dtype.itemsize, halve, (jnp.zeros_like(high), high))
    tied = bits == low
    size = z.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1)
    everything = jnp.zeros_like(low, jnp.int32) + (size - 1)

    def last_of_ties(_: None) -> jax.Array:
        """The place of the last tie that is needed, again by halving."""
        above = jnp.where(bits > low, probabilities, 0).sum(axis=-1, keepdims=True)

        def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds  # the ties up to low do not reach p, those up to high do
            middle = low + (high - low) // 2
            mass = jnp.where(tied & (place <= middle), probabilities, 0)
            enough = above + mass.sum(axis=-1, keepdims=True) >= reached
            return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

        return lax.fori_loop(0, size.bit_length(), halve, (everything - size, everything))[1]

    # Of equal probabilities the first ones stay, as many as it takes; mostly there is just one.
    single = tied.sum(axis=-1).max(initial=0) <= 1
    last = lax.cond(single, lambda _: everything, last_of_ties, None)
    left_out = (bits < low) | (tied & (place > last))
    return jnp.where(left_out & (top_p < 1), -jnp.inf, z + 0 * top_p)
