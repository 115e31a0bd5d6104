"""A run made to diverge goes back to its last good state and recovers."""

import itertools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.training import Checkpointer, Loop, LossOutput, fit, init_state, make_mesh, make_train_step
from zoo.training.rollback import Rollback

MESH = make_mesh(devices=jax.devices()[:1])


def loss_fn(parameters, batch, *, key, carry, model_state):
    """½θ²·mean(batch): descent diverges at rates above 2; the model state counts the steps."""
    del key, carry
    weight = jnp.float32(len(batch))
    loss = parameters["theta"] ** 2 / 2 * batch.sum()
    return LossOutput(loss, weight, model_state=model_state + 1)


def start(rate):
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
    state = init_state(
        lambda key: {"theta": jnp.ones(())},
        optimizer,
        key=jax.random.key(0),
        mesh=MESH,
        init_model_state=lambda key: jnp.zeros(()),
    )
    return state, make_train_step(loss_fn, optimizer, shardings=state.shardings)


def test_a_run_made_to_diverge_recovers(tmp_path, caplog):
    """The rate is far too large: it is halved until the run converges."""
    rate, every = 40.0, 4
    state, step = start(rate)
    with Checkpointer(tmp_path / "good", keep=1) as good, caplog.at_level(logging.WARNING):
        rollback = Rollback(
            good,
            state.abstract,
            first=lambda: start(rate)[0],
            limits={"theta": 4.0},
            max_rollbacks=20,
        )

        def evaluate(state):
            values = {"theta": float(state.parameters["theta"])}
            return rollback(state, values), values

        state = fit(
            step,
            state,
            itertools.repeat(np.ones(8, np.float32)),
            num_steps=40,
            mesh=MESH,
            loop=Loop(evaluate_every=every, progress=False),
            evaluate=evaluate,
        )
        assert int(state.step) == 40
        assert good.steps()[-1] == 40
    messages = [record.getMessage() for record in caplog.records if "diverged" in record.message]
    # 40, 20, 10, 5 and 2.5 fail; 1.25 converges.
    assert len(messages) == 5
    assert "back to the state of step 0, learning rate 20" in messages[0]
    assert float(optax.tree.get(state.optimizer_state, "learning_rate")) == 1.25
    steps_kept = 40 - every * len(messages)
    assert float(state.model_state) == steps_kept
    assert float(state.parameters["theta"]) == pytest.approx(0.25**steps_kept)


def test_only_good_states_are_kept(tmp_path):
    state, _ = start(1.0)
    with Checkpointer(tmp_path, keep=1) as good:
        rollback = Rollback(
            good, state, first=lambda: state, limits={"gap": 1.0}, factor=0.1, max_rollbacks=1
        )
        better = state._replace(step=state.step + 5, parameters={"theta": jnp.full((), 2.0)})
        assert rollback(better, {"gap": -0.9}) is better
        worse = state._replace(step=state.step + 9, parameters={"theta": jnp.full((), 9.0)})
        back = rollback(worse, {"gap": float("nan")})
        assert float(back.parameters["theta"]) == 2
        assert int(back.step) == 9
        assert float(optax.tree.get(back.optimizer_state, "learning_rate")) == pytest.approx(0.1)
        with pytest.raises(FloatingPointError, match=r"diverged \(gap = 1.5, limit 1\) once more"):
            rollback(back, {"gap": 1.5})


def test_rollback_refuses(tmp_path):
    state, _ = start(1.0)
    plain = state._replace(optimizer_state=optax.sgd(1.0).init(state.parameters))
    with Checkpointer(tmp_path) as good:
        with pytest.raises(ValueError, match="limits must name at least one"):
            Rollback(good, state, first=lambda: state, limits={})
        with pytest.raises(ValueError, match=r"factor must be .* > 0 and < 1, got 1"):
            Rollback(good, state, first=lambda: state, limits={"gap": 1.0}, factor=1.0)
        with pytest.raises(KeyError, match="no learning_rate"):
            Rollback(good, plain, first=lambda: plain, limits={"gap": 1.0})


class Ones:
    """Batches that are all alike."""

    def __next__(self):
        return np.ones(8, np.float32)

    def get_state(self):
        return {}

    def set_state(self, position):
        assert position == {}


class Killed(Exception):
    """As kill -9: nothing is saved."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "checkpoint_every", "keep"),
    [(8, 20, 12), (9, 5, 4)],
    ids=["from 0", "from 5"],
)
def test_a_killed_run_continues_as_if_it_had_not_been(tmp_path, killed, checkpoint_every, keep):
    """Good at 2 and 4, diverged at 6, good at 8; the good states are ahead of the checkpoints."""
    states = {}

    def run(folder, until=math.inf):
        state, step = start(0.1)
        seen = states.setdefault(folder, {})
        with (
            Checkpointer(tmp_path / folder / "good", keep=keep) as good,
            Checkpointer(tmp_path / folder / "checkpoints", keep=1) as checkpointer,
        ):
            first = lambda: start(0.1)[0]  # noqa: E731
            rollback = Rollback(good, state.abstract, first=first, limits={"bad": 0.0})

            def evaluate(state):
                number = int(state.step)
                if number >= until:
                    raise Killed
                after = rollback(state, {"bad": float(number == 6)})
                seen[number] = float(after.parameters["theta"])
                return after, {}

            return fit(
                step,
                state,
                Ones(),
                num_steps=12,
                mesh=MESH,
                loop=Loop(evaluate_every=2, checkpoint_every=checkpoint_every, progress=False),
                checkpointer=checkpointer,
                evaluate=evaluate,
            )

    expected = run("whole")
    with pytest.raises(Killed):
        run("killed", until=killed)
    found = run("killed")
    assert states["killed"] == states["whole"]
    jax.tree.map(np.testing.assert_array_equal, found.parameters, expected.parameters)
    assert int(found.model_state) == int(expected.model_state) == 10
