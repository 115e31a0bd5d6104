"""A run made to diverge goes back to its last good state and recovers."""

import itertools
import logging

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
        rollback = Rollback(good, state, limits={"theta": 4.0}, max_rollbacks=20)

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
        rollback = Rollback(good, state, limits={"gap": 1.0}, factor=0.1, max_rollbacks=1)
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
            Rollback(good, state, limits={})
        with pytest.raises(ValueError, match=r"factor must be .* > 0 and < 1, got 1"):
            Rollback(good, state, limits={"gap": 1.0}, factor=1.0)
        with pytest.raises(KeyError, match="no learning_rate"):
            Rollback(good, plain, limits={"gap": 1.0})
