"""Power-law averages of the parameters, and any other averaging length after the training.

    average(t) = ∫_0^t τ^γ θ(τ) dτ / ∫_0^t τ^γ dτ,
    average_n  = β_n · average_{n-1} + (1 - β_n) · θ_n,   β_n = (1 - 1 / n)^{γ + 1}

The width of the profile τ^γ grows with t, so it is given relative to t, as a standard deviation:

    relative_std = √((γ + 1) / ((γ + 2)² (γ + 3)))

Averages stored at some steps with some widths span a space of profiles. Any other profile is
projected on it,

    x = argmin ∫ (p(τ) - Σ_i x_i p_i(τ))² dτ,   Σ_i x_i = 1,

and the same combination of the stored parameters is the average one would have had. (Without the
constraint, which the paper does not have, three stored averages can give a sum of 0.75, which
scales the network down.)

Source: Tero Karras, Miika Aittala, Jaakko Lehtinen, Janne Hellsten, Timo Aila, Samuli Laine,
"Analyzing and Improving the Training Dynamics of Diffusion Models", 2024, arXiv 2312.02696,
section 3 and appendix C.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from zoo import _checks
from zoo._paths import spread
from zoo.averaging.exponential import Mask, Steps, average_of_parameters, running_update

# Of all γ > -1 the relative standard deviation is largest where (γ + 1)² + (γ + 1) = 1.
WIDEST = (math.sqrt(5) - 1) / 2 - 1
LARGEST_RELATIVE_STD = math.sqrt((WIDEST + 1) / ((WIDEST + 2) ** 2 * (WIDEST + 3)))


def power_law_exponent(relative_std: float | jax.Array) -> Any:
    """The exponent γ of a power-law profile of a given width.

    The largest root of (γ + 2)² (γ + 3) · relative_std² = γ + 1.

    Args:
        relative_std: standard deviation of the profile over its length, in (0, 0.3003); a traced
            one that is not gives NaN.

    Returns:
        γ, a float, or a traced scalar.

    Raises:
        ValueError: if there is no such profile.

    >>> power_law_exponent(0.1)
    6.94
    """
    advice = "it is a fraction of the training so far, such as 0.1"
    relative_std = _checks.number(
        "relative_std", relative_std, above=0, below=LARGEST_RELATIVE_STD, advice=advice
    )
    traced = isinstance(relative_std, jax.Array)
    xp: Any = jnp if traced else np
    # With γ = t - 7/3 it is t³ + p·t + q = 0, which has three real roots.
    inverse = relative_std**-2
    p, q = -1 / 3 - inverse, 2 / 27 + 4 / 3 * inverse
    radius = 2 * xp.sqrt(-p / 3)
    cosine = xp.maximum(3 * q / (p * radius), -1)  # -1 at the widest, less by a rounding
    root = radius * xp.cos(xp.arccos(cosine) / 3) - 7 / 3
    return root if traced else float(root)


def power_law_ema(
    relative_std: float | jax.Array,
    *,
    start_step: Steps = 0,
    every: Steps = 1,
    mask: Mask = None,
    model_state: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps a power-law average of the parameters; passes the updates through unchanged.

    average_n = β_n · average_{n-1} + (1 - β_n) · θ_n with β_n = (1 - 1 / n)^{γ + 1}. Its memory is
    a fixed fraction of the training so far, whose length need not be known.

    Args:
        relative_std: width of the profile over the number of terms, in (0, 0.3003). From two
            averages, such as 0.05 and 0.1, stored at intervals, :func:`post_hoc_average` makes all
            others.
        start_step: as for :func:`parameter_ema`, and so are the other arguments.
        every: steps from one term to the next.
        mask: which leaves to average.
        model_state: what else to average.

    Returns:
        The transformation; read it with :func:`averaged_parameters`.

    Raises:
        ValueError: if relative_std is out of range; else as :func:`parameter_ema`.

    >>> optimizer = optax.named_chain(
    ...     ("adam", optax.adam(1e-3)),
    ...     ("narrow", power_law_ema(0.05)),
    ...     ("wide", power_law_ema(0.1)),
    ... )

    Reference: arXiv 2312.02696, equation 4 and 130.
    """
    order = power_law_exponent(relative_std) + 1

    def share(terms: jax.Array) -> jax.Array:
        """1 - β_n."""
        return -jnp.expm1(order * jnp.log1p(-1 / terms))

    update = functools.partial(running_update, share=share)
    return average_of_parameters(update, True, start_step, every, mask, model_state)


