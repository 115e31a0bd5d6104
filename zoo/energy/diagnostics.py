"""How far to trust a set of chains: effective sample size and R̂.

With W the mean variance within M chains of S samples and B/S the variance between their means,

    V = W·(S-1)/S + B/S,    R̂ = √(V/W),    ESS = M·S / (1 + 2·Σ_t ρ_t)

where ρ_t = 1 - (W - mean autocovariance at lag t)/V, summed in pairs as long as the pairs are
positive and made monotone (Geyer). Chains are split in halves first, so that a drift shows as two
chains that disagree.

Sources: Gelman, Rubin, 1992; Geyer, «Practical Markov Chain Monte Carlo», 1992; Vehtari, Gelman,
Simpson, Carpenter, Bürkner, «Rank-normalization, folding, and localization», 2021, arXiv 1903.08008
(without its rank normalisation).
"""

import jax
import jax.numpy as jnp


def effective_sample_size(samples: jax.Array) -> jax.Array:
    """How many independent samples would estimate the mean as well.

    Args:
        samples: ``[S, B, ...]`` floating, S ≥ 4 samples of B chains, as ``sample_chain`` gives.

    Returns:
        ``[...]``, at least float32. NaN for a component that is constant.

    Raises:
        ValueError: fewer than two axes or fewer than 4 samples.
        TypeError: if the samples are not floating-point.

    >>> draws = jax.random.normal(jax.random.key(0), (1000, 4))
    >>> 3000 < effective_sample_size(draws) < 5000
    Array(True, dtype=bool)
    """
    chains = _split_chains(samples, "effective_sample_size")
    length, number = chains.shape[:2]
    covariance = _autocovariance(chains)
    within, total = _variances(chains)
    correlation = 1 - (within[None] - covariance * length / (length - 1)) / total[None]
    correlation = correlation.at[0].set(1.0)
    pairs = correlation[0 : 2 * (length // 2) : 2] + correlation[1 : 2 * (length // 2) : 2]
    # Once a pair is not positive, noise has taken over: that pair and all later ones count nothing.
    positive = jnp.cumprod(pairs > 0, axis=0)
    monotone = jax.lax.cummin(pairs, axis=0)
    time = -1 + 2 * (monotone * positive).sum(axis=0)
    bound = jnp.log10(jnp.asarray(length * number, time.dtype))  # of antithetic chains
    size = length * number / jnp.maximum(time, 1 / bound)
    return jnp.where(within > 0, size, jnp.nan)


def r_hat(samples: jax.Array) -> jax.Array:
    """Potential scale reduction of split chains: 1 when they agree, above 1.01 be suspicious.

    Args:
        samples: ``[S, B, ...]`` floating, S ≥ 4 samples of B chains.

    Returns:
        ``[...]``, at least float32. NaN for a component that is constant.

    Raises:
        ValueError: fewer than two axes or fewer than 4 samples.
        TypeError: if the samples are not floating-point.

    >>> draws = jax.random.normal(jax.random.key(0), (1000, 4))
    >>> 0.99 < r_hat(draws) < 1.01
    Array(True, dtype=bool)
    """
    within, total = _variances(_split_chains(samples, "r_hat"))
    return jnp.sqrt(total / within)


def _split_chains(samples: jax.Array, name: str) -> jax.Array:
    """[S, B, ...] -> [S // 2, 2B, ...], at least float32; an odd one in the middle is left out."""
    if not jnp.issubdtype(jnp.result_type(samples), jnp.floating):
        raise TypeError(f"{name}: samples must be floating-point, got {jnp.result_type(samples)}")
    if jnp.ndim(samples) < 2 or len(samples) < 4:
        raise ValueError(
            f"{name}: expected samples [S, B, ...] with S of at least 4, got {jnp.shape(samples)}"
        )
    half = len(samples) // 2
    samples = jnp.asarray(samples, jnp.promote_types(samples.dtype, jnp.float32))
    return jnp.concatenate([samples[:half], samples[-half:]], axis=1)


def _variances(chains: jax.Array) -> tuple[jax.Array, jax.Array]:
    """W and V, both [...]."""
    length = len(chains)
    within = chains.var(axis=0, ddof=1).mean(axis=0)
    between = chains.mean(axis=0).var(axis=0, ddof=1)
    return within, within * (length - 1) / length + between


def _autocovariance(chains: jax.Array) -> jax.Array:
    """[S, M, ...] -> [S, ...]: at every lag, mean over the chains; by Fourier transform."""
    length = len(chains)
    centred = chains - chains.mean(axis=0, keepdims=True)
    spectrum = jnp.fft.rfft(centred, 2 * length, axis=0)
    product = jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * length, axis=0)[:length]
    return product.mean(axis=1) / length
