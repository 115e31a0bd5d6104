"""Which tokens may come next: filters of logits z, in this order, each on what the others left.

    temperature  z / τ                                τ = 0 leaves the likeliest token alone
    top-k        the k largest stay                   those equal to the k-th stay with it
    top-p        the least set of the likeliest tokens with Σ softmax(z) ≥ p: the one that crosses
                 p stays
    min-p        those stay with softmax(z) ≥ min_p · max softmax(z)
    repetition   z / θ if z > 0 else z · θ, for tokens that were there before

Source: Angela Fan et al., «Hierarchical Neural Story Generation», 2018, arXiv 1805.04833 (top-k);
Ari Holtzman et al., «The Curious Case of Neural Text Degeneration», 2019, arXiv 1904.09751 (top-p);
Nguyen Nhat Minh et al., «Turning Up the Heat: Min-p Sampling», 2024, arXiv 2407.01082; Nitish
Keskar et al., «CTRL», 2019, arXiv 1909.05858 (repetition); https://kexue.fm/archives/7124.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax


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
        temperature: τ ≥ 0; 0 leaves the first of the largest logits, with the value 0.
        top_k: k in 1..V; None: all.
        top_p: p in (0, 1]; None: all. Sums that miss p by rounding alone have reached it.
        min_p: share of the largest probability, in [0, 1]; None: all.

    Returns:
        ``[..., V]`` in the dtype of ``logits``: z / τ of what stays, -inf elsewhere. NaN where a
        traced number is out of its range. Rows without a token stay so.

    Raises:
        TypeError: if ``logits`` are not floats or ``top_k`` is no integer.
        ValueError: if a number is out of its range.

    >>> filter_logits(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), top_p=0.6).tolist()
    [-0.69, -1.20, -inf, -inf]
    """
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"filter_logits: logits must be floats, got {logits.dtype}")
    check_top_k(top_k, logits.shape[-1])
    check_numbers(temperature=temperature, top_p=top_p, min_p=min_p)
    z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if is_zero(temperature):
        place = lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1)
        first = place == jnp.argmax(z, axis=-1, keepdims=True)
        return jnp.where(first & ~jnp.isneginf(z), 0 * z, -jnp.inf).astype(logits.dtype)
    z /= _nan_unless(jnp.asarray(temperature) > 0, temperature, z.dtype)
    # What stays is «not less» instead of «at least»: NaN stays NaN.
    if top_k is not None and top_k < z.shape[-1]:
        z = jnp.where(z < lax.top_k(z, top_k)[0][..., -1:], -jnp.inf, z)
    if top_p is not None:
        p = jnp.asarray(top_p)
        z = _nucleus(z, _nan_unless((p > 0) & (p <= 1), p, z.dtype))
    if min_p is not None:
        p = jnp.asarray(min_p)
        share = _nan_unless((p >= 0) & (p <= 1), p, z.dtype)
        least = z.max(axis=-1, keepdims=True) + jnp.log(share)
        z = jnp.where(z < least, -jnp.inf, z + 0 * share)
    return z.astype(logits.dtype)


def penalize_repetition(
    logits: jax.Array, tokens: jax.Array, *, penalty: float | jax.Array
) -> jax.Array:
    """Makes tokens that were there before less likely: z / θ if z > 0 else z θ.

    Args:
        logits: ``[..., V]``.
        tokens: ``[..., T]`` int, what was there; ids outside the vocabulary are passed over.
        penalty: θ > 0; 1 changes nothing, less prefers repetitions.

    Returns:
        ``[..., V]`` in the dtype of ``logits``.

    Raises:
        TypeError: if ``tokens`` are not integers.
        ValueError: if θ is not positive.

    >>> penalize_repetition(jnp.array([2.0, -2.0, 1.0]), jnp.array([0, 1, -1]), penalty=2.0)
    Array([ 1., -4.,  1.], dtype=float32)

    Reference: arXiv 1909.05858, section 4.1; as in common implementations, for both signs.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"penalize_repetition: tokens must be integers, got {tokens.dtype}")
    if not isinstance(penalty, jax.Array) and not penalty > 0:
        raise ValueError(f"penalize_repetition: penalty must be positive, got {penalty}")
    size = logits.shape[-1]

    @functools.partial(jnp.vectorize, signature="(t)->(v)")
    def occurs(tokens: jax.Array) -> jax.Array:
        known = jnp.where(tokens < 0, size, tokens)  # negative ids would count from the end
        return jnp.zeros(size, bool).at[known].set(True, mode="drop")

    factor = _nan_unless(jnp.asarray(penalty) > 0, penalty, logits.dtype)
    return jnp.where(
        occurs(tokens), jnp.where(logits > 0, logits / factor, logits * factor), logits
    )


def check_top_k(top_k: int | None, size: int) -> None:
    """Refuses a number of tokens that a vocabulary of this size cannot give."""
    if top_k is not None and not 1 <= operator.index(top_k) <= size:
        raise ValueError(
            f"top_k must be in 1..{size}, the size of the vocabulary, got {top_k}; "
            "None keeps all tokens"
        )


def check_numbers(
    *,
    temperature: float | jax.Array = 1.0,
    top_p: float | jax.Array | None = None,
    min_p: float | jax.Array | None = None,
) -> None:
    """Refuses numbers that are out of range, as far as they are known before tracing."""
    for name, value, fits, wanted in (
        ("temperature", temperature, lambda x: 0 <= x < float("inf"), "at least 0 and finite"),
        ("top_p", top_p, lambda x: 0 < x <= 1, "in (0, 1], or None for all tokens"),
        ("min_p", min_p, lambda x: 0 <= x <= 1, "in [0, 1], or None for all tokens"),
    ):
        if value is not None and not isinstance(value, jax.Array) and not fits(value):
            raise ValueError(f"{name} must be {wanted}, got {value}")


def is_zero(temperature: float | jax.Array) -> bool:
    """Whether the temperature is known to be 0."""
    return not isinstance(temperature, jax.Array) and temperature == 0


def _nan_unless(
    fits: jax.Array, value: float | jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
    return jnp.where(fits, jnp.asarray(value, dtype), jnp.nan)


@jax.jit
def _nucleus(z: jax.Array, top_p: jax.Array) -> jax.Array:
    """Halves an interval of floats until the least probability that stays is left.

    Floats that are not negative have the order of their bits, so 32 halvings find it exactly. They
    are 32 sums over the vocabulary, and no sort of it.
    """
    probabilities = jax.nn.softmax(z, axis=-1)
    integer = jnp.dtype(f"int{8 * z.dtype.itemsize}")
    bits = lax.bitcast_convert_type(probabilities, integer)
    reached = top_p - 4 * jnp.finfo(z.dtype).eps

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # what is at least low reaches p, what is at least high does not
        middle = low + (high - low) // 2
        mass = jnp.where(bits >= middle, probabilities, 0).sum(axis=-1, keepdims=True)
        return jnp.where(mass >= reached, middle, low), jnp.where(mass >= reached, high, middle)

    high = bits.max(axis=-1, keepdims=True) + 1
    low, _ = lax.fori_loop(0, 8 * z.dtype.itemsize, halve, (jnp.zeros_like(high), high))
    return jnp.where((bits < low) & (top_p < 1), -jnp.inf, z + 0 * top_p)