def post_hoc_weights(
    steps: ArrayLike, relative_stds: ArrayLike, *, step: float, relative_std: float
) -> np.ndarray:
    """The combination of stored power-law averages that is nearest to another one.

    argmin_x ∫ (p(τ) - Σ_i x_i p_i(τ))² dτ with Σ_i x_i = 1, p_i the profiles of integral 1.

    Arguments and errors are those of :func:`post_hoc_average`. The ``[N]`` float64 weights sum to
    1 and may be negative.

    >>> print(post_hoc_weights([100, 200, 200], [0.1, 0.05, 0.1], step=200, relative_std=0.1))
    [0. 0. 1.]

    Reference: arXiv 2312.02696, appendix C.2.
    """
    times, widths = (np.atleast_1d(np.asarray(v, np.float64)) for v in (steps, relative_stds))
    _checks.shapes(steps=(times, "N"), relative_stds=(widths, "N"))
    if not ((times > 0).all() and 0 < step <= times.max(initial=0)):
        raise ValueError(
            f"steps must be positive, and step in (0, max(steps)]; got {step=} and steps {times}"
        )
    exponents = np.array([power_law_exponent(width) for width in widths])
    wanted = power_law_exponent(relative_std)
    gram = _overlap(times[:, None], exponents[:, None], times, exponents)
    projection = _overlap(times, exponents, float(step), wanted)
    # Neighbouring profiles are nearly equal. Scaled to norm 1, their least-squares combination of
    # least norm is the one that magnifies the rounding of the stored parameters least.
    norms = np.sqrt(np.diag(gram))
    system = np.zeros((len(norms) + 1,) * 2)
    system[:-1, :-1] = gram / np.outer(norms, norms)
    system[-1, :-1] = system[:-1, -1] = 1 / norms
    right = np.append(projection / norms, 1)
    return np.linalg.lstsq(system, right, rcond=1e-10)[0][:-1] / norms


def post_hoc_average(
    averages: Sequence[Any],
    steps: ArrayLike,
    relative_stds: ArrayLike,
    *,
    step: float | None = None,
    relative_std: float,
) -> Any:
    """The power-law average of any width, from a few stored ones.

    Args:
        averages: N trees of one structure, from :func:`averaged_parameters`, on host or devices.
        steps: ``[N]`` numbers of terms at which they were stored.
        relative_stds: ``[N]`` their widths.
        step: number of terms of the wanted average; the largest of ``steps`` if None.
        relative_std: its width, in (0, 0.3003). Widths between the stored ones are nearly exact.

    Returns:
        A tree like the others, summed in at least float32, in the dtypes of the first.

    Raises:
        ValueError: if the arguments do not fit each other, or a width or step is out of range.

    >>> averages = [{"kernel": jnp.ones(2)}, {"kernel": jnp.ones(2)}]
    >>> print(post_hoc_average(averages, [100, 100], [0.05, 0.1], relative_std=0.1)["kernel"])
    [1. 1.]

    Reference: arXiv 2312.02696, section 3.
    """
    _checks.shapes(averages=(np.empty(len(averages)), "N"), steps=(np.atleast_1d(steps), "N"))
    last = float(np.max(steps)) if step is None else step
    weights = post_hoc_weights(steps, relative_stds, step=last, relative_std=relative_std)

    def combine(*leaves: Any) -> jax.Array:
        first = jnp.asarray(leaves[0])
        if not jnp.issubdtype(first.dtype, jnp.inexact):  # a counter or a key
            return jnp.asarray(leaves[int(np.argmax(np.asarray(steps)))])
        total = jnp.zeros(first.shape, _checks.accumulator(first.dtype))
        for weight, leaf in zip(weights, leaves, strict=True):
            total += jnp.asarray(weight, total.dtype) * jnp.asarray(leaf).astype(total.dtype)
        return total.astype(first.dtype)

    others = [spread(average, averages[0], name="averages") for average in averages[1:]]
    return jax.tree.map(combine, averages[0], *others)


def _overlap(time: Any, exponent: Any, other_time: Any, other_exponent: Any) -> np.ndarray:
    """∫ p(τ) q(τ) dτ of two power-law profiles, each of integral 1 on (0, time)."""
    early = np.minimum(time, other_time)
    late_exponent = np.where(time > other_time, exponent, other_exponent)
    late_time = np.maximum(time, other_time)
    product = (exponent + 1) * (other_exponent + 1) / (exponent + other_exponent + 1)
    return product * (early / late_time) ** late_exponent / late_time
