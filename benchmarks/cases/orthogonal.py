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

from benchmarks.case import Case, Floor, Program
from zoo import orthogonal
from zoo.extras import require

partial = functools.partial
ITERATIONS = 10


def rival() -> Any:
    """The PyTorch programs, or an ImportError that says what to install."""
    require("torch", "bench")
    from benchmarks.cases import torch_orthogonal

    return torch_orthogonal


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Penalties on a kernel W [D, K].

KERNELS = {
    "conv 3x3, 128 to 128": {"entries": 1152, "filters": 128},
    "conv 3x3, 512 to 512": {"entries": 4608, "filters": 512},
    "wide dense, 256 to 4096": {"entries": 256, "filters": 4096},
}


def kernel(*, entries: int, filters: int) -> np.ndarray:
    # Filters of length around 1, as penalties make them.
    return normal(0, entries, filters) / np.float32(np.sqrt(entries))


def distance(w: jax.Array) -> jax.Array:
    return w.T @ w - jnp.eye(w.shape[1])


def naive_soft(w: jax.Array) -> jax.Array:
    return jnp.sum(distance(w) ** 2)


def naive_off_diagonal(w: jax.Array) -> jax.Array:
    return jnp.sum(((w.T @ w) * (1 - jnp.eye(w.shape[1]))) ** 2)


def naive_mutual_coherence(w: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(distance(w)))


def start_vector(filters: int) -> np.ndarray:
    """The start of our power iteration, so that rivals do the same iterations."""
    return np.random.default_rng(0).normal(size=filters).astype(np.float32)


def naive_spectral(w: jax.Array) -> jax.Array:
    """SRIP as published: the matrix first, then the iterations on it."""
    matrix = distance(w)
    vector = jnp.asarray(start_vector(w.shape[1]))
    for _ in range(ITERATIONS):
        vector = jax.lax.stop_gradient(matrix) @ vector
        vector = vector / jnp.linalg.norm(vector)
    return jnp.linalg.norm(matrix @ vector)


def kernel_gradient(function: Callable[[jax.Array], jax.Array], **size: int) -> Program:
    return jax.value_and_grad(function), (kernel(**size),)


def torch_kernel_gradient(name: str, **size: int) -> Program:
    return rival().backward(rival().PENALTIES[name], [kernel(**size)])


def torch_spectral_gradient(**size: int) -> Program:
    programs = rival()
    start = programs.torch.tensor(start_vector(size["filters"]))
    function = partial(programs.spectral, iterations=ITERATIONS)
    return programs.backward(lambda w: function(w, start.to(w.device)), [kernel(**size)])


def gram_operations(entries: int, filters: int) -> int:
    """A symmetric matrix of the smaller side: half of a product."""
    return entries * filters * min(entries, filters)


def both_products(*, entries: int, filters: int) -> Floor:
    """The Gram matrix of the smaller side, and the gradient's product with it."""
    return Floor(3 * gram_operations(entries, filters), 8 * entries * filters)


def gram_alone(*, entries: int, filters: int) -> Floor:
    return Floor(entries * filters**2, 8 * entries * filters)


def vector_products(*, entries: int, filters: int) -> Floor:
    """Two products with a vector an iteration, two for the value, three for the gradient."""
    return Floor((4 * ITERATIONS + 10) * entries * filters, 8 * entries * filters)


def penalty_case(
    kind: str, naive: Callable[[jax.Array], jax.Array], floor: Callable[..., Floor]
) -> Case:
    ours = partial(orthogonal.orthogonality_penalty, kind=kind, power_iterations=ITERATIONS)
    in_torch = torch_spectral_gradient if kind == "spectral" else None
    return Case(
        name=f"orthogonal.orthogonality_penalty {kind} gradient",
        sizes=KERNELS,
        small=("conv 3x3, 128 to 128",),
        build=partial(kernel_gradient, ours),
        rivals={
            "naive JAX": partial(kernel_gradient, naive),
            "PyTorch": in_torch or partial(torch_kernel_gradient, kind),
        },
        equal=("naive JAX", "PyTorch"),
        count=lambda entries, filters: entries * filters,
        unit="weights",
        floor=floor,
    )


# The transformation: one update of the four kernels of a block.

BLOCKS = {
    "width 64": {"width": 64},
    "width 512": {"width": 512},
}


