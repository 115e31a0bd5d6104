"""Cases of `zoo.conditional`: conditional LayerNorm alone, and with its gradients.

B samples of T positions of D units, E features of the condition. A gradient case computes the
output and the gradients of all inputs, for a given gradient of the output.
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
from zoo.conditional import conditional_layer_norm
from zoo.conditional.layer_norm import conditional_rms_norm
from zoo.extras import require

SIZES = {
    "B=64 T=512 D=768 E=128": {"batch": 64, "time": 512, "units": 768, "features": 128},
    "B=8 T=64 D=256 E=32": {"batch": 8, "time": 64, "units": 256, "features": 32},
}


def inputs(*, batch: int, time: int, units: int, features: int) -> list[np.ndarray]:
    """x, condition, scale, bias and the two kernels, as after some training."""
    generator = np.random.default_rng(0)
    x, condition = (generator.normal(size=s) for s in ((batch, time, units), (batch, features)))
    vectors = 1 + 0.1 * generator.normal(size=(2, units))
    kernels = 0.1 * generator.normal(size=(2, features, units))
    return [array.astype(np.float32) for array in (x, condition, *vectors, *kernels)]


def cotangent(x: np.ndarray) -> np.ndarray:
    """The gradient of the output."""
    return np.random.default_rng(1).normal(size=x.shape).astype(np.float32)


def in_jax(function: Callable[..., jax.Array], gradient: bool, **size: int) -> Program:
    """The function, or its output and gradients."""
    arguments = inputs(**size)
    if not gradient:
        return function, tuple(arguments)

    def program(dy: jax.Array, *arguments: jax.Array) -> Any:
        y, pull_back = jax.vjp(function, *arguments)
        return y, pull_back(dy)

    return program, (cotangent(arguments[0]), *arguments)


def in_torch(name: str, gradient: bool, **size: int) -> Program:
    """The same of a function of ``torch_conditional``."""
    require("torch", "bench")
    from benchmarks.cases import torch_conditional

    function, arguments = getattr(torch_conditional, name), inputs(**size)
    if gradient:
        return torch_conditional.gradient(function, cotangent(arguments[0]), arguments)
    return torch_conditional.forward(function, arguments)


def naive(
    x: jax.Array, condition: jax.Array, scale: jax.Array, bias: jax.Array, *kernels: jax.Array
) -> jax.Array:
    """The formula, differentiated by JAX."""
    gain = (scale[None] + condition @ kernels[0])[:, None]
    shift = (bias[None] + condition @ kernels[1])[:, None]
    variance = x.var(axis=-1, keepdims=True)
    return gain * ((x - x.mean(axis=-1, keepdims=True)) * lax.rsqrt(variance + 1e-12)) + shift


def rms(x: jax.Array, condition: jax.Array, scale: jax.Array, _: Any, *kernels: Any) -> jax.Array:
    return conditional_rms_norm(x, condition, scale, kernels[0])


def naive_rms(x: jax.Array, condition: jax.Array, scale: jax.Array, _: Any, *kernels: Any) -> Any:
    gain = (scale[None] + condition @ kernels[0])[:, None]
    return gain * (x * lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6))


def stock(x: jax.Array, condition: jax.Array, scale: jax.Array, bias: jax.Array, *_: Any) -> Any:
    """LayerNorm of Flax, which takes no condition."""
    norm: Any = nnx.LayerNorm(scale.size, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = scale, bias
    return norm(x)


def floor(*, batch: int, time: int, units: int, features: int) -> Floor:
    """Reads x and dy and writes y and dx once: what lies between the sums of a row fits a cache."""
    once = 2 * batch * time * units + batch * features + 2 * (features + 1) * units
    products = 3 * 4 * batch * features * units
    return Floor(22 * batch * time * units + products, 4 * 2 * once)


def case(name: str, ours: Callable, rivals: dict[str, Any], gradient: bool = True) -> Case:
    """A row; a rival is a function of JAX or the name of one in ``torch_conditional``."""

    def program(function: Any) -> Callable[..., Program]:
        build = in_torch if isinstance(function, str) else in_jax
        return functools.partial(build, function, gradient)

    return Case(
        name=f"conditional.{name}" + gradient * " gradient",
        sizes=SIZES,
        small=("B=8 T=64 D=256 E=32",),
        build=program(ours),
        rivals={rival: program(function) for rival, function in rivals.items()},
        equal=tuple(rival for rival in ("naive JAX", "PyTorch") if rival in rivals),
        count=lambda batch, time, units, features: batch * time * units,
        unit="units",
        floor=floor if gradient else None,
    )


RIVALS = {
    "naive JAX": naive,
    "PyTorch": "conditional_layer_norm",
    "nnx.LayerNorm": stock,
    "PyTorch layer_norm": "layer_norm",
}
CASES = [
    case("conditional_layer_norm", conditional_layer_norm, RIVALS, gradient=False),
    case("conditional_layer_norm", conditional_layer_norm, RIVALS),
    case("conditional_rms_norm", rms, {"naive JAX": naive_rms}),
]
