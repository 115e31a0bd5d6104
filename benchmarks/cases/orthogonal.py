"""Cases of `zoo.orthogonal`: penalties on kernels and on responses, with their gradients; angles.

D entries of each of K filters, B samples. A gradient case is the value and its gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo import orthogonal
from zoo.orthogonal.angles import random_angle_density

from ..case import Case, Floor, make_case, normal

ITERATIONS = 10


# Penalties on a kernel W [D, K].


def kernel(*, entries: int, filters: int) -> list[np.ndarray]:
    # Filters of length around 1, as penalties make them.
    return [normal(0, entries, filters) / np.float32(np.sqrt(entries))]


KERNELS: dict[str, Any] = {
    "inputs": kernel,
    "sizes": {
        "conv 3x3, 128 to 128": {"entries": 1152, "filters": 128},
        "conv 3x3, 512 to 512": {"entries": 4608, "filters": 512},
        "wide dense, 256 to 4096": {"entries": 256, "filters": 4096},
    },
}


def distance(w: jax.Array) -> jax.Array:
    return w.T @ w - jnp.eye(w.shape[1])


def naive_soft(w: jax.Array) -> jax.Array:
    return jnp.sum(distance(w) ** 2)


def naive_off_diagonal(w: jax.Array) -> jax.Array:
    return jnp.sum(((w.T @ w) * (1 - jnp.eye(w.shape[1]))) ** 2)


def naive_mutual_coherence(w: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(distance(w)))


def naive_spectral(w: jax.Array) -> jax.Array:
    """SRIP as published: the matrix first, then the iterations on it, from our start."""
    matrix = distance(w)
    vector = jnp.asarray(normal(0, w.shape[1]))
    for _ in range(ITERATIONS):
        vector = jax.lax.stop_gradient(matrix) @ vector
        vector = vector / jnp.linalg.norm(vector)
    return jnp.linalg.norm(matrix @ vector)


def soft_floor(*, entries: int, filters: int) -> Floor:
    """The Gram matrix of the smaller side, half of a product; the gradient's product with it."""
    return Floor(3 * entries * filters * min(entries, filters), 8 * entries * filters)


def penalty_case(kind: str, naive: Callable[..., Any], **options: Any) -> Case:
    return make_case(
        f"orthogonal.orthogonality_penalty {kind}",
        functools.partial(orthogonal.orthogonality_penalty, kind=kind, power_iterations=ITERATIONS),
        {"naive JAX": naive, "PyTorch": kind},
        gradient=True,
        count=lambda entries, filters: entries * filters,
        unit="weights",
        **KERNELS,
        **options,
    )


# The transformation: one update of the kernels of a residual block and of a Transformer's dense
# layers, and their biases.


