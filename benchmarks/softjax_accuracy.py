"""Rounding errors of `zoo.smooth` beside softjax, on every operator that both have.

    python -m benchmarks.softjax_accuracy          # softjax needs Python 3.12

An operator is computed in float32, bfloat16 and float16 and compared with itself in float64 from
the same, already rounded numbers, so that each library is measured against its own formula:

    error = max |y - y64| / max(max |y64|, smallest normal number of the dtype)

and the same for the gradient of a weighted sum of y. Near: 1,000 normal numbers, temperature 0.1.
Far: the same numbers times 3,000, up to about 10⁴ (float16 ends at 65,504), temperature 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo import smooth
from zoo.extras import require

Function = Callable[[jax.Array, float], jax.Array]
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
INPUTS = {"near": (1.0, 0.1), "far": (3000.0, 1.0)}  # factor, temperature
ITEMS = 1000


def operators(sj: Any) -> dict[str, tuple[Function, Function]]:
    """Name -> (ours, softjax's), each of x and the temperature."""

    def our_top_k(method: Any, x: jax.Array, t: float) -> jax.Array:
        return smooth.soft_top_k(x, 10, temperature=t, method=method)

    def softjax_top_k(method: str, x: jax.Array, t: float) -> jax.Array:
        _, indices = sj.top_k(x, 10, softness=t, method=method, standardize=False)
        return jnp.sum(indices, axis=-2)

    def softjax_rank(method: str, x: jax.Array, t: float) -> jax.Array:
        return sj.rank(x, axis=-1, softness=t, method=method, standardize=False)

    along = {"axis": -1, "standardize": False}
    table: dict[str, tuple[Function, Function]] = {
        "max": (
            lambda x, t: smooth.smooth_max(x, temperature=t),
            lambda x, t: sj.max(x, softness=t, **along),
        ),
        "min": (
            lambda x, t: smooth.smooth_min(x, temperature=t),
            lambda x, t: sj.min(x, softness=t, **along),
        ),
        "one-hot of argmax": (
            lambda x, t: smooth.soft_one_hot(x, temperature=t),
            lambda x, t: sj.argmax(x, softness=t, **along),
        ),
        "abs": (
            lambda x, t: smooth.smooth_abs(x, temperature=t),
            lambda x, t: sj.abs(x, softness=t),
        ),
        "sign": (
            lambda x, t: smooth.smooth_sign(x, temperature=t),
            lambda x, t: sj.sign(x, softness=t / 2),
        ),
        "step": (
            lambda x, t: smooth.smooth_step(x, temperature=t),
            lambda x, t: sj.heaviside(x, softness=t),
        ),
        "ReLU": (
            lambda x, t: smooth.smooth_relu(x, temperature=t),
            lambda x, t: sj.relu(x, softness=t),
        ),
        "round": (
            lambda x, t: smooth.smooth_round(x, temperature=t),
            lambda x, t: sj.round(x, softness=t),
        ),
    }
    for method in ("fast_soft_sort", "softsort"):
        table[f"rank, {method}"] = (
            lambda x, t: smooth.soft_rank(x, temperature=t),
            functools.partial(softjax_rank, method),
        )
    for ours in ("clipped", "threshold", "sigmoid", "gradient"):
        table[f"top 10, {ours}, softsort"] = (
            functools.partial(
                lambda m, x, t: smooth.soft_top_k(x, 10, temperature=t, method=m), ours
            ),
            functools.partial(softjax_top_k, "softsort"),
        )
    return table


def errors(
    function: Function, x: np.ndarray, temperature: float, dtype: Any
) -> tuple[float, float]:
    """Of the value and of the gradient."""
    rounded = np.asarray(x, dtype)

    @jax.jit
    def value_and_gradient(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x: function(x, temperature), x)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return y, pull(weights.astype(y.dtype))[0]

    with jax.enable_x64(True):
        truth = value_and_gradient(jnp.asarray(rounded.astype(np.float64)))
    found = value_and_gradient(jnp.asarray(rounded))
    tiny = float(jnp.finfo(dtype).tiny)
    return [
        float(np.max(np.abs(np.asarray(a, np.float64) - b)) / max(np.max(np.abs(b)), tiny))
        for a, b in zip(found, map(np.asarray, truth), strict=True)
    ]


def shown(error: float) -> str:
    return "0" if error < 1e-12 else f"{error:.0e}"


def main() -> None:
    x = np.random.default_rng(0).normal(size=ITEMS)
    for distance, (factor, temperature) in INPUTS.items():
        names = [jnp.dtype(dtype).name for dtype in DTYPES]
        print(
            f"\n{distance}: |x| up to {np.abs(x).max() * factor:.3g}, temperature {temperature}\n"
        )
        print("| operator | " + " | ".join(f"{n}: zoo | softjax" for n in names) + " |")
        print("| --- |" + " ---: |" * 2 * len(names))
        for name, pair in operators(require("softjax", "bench")).items():
            cells = []
            for dtype in DTYPES:
                for function in pair:
                    try:
                        value, gradient = errors(function, factor * x, temperature, dtype)
                        cells.append(f"{shown(value)} / {shown(gradient)}")
                    except Exception as error:  # a library that refuses the type: say so
                        cells.append(type(error).__name__)
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
