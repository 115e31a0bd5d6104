"""Spectral normalisation with an explicit state that only training advances.

    v = l2(u·Wᵀ),  u' = l2(v·W),  σ = v·W·u'ᵀ,  W/σ        one power iteration, W = [fan_in, out]

u and v carry no gradient, σ does: dL/dW = (G - <G, W/σ>·vᵀu')/σ for G = dL/d(W/σ). The estimate σ
grows from below to the largest singular value as u is carried from step to step. Within one
training step the chain and the loss see the same u, so that they share one energy; the original
advances u at every evaluation, which changes the energy while it is being sampled. Why this is here
beside ``nnx.SpectralNorm``: u is an argument and a result, which sampling does not advance.

Source: Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial
Networks", 2018, arXiv 1802.05957; Du, Mordatch, 2019, arXiv 1903.08689, and its code.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from zoo._checks import count, widened

SMALLEST = 1e-12  # of a squared norm that is divided by
ZERO_SCALE = 1e-10  # deviation of a kernel that starts "at zero" but needs a direction


class SpectralState(nnx.Variable):
    """The vector u ``[out]`` of a kernel: carried along, not learned."""


def spectral_normalize(
    kernel: jax.Array, u: jax.Array, *, power_iterations: int = 1, at_most: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Divides a kernel by its largest singular value.

    Args:
        kernel: W, ``[..., out]`` floating; the axes before the last are one.
        u: ``[out]``, from the last call, or random.
        power_iterations: at least 1.
        at_most: only shrink, ``W·min(σ, 1)/σ``: a kernel that starts at zero may stay small.

    Returns:
        The normalised kernel and the new u.

    Raises:
        ValueError: u that does not fit the kernel, power_iterations < 1.
        TypeError: if the kernel is not floating-point.

    A kernel of zeros stays zeros, and u stays what it was. A u that the kernel maps to zero or NaN
    is replaced: the iteration then starts from the kernel's longest column.

    >>> kernel, u = spectral_normalize(jnp.diag(jnp.array([4.0, 0.0])), jnp.ones(2))
    >>> print(kernel[0], u)
    [1. 0.] [1. 0.]
    """
    kernel, wide = widened("kernel", kernel)
    if kernel.ndim < 2 or jnp.shape(u) != kernel.shape[-1:]:
        raise ValueError(
            f"u: expected shape [out] for a kernel [..., out], got {jnp.shape(u)} for "
            f"{jnp.shape(kernel)}"
        )
    power_iterations = count("power_iterations", power_iterations, at_least=1)
    matrix = wide.reshape(-1, kernel.shape[-1])
    # Only directions matter for u and v: scaled to size 1, no kernel is too small or too large.
    size = jnp.max(jnp.abs(matrix), initial=0.0)
    constant = jax.lax.stop_gradient(matrix / jnp.where(size > 0, size, 1))
    old_u = new_u = jax.lax.stop_gradient(jnp.asarray(u, wide.dtype))
    longest = constant[:, (constant**2).sum(axis=0).argmax()]
    for _ in range(power_iterations):
        v = constant @ new_u
        v = _unit(jnp.where((v**2).sum() > 0, v, longest))
        new_u = _unit(v @ constant)
    new_u = jnp.where(size == 0, old_u, new_u)
    sigma = v @ matrix @ new_u
    if at_most:
        sigma = sigma + 1e-6  # as in the original: a kernel at zero has a finite quotient
        factor = jnp.minimum(sigma, 1) / sigma
    else:
        factor = 1 / jnp.where(sigma > 0, sigma, 1)
    return (kernel * factor.astype(kernel.dtype)), new_u.astype(u.dtype)


class SpectralKernel(nnx.Module):
    """A kernel that is normalised when it is read.

    In training mode (``module.train()``, the default) every read advances u; in evaluation mode
    (``module.eval()``) u stays, and the result is the one the next read in training gives.
    """

    def __init__(self, *shape: int, start_at_zero: bool = False, rngs: nnx.Rngs):
        """Draws N(0, 1) entries, whose size the normalisation makes irrelevant.

        Args:
            *shape: of the kernel, ``[..., out]``.
            start_at_zero: entries of 10⁻¹⁰, normalised to at most 1.
            rngs: streams ``params`` for the kernel and u.
        """
        self.start_at_zero = start_at_zero
        scale = ZERO_SCALE if start_at_zero else 1.0
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.u = SpectralState(jax.random.normal(rngs.params(), shape[-1:]))
        self.use_running_average = False

    def __call__(self) -> jax.Array:
        """The normalised kernel."""
        kernel, u = spectral_normalize(self.kernel[...], self.u[...], at_most=self.start_at_zero)
        if not self.use_running_average:
            self.u[...] = u
        return kernel


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(), SMALLEST))