def block(width: int) -> dict[str, np.ndarray]:
    """Kernels of a residual block and of the dense layers of a transformer's, and their biases."""
    shapes = {
        "first": (3, 3, width, width),
        "second": (3, 3, width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
        "bias": (width,),
    }
    return {
        name: normal(number, *shape) / np.float32(np.sqrt(np.prod(shape[:-1])))
        for number, (name, shape) in enumerate(shapes.items())
    }


def our_update(*, width: int) -> Program:
    transformation = orthogonal.add_orthogonality_penalty(0.1)
    parameters = block(width)

    def update(updates: Any, parameters: Any) -> Any:
        return transformation.update(updates, optax.EmptyState(), parameters)[0]

    return update, (block(width), parameters)


def naive_update(*, width: int) -> Program:
    def penalty(parameters: Any) -> jax.Array:
        kernels = [leaf for leaf in jax.tree.leaves(parameters) if leaf.ndim > 1]
        return sum(naive_soft(leaf.reshape(-1, leaf.shape[-1])) for leaf in kernels)

    def update(updates: Any, parameters: Any) -> Any:
        return jax.tree.map(lambda u, g: u + 0.1 * g, updates, jax.grad(penalty)(parameters))

    return update, (block(width), block(width))


def update_floor(*, width: int) -> Floor:
    matrices = [(9 * width, width), (9 * width, width), (width, 4 * width), (4 * width, width)]
    operations = sum(3 * gram_operations(*matrix) for matrix in matrices)
    return Floor(operations, 12 * sum(d * k for d, k in matrices))


# Penalties on responses Y [B, K].

RESPONSES = {
    "dense, 256 of 512": {"samples": 256, "filters": 512},
    "conv, 8 of 28x28 of 128": {"samples": 6272, "filters": 128},
    "more filters than samples": {"samples": 256, "filters": 4096},
}


def responses(*, samples: int, filters: int) -> np.ndarray:
    return normal(0, samples, filters)


def naive_correlation(y: jax.Array) -> jax.Array:
    s = jnp.tanh(10 * y)
    u = s / jnp.linalg.norm(s, axis=0, keepdims=True)
    return u.T @ u


def naive_self_orthogonality(y: jax.Array) -> jax.Array:
    pairs = naive_correlation(y) * (1 - jnp.eye(y.shape[1]))
    return 100 * jnp.sum(pairs) ** 2 + jnp.sum(pairs**2)


def correlation(function: Callable[[jax.Array], jax.Array], **size: int) -> Program:
    return function, (responses(**size),)


def response_gradient(function: Callable[[jax.Array], jax.Array], **size: int) -> Program:
    return jax.value_and_grad(function), (responses(**size),)


def torch_correlation(**size: int) -> Program:
    return rival().forward(rival().correlation, [responses(**size)])


def torch_response_gradient(**size: int) -> Program:
    return rival().backward(rival().self_orthogonality, [responses(**size)])


def correlation_floor(*, samples: int, filters: int) -> Floor:
    return Floor(samples * filters**2, 4 * (samples * filters + filters**2))


def response_gradient_floor(*, samples: int, filters: int) -> Floor:
    return Floor(3 * gram_operations(samples, filters), 8 * samples * filters)


# The responses themselves, and the angles.

IMAGES = {
    "14x14, 64 to 64": {"batch": 8, "side": 14, "channels": 64},
    "28x28, 128 to 128": {"batch": 32, "side": 28, "channels": 128},
}


def layer(*, batch: int, side: int, channels: int) -> list[np.ndarray]:
    return [normal(0, batch, side, side, channels), normal(1, 3, 3, channels, channels)]


def our_layer(**size: int) -> Program:
    return orthogonal.filter_responses, tuple(layer(**size))


def patches_layer(**size: int) -> Program:
    """The article's X·W literally: a row for every position."""

    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        rows = jax.lax.conv_general_dilated_patches(
            x, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        matrix = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])
        return rows @ matrix

    return function, tuple(layer(**size))


def torch_layer(**size: int) -> Program:
    return rival().forward(rival().convolution, layer(**size))


def layer_floor(*, batch: int, side: int, channels: int) -> Floor:
    inside = (3 * side - 2) ** 2  # products that do not meet the padding
    positions = batch * side**2
    moved = 2 * positions * channels + 9 * channels**2
    return Floor(2 * batch * inside * channels**2, 4 * moved)


