"""What an energy of image and label, E(x, y), can be asked without further training.

the label of x            argmin_y E(x, y)
images of a and b         chains of E(·, a) + E(·, b)
images of a, not of b     chains of E(·, a) - w·E(·, b)
the hidden half of x      chains of E(·, y) with the other half held
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.energy.composition import clamped_energy, energies_by_label, product_energy
from zoo.training import results_table

from ..pictures import save_figures
from .figures import draw_rows

COLUMNS = 20
FIRST, SECOND = 3, 8  # the classes that are composed; 0 and 1 if there are fewer
NEGATION = 0.5  # w


def show(
    workdir: pathlib.Path,
    network: Callable[[jax.Array, jax.Array], jax.Array],
    generate: Callable[[jax.Array, Callable, tuple[int, ...]], jax.Array],
    test: tuple[np.ndarray, np.ndarray],
    num_classes: int,
) -> dict[str, Any]:
    """Draws uses.png; returns what was measured.

    Args:
        workdir: folder of the picture.
        network: E(x, y), ``(images, labels [B]) -> [B]``.
        generate: ``(key, energy, shape) -> samples`` of this energy.
        test: images ``[N, height, width, channels]`` and labels ``[N]``.
        num_classes: K.
    """
    by_label = jax.jit(lambda x: energies_by_label(network, x, num_classes=num_classes))
    images, labels = test
    accuracy = float((np.asarray(by_label(images)).argmin(axis=1) == labels).mean())

    first, second = (FIRST, SECOND) if max(FIRST, SECOND) < num_classes else (0, 1)
    compositions = {
        f"{first}": (first, second, 0.0),
        f"{second}": (second, first, 0.0),
        f"{first} and {second}": (first, second, 1.0),
        f"{first}, not {second}": (first, second, -NEGATION),
        f"{second}, not {first}": (second, first, -NEGATION),
    }
    columns = zip(*compositions.values(), strict=True)
    one, other, weight = (jnp.repeat(jnp.asarray(x), COLUMNS) for x in columns)

    @jax.jit
    def compose(key: jax.Array) -> jax.Array:
        parts = [lambda x: network(x, one), lambda x: network(x, other)]
        energy = product_energy(parts, weights=[1.0, weight])
        return generate(key, energy, (len(one), *images.shape[1:]))

    height = images.shape[1]
    mask = (jnp.arange(height) < height // 2).reshape(1, -1, 1, 1)  # the upper half is known

    @jax.jit
    def fill(key: jax.Array, known: jax.Array, labels: jax.Array) -> jax.Array:
        energy = clamped_energy(lambda x: network(x, labels), known, mask)
        return jnp.where(mask, known, generate(key, energy, known.shape))

    composed = np.asarray(compose(jax.random.key(0)))
    found = np.asarray(by_label(composed)).reshape(len(compositions), COLUMNS, num_classes)
    table = [
        {"composition": name} | {f"E(x, {y})": float(energy[:, y].mean()) for y in (first, second)}
        for name, energy in zip(compositions, found, strict=True)
    ]
    results_table(table, title="Composed energies")

    complete, true = images[:COLUMNS], jnp.asarray(labels[:COLUMNS])
    asked = {"its label": true, "another label": (true + 1) % num_classes}
    halves = {name: np.asarray(fill(jax.random.key(1), complete, y)) for name, y in asked.items()}
    errors = {
        name: float(np.sqrt(((filled - complete)[:, height // 2 :] ** 2).mean()))
        for name, filled in halves.items()
    }
    rows = dict(zip(compositions, np.split(composed, len(compositions)), strict=True))
    rows |= {"test images": complete, "upper half known": np.where(mask, complete, 0.0)}
    rows |= {f"with {name}": filled for name, filled in halves.items()}
    save_figures(workdir, {"uses": draw_rows(rows)})
    said = ", ".join(f"{error:.3f} with {name}" for name, error in errors.items())
    print(f"labels by energy: {accuracy:.3f} right; hidden halves, root mean square error: {said}")
    return {"label_accuracy": accuracy, "compositions": table, "hidden_half_errors": errors}
