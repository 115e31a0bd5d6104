"""Points in the plane: the learned density beside the exact one.

On a grid the integral of exp(-E/T) is a sum, so that the density of an energy is known, and with it

    KL = Σ p·log(p/q),   q(x) = exp(-E(x)/T)/Z

Contrastive divergence is run with short chains from noise, long chains from noise and persistent
chains, on rings and on a mixture of Gaussians. Short chains learn a landscape that leads from the
noise to the data in so many steps; its density is another.

The temperature: chains with noise √(2hT) sample exp(-E/T), so that it is E/T that is learned. The
energy of such a run, read as exp(-E), is too flat by the factor T.

Source of the two sets, after: Nijkamp, Hill, Han, Zhu, Wu, "On the Anatomy of MCMC-Based Maximum
Likelihood Learning of Energy-Based Models", 2019, arXiv 1903.12370.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.special import logsumexp, softmax, xlogy

from zoo.energy import contrastive_loss, langevin, run_chain
from zoo.training import functional, open_workdir, results_table

from ..command_line import MAY_CHANGE
from ..pictures import save_figures
from ..running import finish
from .config import Config
from .figures import draw_densities, draw_temperature

HALF = 2.0  # the plane is -HALF … HALF in both coordinates
READ = np.geomspace(0.1, 2.5, 40)  # temperatures at which an energy is read
SPREAD = 0.12  # standard deviation of a ring or a Gaussian
L2 = 1e-3

# (exact cells, temperature) -> energies of the cells [runs, cells, cells], one for each run
Spread = dict[str, Any]  # "mean", "deviation", "runs"
Learner = Callable[[np.ndarray, float], jax.Array]


def run(config: Config) -> None:
    """Every kind of chain on both sets; the tables, two pictures, the summary."""
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    learners = build(config)
    points = grid(config.cells)
    exact = {"rings": normalized(rings(points)), "mixture": normalized(mixture(points))}
    *_, persistent = learners.values()
    learned, by_temperature = {}, {}
    for name, cells in exact.items():
        learned[name] = {kind: np.asarray(learn(cells, 1.0)) for kind, learn in learners.items()}
        by_temperature[name] = {t: np.asarray(persistent(cells, t)) for t in config.temperatures}
        print(f"{name}: learned", flush=True)
    report(workdir, exact, learned, by_temperature)


def build(config: Config) -> dict[str, Learner]:
    """A learner for each kind of chain, persistent ones last; nothing is computed."""
    return {
        f"from noise, {config.short} steps": make_learner(config, config.short),
        f"from noise, {config.long} steps": make_learner(config, config.long),
        f"persistent, {config.short} steps": make_learner(config, config.short, persistent=True),
    }


def mixture(x: np.ndarray) -> np.ndarray:
    """Eight Gaussians on a circle: the density up to a constant, ``[..., 2] -> [...]``."""
    angles = 2 * np.pi * np.arange(8) / 8
    centers = 1.3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    squares = ((x[..., None, :] - centers) ** 2).sum(axis=-1)
    return np.exp(-squares / (2 * SPREAD**2)).sum(axis=-1)


def rings(x: np.ndarray) -> np.ndarray:
    """Two rings of equal mass: the density up to a constant, ``[..., 2] -> [...]``."""
    radius = np.sqrt((x**2).sum(axis=-1))[..., None]
    radii = np.array([0.6, 1.5])
    return (np.exp(-((radius - radii) ** 2) / (2 * SPREAD**2)) / radii).sum(axis=-1)


def grid(cells: int) -> np.ndarray:
    """The centres of the cells, ``[cells, cells, 2]``, the second coordinate along the rows."""
    centers = HALF * (2 * (np.arange(cells) + 0.5) / cells - 1)
    return np.stack(np.meshgrid(centers, centers), axis=-1)


def normalized(weights: np.ndarray) -> np.ndarray:
    """Probabilities of the cells."""
    return weights / weights.sum()


def divergence(exact: np.ndarray, energy: np.ndarray, temperature: float = 1.0) -> float:
    """KL of exp(-energy/temperature) from the exact cells, in nats."""
    scaled = -np.asarray(energy, np.float64) / temperature
    return float((xlogy(exact, exact) - exact * (scaled - logsumexp(scaled))).sum())


class PointEnergy(nnx.Module):
    """Two hidden layers; the energy starts flat."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(2, features, rngs=rngs)
        self.second = nnx.Linear(features, features, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.output = nnx.Linear(features, 1, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, 2]`` to ``[B]``."""
        hidden = jax.nn.silu(self.second(jax.nn.silu(self.first(4 * x))))
        return self.output(hidden)[:, 0]


def make_learner(config: Config, num_steps: int, *, persistent: bool = False) -> Learner:
    """Trains with chains of ``num_steps`` that start from noise, or where the last ones ended."""
    points = grid(config.cells).reshape(-1, 2).astype(np.float32)
    width = 2 * HALF / config.cells
    shape = (config.batch_size, 2)
    init, merge = functional(lambda rngs: PointEnergy(config.features, rngs=rngs))
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps, alpha=0.02)
    optimizer = optax.adam(rate, b1=0.0)

    def noise(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-HALF, maxval=HALF)

    def sample_data(cell_key: jax.Array, place_key: jax.Array, cumulative: jax.Array) -> jax.Array:
        # Inverting the distribution function draws a cell; the place within it is uniform.
        cells = jnp.searchsorted(cumulative, jax.random.uniform(cell_key, shape[:1]))
        corner = jnp.asarray(points)[jnp.minimum(cells, len(points) - 1)]
        return corner + width * (jax.random.uniform(place_key, shape) - 0.5)

    def learn(seed: jax.Array, exact: jax.Array, temperature: jax.Array) -> jax.Array:
        cumulative = jnp.cumsum(exact.astype(jnp.float32).ravel())

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            parameters, state, chains = carry
            cell_key, place_key, start_key, chain_key = jax.random.split(key, 4)
            data = sample_data(cell_key, place_key, cumulative)
            sampler = langevin(
                merge(parameters),
                step_size=config.step_size / temperature,  # the noise is the same for all
                temperature=temperature,
                bounds=(-HALF, HALF),
                boundary="reflect",
            )
            start = sampler.init(chains if persistent else noise(start_key))
            chains = run_chain(chain_key, sampler, start, num_steps)[0].position

            def loss(parameters: Any) -> jax.Array:
                energy = merge(parameters)(jnp.concatenate([data, chains]))
                return contrastive_loss(*jnp.split(energy, 2), l2=L2)

            updates, state = optimizer.update(jax.grad(loss)(parameters), state)
            return (optax.apply_updates(parameters, updates), state, chains), None

        first_key, start_key, key = jax.random.split(jax.random.key(seed), 3)
        parameters = init(first_key)
        carry = parameters, optimizer.init(parameters), noise(start_key)
        carry, _ = jax.lax.scan(step, carry, jax.random.split(key, config.steps))
        return merge(carry[0])(jnp.asarray(points)).reshape(exact.shape)

    seeds = config.seed + np.arange(config.runs, dtype=np.int32)
    return functools.partial(jax.jit(jax.vmap(learn, in_axes=(0, None, None))), seeds)


def report(
    workdir: pathlib.Path,
    exact: dict[str, np.ndarray],
    learned: dict[str, dict[str, np.ndarray]],
    by_temperature: dict[str, dict[float, np.ndarray]],
) -> None:
    """Tables, pictures and summary; the pictures show the first run."""
    divergences: dict[str, dict[str, Spread]] = {}
    densities, curves, readings = {}, {}, {}
    for name, cells in exact.items():
        found = {
            kind: spread([divergence(cells, energy) for energy in energies])
            for kind, energies in learned[name].items()
        }
        divergences[name] = found | {"uniform density": spread([divergence(cells, 0 * cells)])}
        densities[name] = {"exact": cells} | {
            f"{kind}\nKL {found[kind]['runs'][0]:.3f}": softmax(-energies[0])
            for kind, energies in learned[name].items()
        }
        # Runs by temperatures an energy is read at.
        read = {
            temperature: np.array([[divergence(cells, e, t) for t in READ] for e in energies])
            for temperature, energies in by_temperature[name].items()
        }
        curves[name] = {temperature: values[0] for temperature, values in read.items()}
        readings[name] = {
            temperature: {
                "KL as exp(-E)": spread([divergence(cells, e) for e in energies]),
                "KL as exp(-E/T)": spread([divergence(cells, e, temperature) for e in energies]),
                "best read at": spread(READ[read[temperature].argmin(axis=1)]),
            }
            for temperature, energies in by_temperature[name].items()
        }
    kinds = divergences["rings"]
    results_table(
        [{"chains": k} | {name: said(row[k]) for name, row in divergences.items()} for k in kinds],
        title="KL of the learned density from the exact one, nats: mean ± standard deviation",
    )
    results_table(
        [
            {"set": name, "T of the chains": temperature}
            | {what: said(value) for what, value in row.items()}
            for name, rows in readings.items()
            for temperature, row in rows.items()
        ],
        title="What the temperature of persistent chains does",
    )
    drawn = {"densities": draw_densities(densities), "temperature": draw_temperature(READ, curves)}
    summary = {"divergence": divergences, "temperature": readings}
    finish(workdir, summary, save_figures(workdir, drawn))


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over the runs (0 of a single one), and each of them."""
    deviation = np.std(values, ddof=1).item() if len(values) > 1 else 0.0
    return {"mean": np.mean(values).item(), "deviation": deviation, "runs": [*map(float, values)]}


def said(values: Spread) -> str:
    """``0.498 ± 0.012``; the number alone if there is one."""
    alone = len(values["runs"]) == 1
    return f"{values['mean']:.3f}" + ("" if alone else f" ± {values['deviation']:.3f}")
