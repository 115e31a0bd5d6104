"""Objectives: how the parameters of an energy learn from data and from samples.

The gradient of the negative log-likelihood is E_data[∇E] - E_model[∇E]. Contrastive divergence
takes the second mean over short chains, and keeps the energies near 0 by their squares:

    loss = mean E⁺ - mean E⁻ + a·(mean E⁺² + mean E⁻²)

Both squares are ADDED, as in the original code. The article prints the second one with a minus;
with that sign the loss has no lower bound, it falls to -∞ as |E⁻| grows. With both added it is,
exactly,

    a·mean (E⁺ + 1/2a)² + a·mean (E⁻ - 1/2a)² - 1/2a,

a least-squares discriminator with targets ∓1/2a and the lower bound -1/2a: near 0 the chains win,
near -1/2a the discriminator does, and neither is a failure by itself.

Sources: Hinton, 2002; Du, Mordatch, 2019, arXiv 1903.08689; Du, Li, Tenenbaum, Mordatch, 2021,
arXiv 2012.01316; Grathwohl et al., "Your classifier is secretly an energy based model", 2019, arXiv
1912.03263; Vincent, "A connection between score matching and denoising autoencoders", 2011; Gao et
al., "Learning energy-based models by diffusion recovery likelihood", 2020, arXiv 2012.08125;
article 6612.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo._checks import accumulator, count, floating, integers, number, shapes, widened
from zoo.energy.chains import (
    EnergyFunction,
    Sampler,
    checked_energy,
    energy_and_gradient,
    inner_product,
    run_chain,
    standard_normal,
    wide,
)

WEIGHT_FLOOR = 1e-4  # added to the sum of the weights in the original code


def contrastive_loss(
    energy_data: jax.Array, energy_samples: jax.Array, *, l2: float = 1.0
) -> jax.Array:
    """Contrastive divergence, ``mean E⁺ - mean E⁻ + l2·(mean E⁺² + mean E⁻²)``.

    Args:
        energy_data: E⁺, ``[B]``.
        energy_samples: E⁻, ``[S]``, of samples behind ``jax.lax.stop_gradient``.
        l2: a ≥ 0, strength of the regularisation; with 0 the loss has no lower bound.

    Returns:
        ``[]``, at least float32; at least -1/(4·l2) for each of the two groups.

    Raises:
        ValueError: l2 < 0 (the article's sign), energies that are not ``[B]``.
        TypeError: energies that are not floating-point.

    Reference: Du, Mordatch, 2019.

    >>> print(contrastive_loss(jnp.array([-0.5, -0.5]), jnp.array([0.5])))
    -0.5
    """
    plus, minus = _energies(energy_data, energy_samples)
    return plus.mean() - minus.mean() + _squares(plus, minus, l2)


def softplus_contrastive_loss(
    energy_data: jax.Array, energy_samples: jax.Array, *, l2: float = 1.0
) -> jax.Array:
    """Gives well-separated pairs little weight: ``mean log(1 + e^{E⁺ - E⁻}) + l2·(…)``.

    Args, Returns, Raises: as ``contrastive_loss``, but E⁻ is ``[B]`` and paired with the data.

    Reference: Du, Mordatch, 2019.

    >>> print(softplus_contrastive_loss(jnp.zeros(2), jnp.zeros(2)).round(4))
    0.6931
    """
    plus, minus = _energies(energy_data, energy_samples, paired=True)
    return jax.nn.softplus(plus - minus).mean() + _squares(plus, minus, l2)


def weighted_contrastive_loss(
    energy_data: jax.Array, energy_samples: jax.Array, *, l2: float = 1.0
) -> jax.Array:
    """Weights the samples by their probability under the model ("logsumexp" in the code).

    ``mean E⁺ - Σ wᵢEᵢ⁻ + l2·(…)`` with the weights held constant,
    ``wᵢ = e^{-(Eᵢ⁻ - min E⁻)} / (Σⱼ e^{-(Eⱼ⁻ - min E⁻)} + 10⁻⁴)``.

    Args, Returns, Raises: as ``contrastive_loss``.

    Reference: Du, Mordatch, 2019.

    >>> print(weighted_contrastive_loss(jnp.zeros(2), jnp.zeros(2)).round(4))
    0.0
    """
    plus, minus = _energies(energy_data, energy_samples)
    weights = jnp.exp(jax.lax.stop_gradient(minus.min() - minus))
    weights = weights / (weights.sum() + WEIGHT_FLOOR)
    return plus.mean() - (weights * minus).sum() + _squares(plus, minus, l2)


def sampler_kl_loss(
    key: jax.Array,
    energy_fn: Callable[[Any, Any], jax.Array],
    parameters: Any,
    position: Any,
    *,
    make_sampler: Callable[[EnergyFunction], Sampler],
    num_steps: int,
    differentiated_steps: int = 1,
) -> tuple[jax.Array, Any]:
    """The KL term that contrastive divergence omits: the gradient through the sampler.

    ``L = mean E_stopped(x_K(θ))``, differentiated through the last steps of the chain, or all K.
    Add ``- weight·nearest_neighbor_entropy(...)`` for the other half of the divergence.

    Args:
        key: ``[]`` typed key; consumed.
        energy_fn: ``(parameters, position) -> [B]``.
        parameters: θ.
        position: starting points, pytree of ``[B, ...]``.
        make_sampler: ``(energy of a position) -> Sampler``, such as ``lambda e: langevin(e, …)``.
        num_steps: K.
        differentiated_steps: how many steps at the end carry a gradient, 1 to K; memory grows with
            their number.

    Returns:
        L, ``[]``, and x_K, which carries the same gradient (stop it for the other terms).

    Raises:
        ValueError: num_steps < 1, differentiated_steps outside 1…num_steps, an energy that is not
            ``[B]``.

    Reference: Du, Li, Tenenbaum, Mordatch, 2021, section 3.

    >>> from zoo.energy import langevin
    >>> energy = lambda theta, x: theta * (x**2).sum(-1) / 2
    >>> make = lambda energy: langevin(energy, step_size=0.5, noise_scale=0.0)
    >>> loss = lambda theta: sampler_kl_loss(
    ...     jax.random.key(0), energy, theta, jnp.ones((1, 1)), make_sampler=make, num_steps=1
    ... )[0]
    >>> print(loss(1.0), jax.grad(loss)(1.0))  # x₁ = 1 - 0.5θ, dL/dθ = θ·x₁·(-0.5)
    0.125 -0.25
    """
    num_steps = count("num_steps", num_steps, at_least=1)
    differentiated_steps = count(
        "differentiated_steps", differentiated_steps, at_least=1, at_most=num_steps
    )
    stopped = jax.lax.stop_gradient(parameters)
    first_key, last_key = jax.random.split(key)
    free = make_sampler(lambda x: energy_fn(stopped, x))
    state, _ = run_chain(first_key, free, free.init(position), num_steps - differentiated_steps)
    last = make_sampler(lambda x: energy_fn(parameters, x))
    state, _ = run_chain(
        last_key, last, last.init(jax.lax.stop_gradient(state.position)), differentiated_steps
    )
    energy = checked_energy(lambda x: energy_fn(stopped, x), state.position)
    return energy.mean(), state.position


def nearest_neighbor_entropy(samples: jax.Array, references: jax.Array) -> jax.Array:
    """Entropy of the sampler up to a constant, ``mean_i log min_j |x_i - r_j|``.

    Args:
        samples: ``[B, ...]`` floating.
        references: ``[S, ...]``, such as samples from the replay buffer; constant.

    Returns:
        ``[]``, at least float32. A sample that equals a reference counts as 10⁻⁶ away from it.

    Raises:
        ValueError: examples of different shapes, no references.
        TypeError: if one is not floating-point.

    Reference: Du, Li, Tenenbaum, Mordatch, 2021; Kozachenko, Leonenko, 1987.

    >>> print(nearest_neighbor_entropy(jnp.array([[1.0], [4.0]]), jnp.array([[0.0], [3.0]])))
    0.0
    """
    samples, references = floating("samples", samples), floating("references", references)
    if samples.shape[1:] != references.shape[1:] or not len(references):
        raise ValueError(
            f"references: expected examples {samples.shape[1:]}, at least one, got shape "
            f"{references.shape}"
        )
    dtype, size = accumulator(samples.dtype), math.prod(samples.shape[1:])
    flat = samples.reshape(len(samples), size).astype(dtype)
    fixed = jax.lax.stop_gradient(references.reshape(len(references), size).astype(dtype))
    nearest = _nearest(jax.lax.stop_gradient(flat), fixed)
    squared = ((flat - fixed[nearest]) ** 2).sum(axis=1)
    return (jnp.log(jnp.maximum(squared, 1e-12)) / 2).mean()


@jax.jit
def _nearest(x: jax.Array, references: jax.Array) -> jax.Array:
    """``argmin_j |x_i - r_j|`` for ``[B, D]`` and ``[S, D]``.

    By one product of matrices, |r|² - 2x·r; where its rounding may have changed the order, as with
    copies and near copies, by the differences themselves.
    """
    center = references.mean(axis=0, keepdims=True)
    y, r = x - center, references - center
    squares = (r**2).sum(axis=1)
    distances = squares[None] - 2 * jnp.matmul(y, r.T, precision="highest")
    reach = (y**2).sum(axis=1, keepdims=True) + squares.max()
    error = 4 * (x.shape[1] + 4) * jnp.finfo(x.dtype).eps * reach
    near = distances <= distances.min(axis=1, keepdims=True) + error

    def by_differences() -> jax.Array:
        return jax.lax.map(lambda row: ((row[None] - references) ** 2).sum(axis=1).argmin(), x)

    certain = (near.sum(axis=1) == 1).all()
    return jax.lax.cond(certain, lambda: distances.argmin(axis=1), by_differences)


def classifier_energy(logits: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """The energy inside a classifier: ``E(x) = -log Σ_k e^{f_k(x)}``, ``E(x, y) = -f_y(x)``.

    Training a classifier and this energy together (JEM) adds the cross entropy of the labels to the
    contrastive loss of E(x), without regularisation.

    Args:
        logits: f, ``[..., K]`` floating.
        labels: y, integers ``[...]``, or None for the energy of x alone.

    Returns:
        ``[...]``, at least float32. A label out of range gives NaN.

    Raises:
        TypeError: logits that are not floating-point, labels that are not integers.
        ValueError: labels of another shape, no classes.

    Reference: Grathwohl et al., 2019.

    >>> print(classifier_energy(jnp.zeros((1, 2))), classifier_energy(jnp.eye(2), jnp.arange(2)))
    [-0.6931] [-1. -1.]
    """
    _, logits = widened("logits", logits)
    if jnp.shape(logits)[-1:] in ((), (0,)):
        raise ValueError(f"logits must have shape [..., K] with K > 0, got {jnp.shape(logits)}")
    if labels is None:
        return -jax.nn.logsumexp(logits, axis=-1)
    labels = integers("labels", labels)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels: expected shape {logits.shape[:-1]}, got {labels.shape}")
    inside = (labels >= 0) & (labels < logits.shape[-1])
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]
    return jnp.where(inside, -chosen, jnp.nan)


def denoising_score_matching_loss(
    key: jax.Array, energy_fn: EnergyFunction, data: Any, *, noise_scale: float
) -> jax.Array:
    """Learns ∇E without any sampling: ``mean |σ∇E(x + σξ) - ξ|² / 2``.

    Its minimum is the energy of the data blurred by σ, up to a constant.

    Args:
        key: ``[]`` typed key; consumed.
        energy_fn: ``(position) -> [B]``.
        data: pytree of floats ``[B, ...]``.
        noise_scale: σ > 0.

    Returns:
        ``[]``, at least float32: a sum over components, a mean over B.

    Raises:
        ValueError: noise_scale ≤ 0, an energy of a wrong shape.
        TypeError: data or an energy that is not floating-point.

    Reference: Vincent, 2011.

    >>> energy = lambda x: (x**2).sum(-1) / 2
    >>> loss = denoising_score_matching_loss(
    ...     jax.random.key(0), energy, jnp.zeros((8, 2)), noise_scale=1.0
    ... )
    >>> print(loss)  # data at 0 blurred by 1: this is its energy
    0.0
    """
    noise_scale = number("noise_scale", noise_scale, above=0)
    noise = standard_normal(key, data)
    noisy = jax.tree.map(lambda x, e: (x + noise_scale * e).astype(x.dtype), data, noise)
    _, gradient = energy_and_gradient(energy_fn, noisy)
    gap = jax.tree.map(lambda g, e: noise_scale * g - e, wide(gradient), noise)
    return inner_product(gap, gap).mean() / 2


def recovery_energy(
    energy_fn: EnergyFunction, noisy: jax.Array, *, noise_scale: float
) -> EnergyFunction:
    """The energy of x given its noisy copy, ``E(x) + |x - x̃|²/(2σ²)``: nearly convex.

    Recovery likelihood trains E by ``contrastive_loss`` of E on data and on samples of this energy,
    started at the noisy copies: the quadratic part has no parameters.

    Args:
        energy_fn: ``(position) -> [B]``.
        noisy: x̃ = x + σξ, ``[B, ...]``.
        noise_scale: σ > 0.

    Returns:
        An energy function of x.

    Raises:
        ValueError: noise_scale ≤ 0; when used, a position of another shape than x̃, an energy that
            is not ``[B]``.

    Reference: Gao et al., 2020.

    >>> energy = recovery_energy(lambda x: 0 * x.sum(-1), jnp.zeros((1, 2)), noise_scale=1.0)
    >>> print(energy(jnp.ones((1, 2))))
    [1.]
    """
    noise_scale = number("noise_scale", noise_scale, above=0)

    def energy(position: jax.Array) -> jax.Array:
        if jnp.shape(position) != jnp.shape(noisy):
            raise ValueError(
                f"position: expected the shape of noisy, {jnp.shape(noisy)}, got "
                f"{jnp.shape(position)}"
            )
        gap = (position - noisy) / noise_scale
        return checked_energy(energy_fn, position) + inner_product(gap, gap) / 2

    return energy


def _energies(plus: Any, minus: Any, *, paired: bool = False) -> tuple[jax.Array, jax.Array]:
    _, plus = widened("energy_data", plus)
    _, minus = widened("energy_samples", minus)
    shapes(energy_data=(plus, "B"), energy_samples=(minus, "B" if paired else "S"))
    return plus, minus


def _squares(plus: jax.Array, minus: jax.Array, l2: Any) -> jax.Array:
    advice = "both squares are added; the article's minus sign leaves the loss unbounded below"
    l2 = number("l2", l2, at_least=0, advice=advice)
    squares = (plus**2).mean() + (minus**2).mean()
    return l2 * jnp.where((l2 == 0) & (squares == jnp.inf), 0, squares)  # not 0·∞ = NaN
