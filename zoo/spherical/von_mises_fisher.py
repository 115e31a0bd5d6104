"""The von Mises-Fisher distribution, the normal distribution of the sphere.

    p(x) = e^{κ μ·x} / Z(κ),   Z(κ) = A(D-1) ∫ e^{κ cos φ} sin^{D-2} φ dφ
    A(n) = 2 π^{n/2} / Γ(n/2), the area of the unit sphere in n dimensions

With cos φ = tanh t the integral is ∫ e^{κ tanh t} sech^{D-1} t dt over the whole line. This is
smooth and falls off exponentially, so sums at equal distances around its peak converge faster than
any power of the number of terms, and no Bessel function of fractional order is needed. Samples are
those of Wood's rejection, which accepts more than half of the proposals.

Source: Kanti Mardia, Peter Jupp, "Directional Statistics", 2000, section 9.3; Andrew Wood,
"Simulation of the von Mises Fisher distribution", 1994 (Communications in Statistics 23). JoSE's
model has such distributions of concentration 1 as its limit, arXiv 1911.01196, theorem 1.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoo import _checks
from zoo.spherical.geometry import dot, norm, random_uniform, sizes, widen

_TERMS = 1024  # of the sum; relative error below 1e-11 for D ≥ 2 and κ ≤ 1e8


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
    area = math.log(2) + (size - 1) / 2 * math.log(math.pi) - math.lgamma((size - 1) / 2)
    return (exponent - area - _log_integral(kappa, size)).astype(dtype)


def random_von_mises_fisher(
    key: jax.Array, mean: ArrayLike, concentration: ArrayLike, shape: Sequence[int] = ()
) -> jax.Array:
    """Independent samples of the von Mises-Fisher distribution.

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
    gap = _sample_gap(key, jnp.broadcast_to(kappa, (*shape, *batch)), size)[..., None]
    mean = jnp.broadcast_to(mean / norm(mean), (*shape, *batch, size))
    tangent = _random_tangent(tangent_key, mean)
    return ((1 - gap) * mean + jnp.sqrt(gap * (2 - gap)) * tangent).astype(dtype)


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


def _log_integral(kappa: jax.Array, size: int) -> jax.Array:
    """Log ∫ e^{κ (tanh t - 1)} sech^{D-1} t dt; NaN for a κ out of range."""
    power = size - 1
    root = jnp.hypot(power, 2 * kappa)
    share = 2 * power / (power + root)  # sech² of the peak
    tanh = 2 * kappa / (power + root)
    peak = jax.lax.stop_gradient(jnp.log1p(tanh) - jnp.log(share) / 2)
    # Beyond this the integrand is below 1e-17 of its peak: a Gaussian's and an exponential's tail.
    reach = 40 / power + 10 / math.sqrt(power)
    nodes = jnp.linspace(-reach, reach, _TERMS, dtype=kappa.dtype)
    t = peak[..., None] + jnp.broadcast_to(nodes, (*peak.shape, _TERMS))
    log_cosh = jnp.logaddexp(t, -t) - math.log(2)
    logs = -2 * kappa[..., None] * jax.nn.sigmoid(-2 * t) - power * log_cosh
    total = jax.nn.logsumexp(logs, axis=-1) + math.log(2 * reach / (_TERMS - 1))
    # Beyond, sech² falls below the smallest normal number too near the peak.
    largest = jnp.finfo(kappa.dtype).max / 1000
    return jnp.where((kappa >= 0) & (kappa <= largest), total, jnp.nan)


@partial(jax.jit, static_argnums=2)  # the loop is compiled once, also outside jit
def _sample_gap(key: jax.Array, kappa: jax.Array, size: int) -> jax.Array:
    """1 - μ·x of samples, by rejection from a transformed beta distribution."""
    power = size - 1
    b = power / (2 * kappa + jnp.hypot(2 * kappa, power))
    # With x_0 = (1-b)/(1+b) and w the proposed cosine, all is written in 1 - x_0 and 1 - w, as w is
    # 1 to rounding for a large κ; and κ (1 - x_0) without κ, which may be the largest number.
    gap = 2 * b / (1 + b)  # 1 - x_0
    kappa_gap = 2 / (1 + b) * power / (2 + jnp.hypot(2, power / kappa))  # 0 for κ = 0

    def propose(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, Any, Any]:
        key, sample, done = state
        key, beta_key, uniform_key = jax.random.split(key, 3)
        # The first coordinate of a uniform point; compiles in a tenth of jax.random.beta's time.
        point = random_uniform(beta_key, (*kappa.shape, size), kappa.dtype)
        z = (1 + point[..., 0]) / 2  # Beta((D - 1) / 2, (D - 1) / 2)
        u = jax.random.uniform(uniform_key, kappa.shape, kappa.dtype)
        share = z * (1 + b) / (1 - (1 - b) * z)  # (1 - w) / (1 - x_0)
        # κ (w - x_0) + (D-1) log[(1 - x_0 w) / (1 - x_0²)] ≥ log u
        ratio = (1 + (1 - gap) * share) / (2 - gap)
        accepted = kappa_gap * (1 - share) + power * jnp.log(ratio) >= jnp.log(u)
        return key, jnp.where(done, sample, gap * share), done | accepted

    start = (key, jnp.zeros_like(kappa), ~(kappa >= 0))  # NaN and negative need no proposals
    _, sample, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[2]), propose, start)
    return jnp.where(kappa >= 0, sample, jnp.nan)