def block(*, width: int) -> list[dict[str, np.ndarray]]:
    shapes = {
        "first": (3, 3, width, width),
        "second": (3, 3, width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
        "bias": (width,),
    }
    arrays = {
        name: normal(number, *shape) / np.float32(np.sqrt(np.prod(shape[:-1])))
        for number, (name, shape) in enumerate(shapes.items())
    }
    return [arrays, arrays]


def our_update(updates: Any, parameters: Any) -> Any:
    transformation = orthogonal.add_orthogonality_penalty(0.1)
    return transformation.update(updates, optax.EmptyState(), parameters)[0]


def naive_update(updates: Any, parameters: Any) -> Any:
    def penalty(parameters: Any) -> jax.Array:
        kernels = [leaf for leaf in jax.tree.leaves(parameters) if leaf.ndim > 1]
        return sum(naive_soft(leaf.reshape(-1, leaf.shape[-1])) for leaf in kernels)

    return jax.tree.map(lambda u, g: u + 0.1 * g, updates, jax.grad(penalty)(parameters))


# Penalties on responses Y [B, K].


def responses(*, samples: int, filters: int) -> list[np.ndarray]:
    return [normal(0, samples, filters)]


RESPONSES: dict[str, Any] = {
    "inputs": responses,
    "sizes": {
        "dense, 256 of 512": {"samples": 256, "filters": 512},
        "conv, 8 of 28x28 of 128": {"samples": 6272, "filters": 128},
        "more filters than samples": {"samples": 256, "filters": 4096},
    },
    "count": lambda samples, filters: samples * filters,
    "unit": "responses",
}


def naive_correlation(y: jax.Array) -> jax.Array:
    s = jnp.tanh(10 * y)
    u = s / jnp.linalg.norm(s, axis=0, keepdims=True)
    return u.T @ u


def naive_self_orthogonality(y: jax.Array) -> jax.Array:
    pairs = naive_correlation(y) * (1 - jnp.eye(y.shape[1]))
    return 100 * jnp.sum(pairs) ** 2 + jnp.sum(pairs**2)


# The responses themselves, and the angles.


def layer(*, batch: int, side: int, channels: int) -> list[np.ndarray]:
    return [normal(0, batch, side, side, channels), normal(1, 3, 3, channels, channels)]


def patches_layer(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The article's X·W literally: one row per position."""
    rows = jax.lax.conv_general_dilated_patches(
        x, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return rows @ kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])


def naive_angles(w: jax.Array) -> jax.Array:
    u = w / jnp.linalg.norm(w, axis=0, keepdims=True)
    first, second = np.triu_indices(w.shape[1], 1)
    return jnp.degrees(jnp.arccos(jnp.clip(u.T @ u, -1, 1)))[first, second]


def degrees(*, points: int) -> list[np.ndarray]:
    return [np.random.default_rng(0).uniform(60, 120, points).astype(np.float32)]


def naive_density(degrees: jax.Array, dimension: int = 27) -> jax.Array:
    gamma = jax.scipy.special.gammaln
    scale = gamma(dimension / 2) - gamma((dimension - 1) / 2) - jnp.log(jnp.pi) / 2
    sine = jnp.sin(jnp.radians(degrees))
    return jnp.exp(scale + (dimension - 2) * jnp.log(sine)) * jnp.pi / 180


CASES = [
    penalty_case("soft", naive_soft, floor=soft_floor),
    penalty_case("off_diagonal", naive_off_diagonal),
    penalty_case("mutual_coherence", naive_mutual_coherence),
    penalty_case("spectral", naive_spectral),
    make_case(
        "orthogonal.add_orthogonality_penalty",
        our_update,
        {"naive JAX": naive_update},
        block,
        sizes={"width 64": {"width": 64}, "width 512": {"width": 512}},
        count=lambda width: 26 * width**2,
        unit="weights",
    ),
    make_case(
        "orthogonal.self_orthogonality",
        orthogonal.self_orthogonality,
        {"naive JAX": naive_self_orthogonality, "PyTorch": "self_orthogonality"},
        gradient=True,
        **RESPONSES,
    ),
    make_case(
        "orthogonal.sign_correlation",
        orthogonal.sign_correlation,
        {"naive JAX": naive_correlation, "PyTorch": "correlation"},
        **RESPONSES,
    ),
    make_case(
        "orthogonal.filter_responses",
        orthogonal.filter_responses,
        {"patches": patches_layer, "PyTorch": "convolution"},
        layer,
        sizes={
            "14x14, 64 to 64": {"batch": 8, "side": 14, "channels": 64},
            "28x28, 128 to 128": {"batch": 32, "side": 28, "channels": 128},
        },
        count=lambda batch, side, channels: batch * side**2 * channels,
        unit="responses",
    ),
    make_case(
        "orthogonal.filter_angles",
        orthogonal.filter_angles,
        {"naive JAX": naive_angles, "PyTorch": "angles"},
        count=lambda entries, filters: filters * (filters - 1) // 2,
        unit="pairs",
        **KERNELS,
    ),
    make_case(
        "orthogonal.random_angle_density",
        functools.partial(random_angle_density, dimension=27),
        {"naive JAX": naive_density},
        degrees,
        sizes={"a histogram": {"points": 1000}, "many": {"points": 1_000_000}},
        count=lambda points: points,
        unit="angles",
    ),
]
