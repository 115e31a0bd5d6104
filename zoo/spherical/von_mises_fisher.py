"""The von Mises-Fisher distribution, the normal distribution of the sphere.

    p(x) = e^{κ μ·x} / Z(κ),   Z(κ) = S(D-1) ∫ e^{κ cos φ} sin^{D-2} φ dφ
    S(n) = 2 π^{n/2} / Γ(n/2), the area of the unit sphere in n dimensions
    E x = A(κ) μ,   A(κ) = d log Z / dκ = I_{D/2}(κ) / I_{D/2-1}(κ)
    entropy = log Z(κ) - κ A(κ)

With cos φ = tanh t the integral is ∫ e^{κ tanh t} sech^{D-1} t dt over the whole line. This is
smooth and falls off exponentially, so sums at equal distances around its peak converge faster than
any power of the number of terms, and no Bessel function of fractional order is needed. Samples are
those of Wood's rejection, which accepts more than half of the proposals. Their derivative in κ is
that of the quantile w(F, κ) of the cosine, dw/dκ = -(∂F/∂κ) / p(w): rejection has none of its own,
and the part that the proposals alone would give is biased.

Source: Kanti Mardia, Peter Jupp, "Directional Statistics", 2000, section 9.3; Andrew Wood,
"Simulation of the von Mises Fisher distribution", 1994 (Communications in Statistics 23); Michael
Figurnov, Shakir Mohamed, Andriy Mnih, "Implicit Reparameterization Gradients", 2018, arXiv
1805.08498. JoSE's model has such distributions of concentration 1 as its limit, arXiv 1911.01196,
theorem 1.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from zoo import _checks
from zoo.spherical.geometry import dot, norm, random_uniform, sizes, widen

_TERMS = 1024  # of the sum; relative error below 1e-11 for D ≥ 2 and κ ≤ 1e8
_LEVELS = 24  # of the fraction of A; relative error below 1e-14 for κ ≤ D/2
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)  # of the integral beside a sample


def von_mises_fisher_log_density(
    x: ArrayLike, mean: ArrayLike, concentration: ArrayLike
) -> jax.Array:
    """Logarithm of the von Mises-Fisher density, ``κ μ·x - log Z(κ)``, per unit of area.

    Args:
        x: unit vectors ``[..., D]``, D ≥ 2.
        mean: unit vectors μ ``[..., D]``.
        concentration: κ from 0 to 1e35, a scalar or ``[...]``; others give NaN.

    Returns:
        ``[...]`` in nats.

    Raises:
        ValueError: if the vectors differ in size, or D < 2.

    >>> north = jnp.array([0.0, 0.0, 1.0])
    >>> density = jnp.exp(von_mises_fisher_log_density(north, north, 0.0))
    >>> print(density * 4 * jnp.pi)  # uniform on a sphere of area 4π
    1.0

    Reference: Mardia and Jupp 2000, equation 9.3.4.
    """
    dtype, size, (x, mean) = _checked("von_mises_fisher_log_density", x=x, mean=mean)
    kappa = jnp.asarray(concentration).astype(x.dtype)
    kappa = jnp.broadcast_to(kappa, jnp.broadcast_shapes(kappa.shape, x.shape[:-1]))
    # κ (μ·x - 1) without the loss of digits near the mean.
    exponent = -kappa * jnp.sum((x - mean) ** 2, axis=-1) / 2
    return (exponent - _log_area(size) - _log_integral(kappa, size)).astype(dtype)


def von_mises_fisher_mean(mean: ArrayLike, concentration: ArrayLike) -> jax.Array:
    """The expectation ``A(κ) μ``, which lies inside the sphere.

    Args:
        mean: unit vectors μ ``[..., D]``, D ≥ 2, the mean direction.
        concentration: κ from 0 to 1e35, a scalar or ``[...]``; others give NaN.

    Returns:
        ``[..., D]`` in the dtype of ``mean``.

    Raises:
        ValueError: if D < 2.

    >>> print(von_mises_fisher_mean(jnp.array([0.0, 0.0, 1.0]), 2.0))  # coth κ - 1/κ
    [0.    0.    0.537]

    Reference: Mardia and Jupp 2000, equation 9.3.7.
    """
    dtype, size, (mean,) = _checked("von_mises_fisher_mean", mean=mean)
    length = cosine_moments(jnp.asarray(concentration).astype(mean.dtype), size).mean
    return (length[..., None] * mean).astype(dtype)


def von_mises_fisher_entropy(concentration: ArrayLike, *, size: int) -> jax.Array:
    """The differential entropy ``log Z(κ) - κ A(κ)``, per unit of area.

    Args:
        concentration: κ from 0 to 1e35, ``[...]``; others give NaN.
        size: D ≥ 2, the number of coordinates.

    Returns:
        ``[...]`` in nats; the logarithm of the sphere's area for κ = 0, which is the largest.

    Raises:
        ValueError: if D < 2; TypeError: if κ is no floating-point number.

    >>> print(von_mises_fisher_entropy(0.0, size=3) - jnp.log(4 * jnp.pi))
    0.0

    Reference: Mardia and Jupp 2000, section 9.3.2.
    """
    size = _checks.count("von_mises_fisher_entropy: size", size, at_least=2)
    given, kappa = _checks.widened("von_mises_fisher_entropy: concentration", concentration)
    gap = cosine_moments(kappa, size).gap
    return (kappa * gap + _log_area(size) + _log_integral(kappa, size)).astype(given.dtype)


def random_von_mises_fisher(
    key: jax.Array, mean: ArrayLike, concentration: ArrayLike, shape: Sequence[int] = ()
) -> jax.Array:
    """Independent samples of the von Mises-Fisher distribution.

    They have derivatives in the mean and the concentration, those of the distribution itself: the
    gradient of a mean over samples is an unbiased estimate of that of the expectation.

    Args:
        key: typed PRNG key; consumed.
        mean: vectors μ ``[..., D]``, D ≥ 2, whose directions count; zero gives NaN.
        concentration: κ ≥ 0, a scalar or ``[...]``; negative gives NaN, infinite the mean.
        shape: of the samples drawn of each mean, in front.

    Returns:
        Unit vectors ``[*shape, ..., D]`` in the dtype of ``mean``.

    Raises:
        ValueError: if D < 2.
        TypeError: if the key is no typed one.

    >>> north = jnp.array([0.0, 0.0, 1.0])
    >>> x = random_von_mises_fisher(jax.random.key(0), north, 100.0, (1000,))
    >>> print(x.mean(axis=0).round(2))  # coth κ - 1/κ = 0.99
    [-0.    0.    0.99]

    Reference: Wood 1994.
    """
    dtype, size, (mean,) = _checked("random_von_mises_fisher", mean=mean)
    shape = sizes("random_von_mises_fisher", shape)
    key = _checks.typed_key("random_von_mises_fisher: key", key)
    kappa = jnp.asarray(concentration).astype(mean.dtype)
    batch = jnp.broadcast_shapes(kappa.shape, mean.shape[:-1])
    key, tangent_key = jax.random.split(key)
    # 1 - cos φ is sampled: the sine keeps its digits.
    gap = _sample_gap(key, jnp.broadcast_to(kappa, batch), shape, size)[..., None]
    mean = jnp.broadcast_to(mean / norm(mean), (*shape, *batch, size))
    tangent = _random_tangent(tangent_key, mean)
    square = gap * (2 - gap)
    sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), square)
    return ((1 - gap) * mean + sine * tangent).astype(dtype)


def _random_tangent(key: jax.Array, x: jax.Array) -> jax.Array:
    """Uniform unit tangents: those at the first axis, reflected to x.

    A projected random vector would be rounding alone where it happens to be parallel to x.
    """
    flat = random_uniform(key, (*x.shape[:-1], x.shape[-1] - 1), x.dtype)
    flat = jnp.concatenate([jnp.zeros_like(flat[..., :1]), flat], axis=-1)
    # x + e₁ or x - e₁, whichever is the longer: the first axis goes to -x or x.
    first = x[..., :1] + jnp.where(x[..., :1] < 0, -1, 1)
    mirror = jnp.concatenate([first, x[..., 1:]], axis=-1)
    return flat - 2 * dot(mirror, flat) / dot(mirror, mirror) * mirror


def _checked(function: str, **vectors: ArrayLike) -> tuple[Any, int, list[jax.Array]]:
    dtype, arrays = widen(function, **vectors)
    if (size := arrays[0].shape[-1]) < 2:
        raise ValueError(f"{function}: vectors must have D ≥ 2 coordinates, got {size}")
    return dtype, size, arrays


class CosineMoments(NamedTuple):
    """Of μ·x, each ``[...]`` and without cancellation; NaN for a κ out of range."""

    mean: jax.Array  # A(κ)
    gap: jax.Array  # 1 - A(κ)
    variance: jax.Array  # dA/dκ


def cosine_moments(kappa: jax.Array, size: int) -> CosineMoments:
    """The moments of the cosine in ``size`` dimensions."""
    logs, gaps = _terms(kappa, size)
    shares = jax.nn.softmax(logs, axis=-1)
    gap = jnp.sum(shares * gaps, axis=-1)
    variance = jnp.sum(shares * (gaps - gap[..., None]) ** 2, axis=-1)
    # κ / (D + κ² / (D+2 + κ² / (D+4 + …)))
    few = jnp.minimum(kappa, size / 2)
    below = jnp.full_like(few, size + 2 * _LEVELS)
    for level in reversed(range(_LEVELS)):
        below = size + 2 * level + few**2 / below
    mean = jnp.where(kappa < size / 2, few / below, 1 - gap)
    known = _in_range(kappa)
    return CosineMoments(*(jnp.where(known, x, jnp.nan) for x in (mean, gap, variance)))


def _log_area(size: int) -> float:
    """Log S(D-1)."""
    return math.log(2) + (size - 1) / 2 * math.log(math.pi) - math.lgamma((size - 1) / 2)


def _log_integral(kappa: jax.Array, size: int) -> jax.Array:
    """Log ∫ e^{κ (tanh t - 1)} sech^{D-1} t dt; NaN for a κ out of range."""
    total = jax.nn.logsumexp(_terms(kappa, size)[0], axis=-1)
    total += math.log(2 * _reach(size - 1) / (_TERMS - 1))
    return jnp.where(_in_range(kappa), total, jnp.nan)


def _in_range(kappa: jax.Array) -> jax.Array:
    # Beyond, sech² falls below the smallest normal number too near the peak.
    return (kappa >= 0) & (kappa <= jnp.finfo(kappa.dtype).max / 1000)


def _reach(power: int) -> float:
    """Where the integrand is below 1e-17 of its peak: a Gaussian's and an exponential's tail."""
    return 40 / power + 10 / math.sqrt(power)


def _peak(kappa: jax.Array, power: int) -> jax.Array:
    """The t where the integrand is largest; tanh t is 2κ / (D-1 + √((D-1)² + 4κ²))."""
    total = power + jnp.hypot(power, 2 * kappa)
    return jnp.log1p(2 * kappa / total) - jnp.log(2 * power / total) / 2


def _terms(kappa: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Logarithms of the integrand at equal distances around its peak, and 1 - tanh t there."""
    power = size - 1
    peak = jax.lax.stop_gradient(_peak(kappa, power))
    nodes = jnp.linspace(-_reach(power), _reach(power), _TERMS, dtype=kappa.dtype)
    t = peak[..., None] + jnp.broadcast_to(nodes, (*peak.shape, _TERMS))
    log_cosh = jnp.logaddexp(t, -t) - math.log(2)
    gaps = 2 * jax.nn.sigmoid(-2 * t)
    return -kappa[..., None] * gaps - power * log_cosh, gaps


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
@partial(jax.jit, static_argnums=(2, 3))  # the loop is compiled once, also outside jit
def _sample_gap(key: jax.Array, kappa: jax.Array, shape: tuple[int, ...], size: int) -> jax.Array:
    """1 - μ·x of samples, by rejection from a transformed beta distribution; for D = 3 at once."""
    power = size - 1
    kappa = jnp.broadcast_to(kappa, (*shape, *kappa.shape))
    if size == 3:  # the cosine has an exponential law, cut at both ends
        u = jax.random.uniform(key, kappa.shape, kappa.dtype)
        some = jnp.where(kappa == 0, 1, kappa)
        sample = jnp.where(kappa == 0, 2 * u, -jnp.log1p(u * jnp.expm1(-2 * some)) / some)
        return jnp.where(kappa >= 0, sample, jnp.nan)
    b = power / (2 * kappa + jnp.hypot(2 * kappa, power))
    # With x_0 = (1-b)/(1+b) and w the proposed cosine, all is written in 1 - x_0 and 1 - w, as w is
    # 1 to rounding for a large κ; and κ (1 - x_0) without κ, which may be the largest number.
    gap = 2 * b / (1 + b)  # 1 - x_0
    kappa_gap = 2 / (1 + b) * power / (2 + jnp.hypot(2, power / kappa))  # 0 for κ = 0

    def propose(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, Any, Any]:
        key, sample, done = state
        key, uniform_key = jax.random.split(key)
        u, radius, turn = jax.random.uniform(uniform_key, (3, *kappa.shape), kappa.dtype)
        # The first coordinate of a uniform point, by polar coordinates of it and another one.
        radius = jnp.sqrt(-jnp.expm1(2 * jnp.log(radius) / (size - 2))) if size > 2 else 1.0
        z = (1 + radius * jnp.cos(2 * math.pi * turn)) / 2  # Beta((D - 1) / 2, (D - 1) / 2)
        share = z * (1 + b) / (1 - (1 - b) * z)  # (1 - w) / (1 - x_0)
        # κ (w - x_0) + (D-1) log[(1 - x_0 w) / (1 - x_0²)] ≥ log u
        ratio = (1 + (1 - gap) * share) / (2 - gap)
        accepted = kappa_gap * (1 - share) + power * jnp.log(ratio) >= jnp.log(u)
        return key, jnp.where(done, sample, gap * share), done | accepted

    start = (key, jnp.zeros_like(kappa), ~(kappa >= 0))  # NaN and negative need no proposals
    _, sample, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[2]), propose, start)
    return jnp.where(kappa >= 0, sample, jnp.nan)