def naive_angles(w: jax.Array) -> jax.Array:
    u = w / jnp.linalg.norm(w, axis=0, keepdims=True)
    first, second = np.triu_indices(w.shape[1], 1)
    return jnp.degrees(jnp.arccos(jnp.clip(u.T @ u, -1, 1)))[first, second]


def angle_program(function: Callable[[jax.Array], jax.Array], **size: int) -> Program:
    return function, (kernel(**size),)


def torch_angles(**size: int) -> Program:
    return rival().forward(rival().angles, [kernel(**size)])


def angle_floor(*, entries: int, filters: int) -> Floor:
    pairs = filters * (filters - 1) // 2
    return Floor(2 * entries * pairs, 4 * (entries * filters + pairs))


def density(function: Callable[..., jax.Array], *, points: int) -> Program:
    degrees = np.random.default_rng(0).uniform(60, 120, points).astype(np.float32)
    return partial(function, dimension=27), (degrees,)


def naive_density(degrees: jax.Array, *, dimension: int) -> jax.Array:
    gamma = jax.scipy.special.gammaln
    scale = gamma(dimension / 2) - gamma((dimension - 1) / 2) - jnp.log(jnp.pi) / 2
    sine = jnp.sin(jnp.radians(degrees))
    return jnp.exp(scale + (dimension - 2) * jnp.log(sine)) * jnp.pi / 180


CASES = [
    penalty_case("soft", naive_soft, both_products),
    penalty_case("off_diagonal", naive_off_diagonal, both_products),
    penalty_case("mutual_coherence", naive_mutual_coherence, gram_alone),
    penalty_case("spectral", naive_spectral, vector_products),
    Case(
        name="orthogonal.add_orthogonality_penalty",
        sizes=BLOCKS,
        small=("width 64",),
        build=our_update,
        rivals={"naive JAX": naive_update},
        equal=("naive JAX",),
        count=lambda width: 26 * width**2,
        unit="weights",
        floor=update_floor,
    ),
    Case(
        name="orthogonal.self_orthogonality gradient",
        sizes=RESPONSES,
        small=("dense, 256 of 512",),
        build=partial(response_gradient, orthogonal.self_orthogonality),
        rivals={
            "naive JAX": partial(response_gradient, naive_self_orthogonality),
            "PyTorch": torch_response_gradient,
        },
        equal=("naive JAX", "PyTorch"),
        count=lambda samples, filters: samples * filters,
        unit="responses",
        floor=response_gradient_floor,
    ),
    Case(
        name="orthogonal.sign_correlation",
        sizes=RESPONSES,
        small=("dense, 256 of 512",),
        build=partial(correlation, orthogonal.sign_correlation),
        rivals={"naive JAX": partial(correlation, naive_correlation), "PyTorch": torch_correlation},
        equal=("naive JAX", "PyTorch"),
        count=lambda samples, filters: samples * filters,
        unit="responses",
        floor=correlation_floor,
    ),
    Case(
        name="orthogonal.filter_responses",
        sizes=IMAGES,
        small=("14x14, 64 to 64",),
        build=our_layer,
        rivals={"patches": patches_layer, "PyTorch": torch_layer},
        equal=("patches", "PyTorch"),
        count=lambda batch, side, channels: batch * side**2 * channels,
        unit="responses",
        floor=layer_floor,
    ),
    Case(
        name="orthogonal.filter_angles",
        sizes=KERNELS,
        small=("conv 3x3, 128 to 128",),
        build=partial(angle_program, orthogonal.filter_angles),
        rivals={"naive JAX": partial(angle_program, naive_angles), "PyTorch": torch_angles},
        equal=("naive JAX", "PyTorch"),
        count=lambda entries, filters: filters * (filters - 1) // 2,
        unit="pairs",
        floor=angle_floor,
    ),
    Case(
        name="orthogonal.random_angle_density",
        sizes={"a histogram": {"points": 1000}, "many": {"points": 1_000_000}},
        small=("a histogram",),
        build=partial(density, orthogonal.random_angle_density),
        rivals={"naive JAX": partial(density, naive_density)},
        equal=("naive JAX",),
        count=lambda points: points,
        unit="angles",
        # A sine, its 25th power by six products, a factor.
        floor=lambda points: Floor(8 * points, 8 * points),
    ),
]
