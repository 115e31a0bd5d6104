"""The smallest adversarial game: it circles its equilibrium, and its average lies there.

The real data are the point 0, the generator makes the point θ, the discriminator is D(x) = φ · x.
The flow of the non-saturating loss is

    dφ/dt = -σ(φ · θ) · θ,    dθ/dt = (1 - σ(φ · θ)) · φ,

near (0, 0) a circle of period 4π. (To the next order it is a spiral: the squared radius changes at
the rate -(φ · θ)².) An exponential average with memory τ shrinks a circle of angular
frequency 1/2 by 1 / √(1 + (τ/2)²).

Source: article https://kexue.fm/archives/6583.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate

from zoo.averaging import average_init, average_update

PERIOD = 4 * math.pi


def velocity(point: np.ndarray) -> np.ndarray:
    """(dφ/dt, dθ/dt) at (φ, θ); any trailing axes."""
    generated, discriminator = point[1], point[0]
    fooled = 1 / (1 + np.exp(-discriminator * generated))
    return np.stack([-fooled * generated, (1 - fooled) * discriminator])


def orbit(start: tuple[float, float], *, time: float, step: float) -> np.ndarray:
    """The flow from (φ, θ), every ``step`` until ``time``: ``[time / step + 1, 2]``."""
    times = step * np.arange(round(time / step) + 1)
    exactness = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
    flow = integrate.solve_ivp(
        lambda _, point: velocity(point), (0, times[-1]), start, t_eval=times, **exactness
    )
    return flow.y.T


def averages(points: np.ndarray, *, memory: float, step: float) -> np.ndarray:
    """The debiased exponential average after each point, by ``zoo.averaging``."""

    def update(state: Any, point: jax.Array) -> tuple[Any, jax.Array]:
        state = average_update(state, point, decay=math.exp(-step / memory))
        return state, state.average

    points = jnp.asarray(points, jnp.float32)
    return np.asarray(jax.lax.scan(update, average_init(points[0]), points)[1])


def expected_shrinkage(memory: float) -> float:
    """Radius of the averaged circle over that of the circle."""
    return 1 / math.sqrt(1 + (memory / 2) ** 2)


def measure(scale: float = 0.01) -> dict[str, float]:
    """What the article says about a small orbit, measured on one that starts at scale · (1, 2)."""
    step, memory = PERIOD / 256, 3 * PERIOD
    points = orbit((scale, 2 * scale), time=20 * PERIOD, step=step)
    radius = np.linalg.norm(points, axis=1)
    mean = np.linalg.norm(points[: 4 * 256].mean(axis=0))
    averaged = np.linalg.norm(averages(points, memory=memory, step=step)[-1])
    return {
        "time average over radius": float(mean / radius[0]),
        "shrinkage, memory of 3 periods": float(averaged / radius[-1]),
        "shrinkage expected": expected_shrinkage(memory),
    }
