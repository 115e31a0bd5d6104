"""Points in the plane: the learned density beside the exact one.

On a grid the integral of exp(-E/T) is a sum, so that the density an energy stands for is known, and
how far it is from the truth,

    KL = Σ p·log(p/q),   q(x) = exp(-E(x)/T)/Z

can be read off. Contrastive divergence is run with short chains from noise, long chains from noise
and persistent chains, on rings and on a mixture of Gaussians. Short chains learn a landscape that
leads from the noise to the data in so many steps; its density is another.

The temperature: chains with noise √(2hT) sample exp(-E/T), so that it is E/T that is learned. The
energy of such a run, read as exp(-E), is too flat by the factor T.

Source of the two sets, after: Nijkamp, Hill, Han, Zhu, Wu, «On the Anatomy of MCMC-Based Maximum
Likelihood Learning of Energy-Based Models», 2019, arXiv 1903.12370.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.command_line import MAY_CHANGE
from experiments.energy_model import figures
from experiments.energy_model.config import PlaneConfig
from zoo.energy import contrastive_loss, langevin, run_chain
from zoo.training import functional, open_workdir, results_table, write_summary

HALF = 2.0  # the plane is -HALF … HALF in both coordinates
READ = np.geomspace(0.1, 2.5, 40)  # temperatures at which an energy is read
SPREAD = 0.12  # standard deviation of a ring or a Gaussian
L2 = 1e-3


def mixture(x: np.ndarray) -> np.ndarray:
    """Eight Gaussians on a circle: the density but for a constant, ``[..., 2] -> [...]``."""
    angles = 2 * np.pi * np.arange(8) / 8
    centers = 1.3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    squares = ((x[..., None, :] - centers) ** 2).sum(axis=-1)
    return np.exp(-squares / (2 * SPREAD**2)).sum(axis=-1)


def rings(x: np.ndarray) -> np.ndarray:
    """Two rings of equal mass: the density but for a constant, ``[..., 2] -> [...]``."""
    radius = np.sqrt((x**2).sum(axis=-1))[..., None]
    radii = np.array([0.6, 1.5])
    return (np.exp(-((radius - radii) ** 2) / (2 * SPREAD**2)) / radii).sum(axis=-1)


TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"rings": rings, "mixture": mixture}


def grid(cells: int) -> np.ndarray:
    """The middles of the cells, ``[cells, cells, 2]``, the second coordinate along the rows."""
    middles = HALF * (2 * (np.arange(cells) + 0.5) / cells - 1)
    return np.stack(np.meshgrid(middles, middles), axis=-1)


def probabilities(log_density: np.ndarray) -> np.ndarray:
    """Of the cells; they sum to 1."""
    weights = np.exp(log_density - log_density.max())
    return weights / weights.sum()


def divergence(exact: np.ndarray, energy: np.ndarray, temperature: float = 1.0) -> float:
    """KL of exp(-energy/temperature) from the exact cells, in nats."""
    scaled = -np.asarray(energy, np.float64) / temperature
    log_normalizer = scaled.max() + np.log(np.exp(scaled - scaled.max()).sum())
    inside = exact > 0
    return float((exact[inside] * (np.log(exact[inside]) - scaled[inside] + log_normalizer)).sum())


class PointEnergy(nnx.Module):
    """Two hidden layers; the energy starts flat."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        """Draws the parameters."""
        self.first = nnx.Linear(2, features, rngs=rngs)
        self.second = nnx.Linear(features, features, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.output = nnx.Linear(features, 1, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, 2]`` to ``[B]``."""
        hidden = jax.nn.silu(self.second(jax.nn.silu(self.first(4 * x))))
        return self.output(hidden)[:, 0]


