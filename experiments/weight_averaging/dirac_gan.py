"""The smallest adversarial game: it circles its equilibrium, and its average lies there.

The real data are the point 0, the generator makes the point θ, the discriminator is D(x) = φ · x.
The flow of the non-saturating loss is

    dφ/dt = -σ(φ · θ) · θ,    dθ/dt = (1 - σ(φ · θ)) · φ,

near (0, 0) a circle of period 4π. An exponential average with memory τ shrinks a circle of angular
frequency 1/2 by 1 / √(1 + (τ/2)²).

Source: article https://kexue.fm/archives/6583.
"""

import numpy as np

PERIOD = 4 * np.pi


def velocity(point: np.ndarray) -> np.ndarray:
    """(dφ/dt, dθ/dt) at (φ, θ); any trailing axes."""
    generated, discriminator = point[1], point[0]
    fooled = 1 / (1 + np.exp(-discriminator * generated))
    return np.stack([-fooled * generated, (1 - fooled) * discriminator])


def orbit(start: tuple[float, float], *, time: float, step: float) -> np.ndarray:
    """Follows the flow by the classical Runge-Kutta method.

    Args:
        start: (φ, θ).
        time: to follow it for.
        step: length of a step.

    Returns:
        ``[time / step + 1, 2]`` the points, the start first.
    """
    points = [np.asarray(start, np.float64)]
    for _ in range(round(time / step)):
        x = points[-1]
        a = velocity(x)
        b = velocity(x + step / 2 * a)
        c = velocity(x + step / 2 * b)
        d = velocity(x + step * c)
        points.append(x + step / 6 * (a + 2 * b + 2 * c + d))
    return np.stack(points)


def expected_shrinkage(memory: float) -> float:
    """Radius of the averaged circle over that of the circle."""
    return float(1 / np.sqrt(1 + (memory / 2) ** 2))