@_sample_gap.defjvp
def _sample_gap_jvp(
    shape: tuple[int, ...], size: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    """The sample moves with its quantile.

    At μ·x = tanh t, with A the mean of tanh,

        dt/dκ = ∫_t^∞ (tanh u - A) e^{φ(u) - φ(t)} du,   φ(u) = κ tanh u - (D-1) log cosh u

    or minus the integral over the other side, whichever falls off. The nodes are those of Gauss and
    Legendre in the square root of the distance, as the integrand may be narrow.
    """
    (key, kappa), (_, tangent) = primals, tangents
    gap = _sample_gap(key, kappa, shape, size)
    arrays = kappa, cosine_moments(kappa, size).gap, tangent
    kappa, mean_gap, tangent = (jnp.broadcast_to(a, gap.shape) for a in arrays)
    power = size - 1
    # 1 - tanh t is 0 to rounding for the largest κ, and so is its derivative.
    least = jnp.finfo(gap.dtype).tiny
    t = jnp.log((2 - gap) / jnp.maximum(gap, least)) / 2
    side = jnp.where(t < _peak(kappa, power), -1, 1).astype(gap.dtype)
    reach = _reach(power)

    def add(total: jax.Array, node: jax.Array) -> tuple[jax.Array, None]:
        root, weight = node
        distance = side * reach * root**2
        other = 2 * jax.nn.sigmoid(-2 * (t + distance))  # 1 - tanh u
        cosh = distance + jax.nn.softplus(-2 * (t + distance)) - jax.nn.softplus(-2 * t)
        exponent = jnp.where(jnp.isfinite(kappa), kappa, 0) * (gap - other) - power * cosh
        # At the peak's other side it would grow; beyond what float holds nothing is added.
        part = (mean_gap - other) * jnp.exp(jnp.minimum(exponent, 80))
        return total + weight * 2 * reach * root * part, None

    nodes = jnp.asarray([(_NODES + 1) / 2, _WEIGHTS / 2], gap.dtype).T
    speed, _ = jax.lax.scan(add, jnp.zeros_like(gap), nodes)
    slope = jnp.where(kappa == jnp.inf, 0, -gap * (2 - gap) * side * speed)
    return gap, slope * tangent
