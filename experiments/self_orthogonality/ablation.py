"""Which term of self-orthogonality does what: the loss alone, minimised on Gaussian inputs.

Every setting starts from random filters, or from ones that share a direction, and gets a fresh
batch at every step. Angles are those of the filters themselves.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.orthogonal import filter_angles, self_orthogonality

from .config import AblationConfig


class Setting(NamedTuple):
    """One row of the table."""

    name: str
    batch_size: int = 1024
    inputs: str = "normal"  # or "positive": |N(0, 1)|
    center: bool = False
    shared: float = 0.0  # length of the direction that all filters share
    weights: tuple[float, float] = (100.0, 1.0)


# The angles in degrees after 1,500 steps that the notes on the method report: mean, std, largest
# deviation from 90.
SETTINGS: dict[Setting, tuple[float, float, float]] = {
    Setting("random filters"): (89.82, 0.82, 2.8),
    Setting("batch of 128", batch_size=128): (89.89, 2.13, 7.0),
    Setting("batch of 16, fewer than filters", batch_size=16): (90.12, 4.94, 15.9),
    Setting("absolute inputs", inputs="positive"): (90.65, 2.14, 16.2),
    Setting("absolute inputs, centred", inputs="positive", center=True): (90.24, 0.74, 2.5),
    Setting("correlated filters", shared=0.97): (90.01, 4.74, 14.7),
    Setting("correlated, λ₂ = 0", shared=0.97, weights=(100.0, 0.0)): (90.02, 6.89, 22.3),
    Setting("correlated, λ₁ = 0", shared=0.97, weights=(0.0, 1.0)): (90.01, 0.44, 1.5),
}


def run(config: AblationConfig) -> list[dict[str, Any]]:
    """Minimises the loss in every setting; statistics of the angles before and after for each."""
    key, shared_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    filters = jax.random.normal(key, (config.entries, config.filters))
    direction = jax.random.normal(shared_key, (config.entries, 1))
    rows = []
    for setting, source in SETTINGS.items():
        # Of length around 1, for which a sharpness of 10 tells signs.
        start = (filters + setting.shared * direction) / config.entries**0.5
        # Settings that differ in the start and the weights alone share one compiled program.
        program = setting._replace(name="", shared=0.0, weights=())
        end = _minimise(config, program, step_key, start, jnp.asarray(setting.weights))
        rows.append(
            {
                "setting": setting.name,
                "before": statistics(filter_angles(start)),
                "after": statistics(filter_angles(end)),
                "source": source,
            }
        )
    return rows


def statistics(degrees: jax.Array) -> tuple[float, float, float]:
    """Mean, standard deviation and largest deviation from 90 of some angles."""
    values = np.asarray(degrees, np.float64)
    return float(values.mean()), float(values.std()), float(np.abs(values - 90).max())


def as_text(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table with its three numbers in one column."""
    columns = {k: " / ".join(f"{x:.2f}" for x in row[k]) for k in ("before", "after", "source")}
    return {"setting": row["setting"], **columns}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _minimise(
    config: AblationConfig,
    setting: Setting,
    key: jax.Array,
    filters: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    optimizer = optax.adam(config.learning_rate)

    def loss(filters: jax.Array, key: jax.Array) -> jax.Array:
        x = jax.random.normal(key, (setting.batch_size, len(filters)))
        return self_orthogonality(
            (jnp.abs(x) if setting.inputs == "positive" else x) @ filters,
            mean_weight=weights[0],
            square_weight=weights[1],
            reduction="mean",
            center=setting.center,
        )

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        filters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(filters, key), state)
        return (optax.apply_updates(filters, updates), state), None

    keys = jax.random.split(key, config.num_steps)
    return jax.lax.scan(step, (filters, optimizer.init(filters)), keys)[0][0]
