"""Cases of `zoo.conditional`: conditional LayerNorm alone, and with its gradients.

B samples of T positions of D units, E features of the condition. A gradient case computes the
output and the gradients of all inputs, for a given gradient of the output.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from zoo.conditional import conditional_layer_norm
from zoo.conditional.layer_norm import conditional_rms_norm

from ..case import Floor, forward_and_gradient, make_case


def inputs(*, batch: int, time: int, units: int, features: int) -> list[np.ndarray]:
    """x, condition, scale, bias and the two kernels, as after some training."""
    generator = np.random.default_rng(0)
    x, condition = (generator.normal(size=s) for s in ((batch, time, units), (batch, features)))
    vectors = 1 + 0.1 * generator.normal(size=(2, units))
    kernels = 0.1 * generator.normal(size=(2, features, units))
    return [array.astype(np.float32) for array in (x, condition, *vectors, *kernels)]


def naive(x: jax.Array, condition: jax.Array, scale: jax.Array, bias: Any, *kernels: Any) -> Any:
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


SHARED: dict[str, Any] = {
    "inputs": inputs,
    "argnums": tuple(range(6)),
    "keeps_output": True,
    "sizes": {
        "B=64 T=512 D=768 E=128": {"batch": 64, "time": 512, "units": 768, "features": 128},
        "B=8 T=64 D=256 E=32": {"batch": 8, "time": 64, "units": 256, "features": 32},
    },
    "small": ("B=8 T=64 D=256 E=32",),
    "count": lambda batch, time, units, features: batch * time * units,
    "unit": "units",
}
RIVALS = {
    "naive JAX": naive,
    "PyTorch": "conditional_layer_norm",
    "nnx.LayerNorm": stock,
    "PyTorch layer_norm": "layer_norm",
}
CASES = [
    *forward_and_gradient(
        "conditional.conditional_layer_norm",
        conditional_layer_norm,
        RIVALS,
        equal=("naive JAX", "PyTorch"),
        floor=floor,
        **SHARED,
    ),
    make_case(
        "conditional.conditional_rms_norm",
        rms,
        {"naive JAX": naive_rms},
        gradient=True,
        **SHARED,
    ),
]