def make_learner(
    config: PlaneConfig, *, num_steps: int, persistent: bool
) -> Callable[..., jax.Array]:
    """``(exact, temperature) -> energy``, both on the grid ``[cells, cells]``.

    Args:
        config: of the run.
        num_steps: of each chain.
        persistent: go on with the chains of the last batch, instead of with noise.

    Returns:
        A jitted function of the exact probabilities and of the temperature of the chains.
    """
    points = jnp.asarray(grid(config.cells).reshape(-1, 2), jnp.float32)
    width = 2 * HALF / config.cells
    box = (config.batch_size, 2)
    init, rebuild = functional(lambda rngs: PointEnergy(config.features, rngs=rngs))
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps, alpha=0.02)
    optimizer = optax.adam(rate, b1=0.0)

    def noise(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, box, minval=-HALF, maxval=HALF)

    @jax.jit
    def learn(exact: jax.Array, temperature: jax.Array) -> jax.Array:
        # Inverting the distribution function draws a cell; the place within it is uniform.
        cumulative = jnp.cumsum(exact.ravel())

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            parameters, state, chains = carry
            cell_key, place_key, start_key, chain_key = jax.random.split(key, 4)
            cells = jnp.searchsorted(cumulative, jax.random.uniform(cell_key, box[:1]))
            data = points[jnp.minimum(cells, len(points) - 1)]
            data = data + width * (jax.random.uniform(place_key, box) - 0.5)
            sampler = langevin(
                rebuild(parameters),
                step_size=config.step_size / temperature,  # the noise is the same for all
                temperature=temperature,
                bounds=(-HALF, HALF),
                boundary="reflect",
            )
            start = sampler.init(chains if persistent else noise(start_key))
            chains = run_chain(chain_key, sampler, start, num_steps)[0].position

            def loss(parameters: Any) -> jax.Array:
                energy = rebuild(parameters)(jnp.concatenate([data, chains]))
                return contrastive_loss(*jnp.split(energy, 2), l2=L2)

            updates, state = optimizer.update(jax.grad(loss)(parameters), state)
            return (optax.apply_updates(parameters, updates), state, chains), None

        first_key, start_key, key = jax.random.split(jax.random.key(config.seed), 3)
        parameters = init(first_key)
        carry = parameters, optimizer.init(parameters), noise(start_key)
        carry, _ = jax.lax.scan(step, carry, jax.random.split(key, config.steps))
        return rebuild(carry[0])(points).reshape(exact.shape)

    return learn


def run(config: PlaneConfig) -> None:
    """Every kind of chain on both sets; the table, two pictures, the summary."""
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    exact = {
        name: density(grid(config.cells)) / density(grid(config.cells)).sum()
        for name, density in TARGETS.items()
    }
    kinds: dict[str, dict[str, Any]] = {
        f"from noise, {config.short} steps": {"num_steps": config.short, "persistent": False},
        f"from noise, {config.long} steps": {"num_steps": config.long, "persistent": False},
        f"persistent, {config.short} steps": {"num_steps": config.short, "persistent": True},
    }
    learners = {kind: make_learner(config, **options) for kind, options in kinds.items()}
    *_, persistent = learners
    learned: dict[str, dict[str, np.ndarray]] = {}
    by_temperature: dict[str, dict[float, np.ndarray]] = {}
    for name, cells in exact.items():
        learned[name] = {
            kind: np.asarray(learn(cells.astype(np.float32), 1.0))
            for kind, learn in learners.items()
        }
        by_temperature[name] = {
            temperature: np.asarray(learners[persistent](cells.astype(np.float32), temperature))
            for temperature in config.temperatures
        }
        print(f"{name}: learned", flush=True)
    uniform = np.zeros((config.cells, config.cells))
    table = {
        name: {kind: divergence(exact[name], energy) for kind, energy in energies.items()}
        | {"uniform density": divergence(exact[name], uniform)}
        for name, energies in learned.items()
    }
    results_table(
        [
            {"chains": kind} | {name: row[kind] for name, row in table.items()}
            for kind in table["rings"]
        ],
        title="KL of the learned density from the exact one, nats",
    )
    curves = {
        name: {
            temperature: np.array([divergence(exact[name], energy, read) for read in READ])
            for temperature, energy in energies.items()
        }
        for name, energies in by_temperature.items()
    }
    readings = {
        name: {
            temperature: {
                "KL as exp(-E)": divergence(exact[name], energy),
                "KL as exp(-E/T)": divergence(exact[name], energy, temperature),
                "best read at": READ[curves[name][temperature].argmin()],
            }
            for temperature, energy in energies.items()
        }
        for name, energies in by_temperature.items()
    }
    results_table(
        [
            {"set": name, "T of the chains": temperature} | row
            for name, rows in readings.items()
            for temperature, row in rows.items()
        ],
        title="What the temperature of persistent chains does",
    )
    densities = {
        name: {"exact": exact[name]}
        | {
            f"{kind}\nKL {table[name][kind]:.3f}": probabilities(-energy)
            for kind, energy in energies.items()
        }
        for name, energies in learned.items()
    }
    pictures = figures.save_plane(workdir, densities, READ, curves)
    summary = write_summary(
        workdir, {"divergence": table, "temperature": readings, "jax": jax.__version__}
    )
    print("written:", ", ".join(str(path) for path in (*pictures, summary)))
