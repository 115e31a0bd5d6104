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

from zoo.smooth import soft_rank, soft_sort, soft_top_k

from .cases.smooth import (
    ALONG,
    OPERATORS,
    our_operator,
    softjax,
    softjax_rank,
    softjax_top_k,
)

Function = Callable[[jax.Array, float], jax.Array]
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
INPUTS = {"near": (1.0, 0.1), "far": (3000.0, 1.0)}  # factor, temperature
ITEMS, K = 1000, 10


def rank(x: jax.Array, t: float) -> jax.Array:
    return soft_rank(x, temperature=t)


def operators() -> dict[str, tuple[Function, Function]]:
    """Name -> (ours, softjax's), each of x and the temperature."""
    partial = functools.partial
    table: dict[str, tuple[Function, Function]] = {
        name: (partial(our_operator, name), partial(operator.softjax, softjax()))
        for name, operator in OPERATORS.items()
        if operator.softjax is not None
    }
    table["sort, softsort"] = (
        lambda x, t: soft_sort(x, temperature=t),
        lambda x, t: softjax().sort(x, softness=t, method="softsort", **ALONG),
    )
    for method in ("fast_soft_sort", "softsort"):
        table[f"rank, {method}"] = rank, partial(softjax_rank, method)
    for method in ("clipped", "threshold", "sigmoid", "gradient"):
        table[f"top {K}, {method}, softsort"] = (
            lambda x, t, method=method: soft_top_k(x, K, temperature=t, method=method),
            lambda x, t: softjax_top_k("softsort", x, k=K, t=t),
        )
    return table


def errors(function: Function, x: np.ndarray, temperature: float, dtype: Any) -> list[float]:
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


def main() -> None:
    x = np.random.default_rng(0).normal(size=ITEMS)
    names = [f"{jnp.dtype(dtype).name}: zoo | softjax" for dtype in DTYPES]
    for distance, (factor, temperature) in INPUTS.items():
        largest = np.abs(x).max() * factor
        print(f"\n{distance}: |x| up to {largest:.3g}, temperature {temperature}\n")
        print(f"| operator | {' | '.join(names)} |")
        print("| --- |" + " ---: |" * 2 * len(names))
        for name, pair in operators().items():
            cells = []
            for dtype in DTYPES:
                for function in pair:
                    try:
                        both = errors(function, factor * x, temperature, dtype)
                        cells.append(" / ".join("0" if e < 1e-12 else f"{e:.0e}" for e in both))
                    except Exception as error:  # a library that refuses the type: say so
                        cells.append(type(error).__name__)
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
