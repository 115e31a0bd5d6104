"""Divergence: the three signs in closed form, and a run made to diverge that recovers."""

import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.energy import Rollback, chain_health, contrastive_loss, langevin, run_chain
from zoo.training import Checkpointer, LossOutput, fit, init_state, make_mesh, make_train_step

CHAINS = 4096
MESH = make_mesh(devices=jax.devices()[:1])
STEP_SIZE = 0.1
STEEPNESS = 4.0  # of the energy that the data come from
DATA = np.random.default_rng(0).normal(size=CHAINS)
DATA = (DATA / np.sqrt((DATA**2).mean() * STEEPNESS)).astype(np.float32)


def energy_of(parameters):
    return lambda x: parameters["steepness"] * x**2 / 2


def loss_fn(parameters, batch, *, key, carry, model_state):
    """Persistent chains: a rate that is too large makes the energy concave, and them explode."""
    del carry
    sampler = langevin(energy_of(jax.lax.stop_gradient(parameters)), step_size=STEP_SIZE)
    state, _ = run_chain(key, sampler, sampler.init(model_state), 5)
    energy = energy_of(parameters)
    loss = contrastive_loss(energy(batch), energy(state.position), l2=0.0)
    weight = jnp.float32(CHAINS)
    return LossOutput(loss * weight, weight, model_state=state.position)


@jax.jit
def health_of(state):
    return chain_health(energy_of(state.parameters), jnp.asarray(DATA), state.model_state)


def evaluate(state):
    return {name: float(value) for name, value in health_of(state)._asdict().items()}


def first_state(rate):
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
    state = init_state(
        lambda key: {"steepness": jnp.ones(())},
        optimizer,
        key=jax.random.key(0),
        mesh=MESH,
        init_model_state=lambda key: jnp.zeros(CHAINS),
    )
    return state, make_train_step(loss_fn, optimizer, shardings=state.shardings)


def test_health_in_closed_form():
    data, samples = jnp.array([0.0, 1.0]), jnp.array([2.0, -2.0, 3.0, 3.0])
    health = chain_health(lambda x: x**2 / 2, data, samples, bounds=(-3.0, 3.0))
    assert health.energy_gap == pytest.approx((2 + 2 + 4.5 + 4.5) / 4 - 0.25)
    assert health.gradient_norm == pytest.approx(2.5)
    assert health.excess_saturation == 0.5
    assert chain_health(lambda x: x**2 / 2, data, samples).excess_saturation == 0
    with pytest.raises(ValueError, match=r"bounds must be \(low, high\)"):
        chain_health(lambda x: x**2 / 2, data, samples, bounds=(1.0, 0.0))


def test_a_run_made_to_diverge_recovers(tmp_path, caplog):
    """The rate is far too large: it is halved until the run stands, and arrives."""
    rate = 400.0
    state, step = first_state(rate)
    with Checkpointer(tmp_path / "good", keep=1) as good, caplog.at_level(logging.WARNING):
        rollback = Rollback(
            good, state, limits={"energy_gap": 0.25, "gradient_norm": 50.0}, max_rollbacks=20
        )
        state = fit(
            step,
            state,
            itertools.repeat(DATA),
            num_steps=80,
            mesh=MESH,
            evaluate=evaluate,
            evaluate_every=4,
            after_evaluation=rollback,
            max_nonfinite_steps=1000,
            progress=False,
        )
        assert int(state.step) == 80
        assert good.steps()[-1] == 80
    messages = [record.getMessage() for record in caplog.records if "diverged" in record.message]
    assert len(messages) >= 3
    assert "back to the state of step 0, learning rate 200" in messages[0]
    rate_now = float(optax.tree.get(state.optimizer_state, "learning_rate"))
    assert rate_now == rate * 0.5 ** len(messages)
    # Chains of finite steps have the variance 1/(θ(1 - hθ/2)): the θ at which it is the data's.
    fixed_point = (1 - np.sqrt(1 - 2 * STEP_SIZE * STEEPNESS)) / STEP_SIZE
    assert float(state.parameters["steepness"]) == pytest.approx(fixed_point, rel=0.05)
    assert np.isfinite(state.model_state).all()


def test_only_what_was_found_good_is_kept(tmp_path):
    state, _ = first_state(1.0)
    with Checkpointer(tmp_path, keep=1) as good:
        rollback = Rollback(good, state, limits={"gap": 1.0}, factor=0.1, max_rollbacks=1)
        better = state._replace(step=state.step + 5, parameters={"steepness": jnp.full((), 2.0)})
        assert rollback(better, {"gap": -0.9}) is better
        worse = state._replace(step=state.step + 9, parameters={"steepness": jnp.full((), 9.0)})
        back = rollback(worse, {"gap": float("nan")})
        assert float(back.parameters["steepness"]) == 2
        assert int(back.step) == 9
        assert float(optax.tree.get(back.optimizer_state, "learning_rate")) == pytest.approx(0.1)
        with pytest.raises(FloatingPointError, match=r"diverged \(gap = 1.5, limit 1\) once more"):
            rollback(back, {"gap": 1.5})


def test_rollback_refuses(tmp_path):
    state, _ = first_state(1.0)
    plain = state._replace(optimizer_state=optax.sgd(1.0).init(state.parameters))
    with Checkpointer(tmp_path) as good:
        with pytest.raises(ValueError, match="limits must name at least one"):
            Rollback(good, state, limits={})
        with pytest.raises(ValueError, match=r"factor must be in \(0, 1\), got 1"):
            Rollback(good, state, limits={"gap": 1.0}, factor=1.0)
        with pytest.raises(KeyError, match="no learning_rate"):
            Rollback(good, plain, limits={"gap": 1.0})
