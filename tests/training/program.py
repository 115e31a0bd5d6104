"""A training program of one screen: in this process for most tests, in others for some.

It uses all that a resume must bring back: momentum, a random key, a carry, the data position, and
batches whose rows do not weigh the same.

    python -m tests.training.program DIRECTORY [--signal SIGKILL --at 7]
"""

import argparse
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo import training

ROWS, NUM_STEPS = 8, 12
OPTIMIZER = optax.adam(0.05)


class Batches:
    """Batch i is drawn from seed i; this process gets its share of the rows."""

    def __init__(self, *, rows=ROWS, before=lambda position: None):
        self.rows, self.before, self.position = rows, before, 0

    def __next__(self):
        self.before(self.position)
        batch = make_batch(self.position, rows=self.rows)
        self.position += 1
        share = self.rows // jax.process_count()
        mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        return {name: leaf[mine] for name, leaf in batch.items()}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def make_batch(seed, *, rows=ROWS):
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(rows, 3)).astype(np.float32),
        "y": random.normal(size=(rows, 4)).astype(np.float32),
        "weight": np.arange(rows, dtype=np.float32),  # unequal, and one row of no weight
    }


def init_parameters(key):
    return {"layer": {"kernel": jax.random.normal(key, (3, 4)), "bias": jnp.zeros(4)}}


def loss_fn(parameters, batch, *, key, carry):
    """A noisy linear regression; the carry smooths the inputs over the batches."""
    if not isinstance(carry, tuple):
        carry = 0.5 * carry + batch["x"]
        batch = batch | {"x": carry + 0.1 * jax.random.normal(key, carry.shape)}
    predictions = batch["x"] @ parameters["layer"]["kernel"]
    errors = (predictions + parameters["layer"]["bias"][None] - batch["y"]) ** 2
    rows = batch["weight"]
    return training.LossOutput(
        (rows[:, None] * errors).sum(),
        4 * rows.sum(),
        carry,
        {"row_weight": (rows.sum(), rows.size)},
    )


def new_state(mesh, *, rules=(), carry=True, optimizer=OPTIMIZER):
    share = ROWS // jax.process_count()
    return training.init_state(
        init_parameters,
        optimizer,
        key=jax.random.key(0),
        mesh=mesh,
        rules=rules,
        carry=np.zeros((share, 3), np.float32) if carry else (),
    )


def run(directory, *, mesh, before=lambda position: None, num_steps=NUM_STEPS, step=None):
    """Trains to the end in a folder and leaves ``final.npz`` there."""
    directory = pathlib.Path(directory)
    state = new_state(mesh)
    step = step or training.make_train_step(loss_fn, OPTIMIZER, shardings=state.shardings)
    with (
        training.Checkpointer(directory / "checkpoints") as checkpointer,
        training.MetricsLog(directory / "metrics.jsonl") as log,
    ):
        state = training.fit(
            step,
            state,
            Batches(before=before),
            num_steps=num_steps,
            mesh=mesh,
            checkpointer=checkpointer,
            log=log,
            loop=training.Loop(log_every=2, checkpoint_every=3),
        )
    if jax.process_index() == 0:
        np.savez(directory / "final.npz", **state.parameters["layer"])
    return state


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--signal", default=None, help="sent to itself …")
    parser.add_argument("--at", type=int, help="… when this batch is drawn …")
    parser.add_argument("--process", type=int, default=0, help="… by this process")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    training.initialize_distributed()

    def before(position):
        if position == arguments.at and jax.process_index() == arguments.process:
            os.kill(os.getpid(), signal.Signals[arguments.signal])

    run(arguments.directory, mesh=training.make_mesh(), before=before)


if __name__ == "__main__":
    main()
