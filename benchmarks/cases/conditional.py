"""Cases of `zoo.conditional`: conditional LayerNorm alone, and with its gradients.

B samples of T positions of D units, E features of the condition. A gradient case is the output and
the gradients of everything that goes in, for a given gradient of the output.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.case import Case, Floor, Program
from zoo.conditional import conditional_layer_norm, conditional_rms_norm
from zoo.extras import require

partial = functools.partial
SIZES = {
    "B=64 T=512 D=768 E=128": {"batch": 64, "time": 512, "units": 768, "features": 128},
    "B=8 T=64 D=256 E=32": {"batch": 8, "time": 64, "units": 256, "features": 32},
}
SMALL = ("B=8 T=64 D=256 E=32",)


def rival() -> Any:
    """The PyTorch programs, or an ImportError that says what to install."""
    require("torch", "bench")
    from benchmarks.cases import torch_conditional

    return torch_conditional


def inputs(*, batch: int, time: int, units: int, features: int) -> list[np.ndarray]:
    """x, condition, scale, bias and the two kernels, as after some training."""
    shapes = {(batch, time, units): 1.0, (batch, features): 1.0}
    generator = np.random.default_rng(0)
    x, condition = (generator.normal(size=shape) for shape in shapes)
    vectors = 1 + 0.1 * generator.normal(size=(2, units))
    kernels = 0.1 * generator.normal(size=(2, features, units))
    return [array.astype(np.float32) for array in (x, condition, *vectors, *kernels)]


def cotangent(**size: int) -> np.ndarray:
    """The gradient of the output."""
    return np.random.default_rng(1).normal(size=inputs(**size)[0].shape).astype(np.float32)


def forward(function: Callable[..., jax.Array], **size: int) -> Program:
    return function, tuple(inputs(**size))


def gradient(function: Callable[..., jax.Array], **size: int) -> Program:
    def program(dy: jax.Array, *arguments: jax.Array) -> Any:
        y, pull_back = jax.vjp(function, *arguments)
        return y, pull_back(dy)

    return program, (cotangent(**size), *inputs(**size))


def naive(
    x: jax.Array,
    condition: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    scale_kernel: jax.Array,
    bias_kernel: jax.Array,
) -> jax.Array:
    """The formula, differentiated by JAX."""
    gain = (scale[None] + condition @ scale_kernel)[:, None]
    shift = (bias[None] + condition @ bias_kernel)[:, None]
    variance = x.var(axis=-1, keepdims=True)
    normal = (x - x.mean(axis=-1, keepdims=True)) * lax.rsqrt(variance + 1e-12)
    return gain * normal + shift


def naive_rms(
    x: jax.Array, condition: jax.Array, scale: jax.Array, scale_kernel: jax.Array
) -> jax.Array:
    gain = (scale[None] + condition @ scale_kernel)[:, None]
    return gain * (x * lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6))


def of_scale(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Takes the arguments of a LayerNorm, to which those of a RMSNorm belong."""
    return lambda x, condition, scale, _, kernel, __: function(x, condition, scale, kernel)


def stock(x: jax.Array, condition: jax.Array, scale: jax.Array, bias: jax.Array, *_: Any) -> Any:
    """LayerNorm as Flax has it, which knows of no condition."""
    norm = nnx.eval_shape(lambda: nnx.LayerNorm(scale.size, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(norm)
    state["scale"], state["bias"] = (
        state[name].replace(value) for name, value in (("scale", scale), ("bias", bias))
    )
    return nnx.merge(graph, state)(x)


def torch_forward(name: str, **size: int) -> Program:
    return rival().forward(getattr(rival(), name), inputs(**size))


def torch_gradient(name: str, **size: int) -> Program:
    return rival().gradient(getattr(rival(), name), cotangent(**size), inputs(**size))


def forward_floor(*, batch: int, time: int, units: int, features: int) -> Floor:
    """One x in, one y out; sums, squares, a product and a sum with gain and shift."""
    moved = 2 * batch * time * units + batch * features + 2 * (features + 1) * units
    return Floor(8 * batch * time * units + 4 * batch * features * units, 4 * moved)


def gradient_floor(*, batch: int, time: int, units: int, features: int) -> Floor:
    """In go x and dy, out come y and dx: what stays of a row between its sums fits into a cache."""
    once = 2 * batch * time * units + batch * features + 2 * (features + 1) * units
    products = 3 * 4 * batch * features * units
    return Floor(22 * batch * time * units + products, 4 * 2 * once)


def case(name: str, build: Callable, in_torch: Callable, floor: Callable[..., Floor]) -> Case:
    return Case(
        name=name,
        sizes=SIZES,
        small=SMALL,
        build=partial(build, conditional_layer_norm),
        rivals={
            "naive JAX": partial(build, naive),
            "PyTorch": partial(in_torch, "conditional_layer_norm"),
            "nnx.LayerNorm": partial(build, stock),
            "PyTorch layer_norm": partial(in_torch, "layer_norm"),
        },
        equal=("naive JAX", "PyTorch"),
        count=lambda batch, time, units, features: batch * time * units,
        unit="units",
        floor=floor,
    )


CASES = [
    case("conditional.conditional_layer_norm", forward, torch_forward, forward_floor),
    case("conditional.conditional_layer_norm gradient", gradient, torch_gradient, gradient_floor),
    Case(
        name="conditional.conditional_rms_norm gradient",
        sizes=SIZES,
        small=SMALL,
        build=partial(gradient, of_scale(conditional_rms_norm)),
        rivals={"naive JAX": partial(gradient, of_scale(naive_rms))},
        equal=("naive JAX",),
        count=lambda batch, time, units, features: batch * time * units,
        unit="units",
        floor=gradient_floor,
    ),
]
