"""Chains read what their energy closes over in every call, and compile for none of its values."""

import dataclasses
import functools
import gc
import logging
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo._closures import closed_over, hoisted
from zoo.energy import langevin, run_chain, sample_chain

KEY = jax.random.key(0)
START = jnp.ones((2, 3))
SCALE = jnp.ones(())
WHOLE = np.ones(1, np.float32)


def quadratic(x, scale=1.0):
    return scale * (x**2).sum(axis=-1) / 2


class Bowl(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return quadratic(x, self.scale[...])


@dataclasses.dataclass
class Plain:
    scale: jax.Array

    def energy(self, x):
        return quadratic(x, self.scale)


def changing_module(of_module):
    module = Bowl()
    return of_module(module), lambda: module.scale.set_value(jnp.full((), 11.0))


def changing_cell():
    scale = jnp.ones(())

    def change():
        nonlocal scale
        scale = jnp.full((), 11.0)

    return lambda x: quadratic(x, scale), change


def changing_tree():
    tree = {"layers": [{"scale": jnp.ones(())}]}
    return (
        lambda x: quadratic(x, tree["layers"][0]["scale"]),
        lambda: tree["layers"][0].update(scale=jnp.full((), 11.0)),
    )


def changing_object(of_object):
    plain = Plain(jnp.ones(()))
    return of_object(plain), lambda: setattr(plain, "scale", jnp.full((), 11.0))


def changing_numpy():
    array = np.ones(1, np.float32)
    return lambda x: quadratic(x, array), lambda: array.fill(11.0)


def changing_global():
    def change():
        globals()["SCALE"] = jnp.full((), 11.0)

    globals()["SCALE"] = jnp.ones(())
    return lambda x: quadratic(x, SCALE), change


def changing_default():
    def energy(x, scale=SCALE):
        return quadratic(x, scale)

    energy.__defaults__ = (jnp.ones(()),)
    return energy, lambda: setattr(energy, "__defaults__", (jnp.full((), 11.0),))


def changing_number():
    settings = {"scale": 1.0}
    return lambda x: quadratic(x, settings["scale"]), lambda: settings.update(scale=11.0)


CHANGES = {
    "module": lambda: changing_module(lambda module: module),
    "module in a function": lambda: changing_module(lambda module: lambda x: module(x)),
    "method of a module": lambda: changing_module(lambda module: module.__call__),
    "module in a partial": lambda: changing_module(lambda m: functools.partial(Bowl.__call__, m)),
    "variable": changing_cell,
    "tree": changing_tree,
    "object": lambda: changing_object(lambda plain: lambda x: plain.energy(x)),
    "method": lambda: changing_object(lambda plain: plain.energy),
    "NumPy": changing_numpy,
    "global": changing_global,
    "default": changing_default,
    "number": changing_number,
}


@pytest.mark.parametrize("make", CHANGES.values(), ids=CHANGES)
def test_a_value_changed_in_place_counts(make):
    energy, change = make()
    sampler = langevin(energy, step_size=0.1, noise_scale=0.0)
    start = sampler.init(START)
    for _ in range(2):
        np.testing.assert_allclose(run_chain(KEY, sampler, start, 1)[0].position, 0.9, rtol=1e-6)
    change()
    np.testing.assert_allclose(run_chain(KEY, sampler, start, 1)[0].position, -0.1, rtol=1e-5)
    _, positions, _ = sample_chain(KEY, sampler, start, num_samples=1)
    np.testing.assert_allclose(positions, -0.1, rtol=1e-5)


def test_what_changes_is_an_argument_of_one_program(caplog):
    """An unchanged energy is not traced again; a changed one is, and not compiled."""
    module = Bowl()

    def sampler():
        return langevin(lambda x: module(x), step_size=0.1)

    first = sampler()
    start = first.init(START)
    run_chain(KEY, first, start, 3)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for value in (2.0, 3.0):
            module.scale.set_value(jnp.float32(value))
            run_chain(KEY, first, start, 3)
            run_chain(KEY, sampler(), start, 3)  # another, of equal equations
    assert not [r for r in caplog.records if "Compiling jit(_run_chain)" in r.getMessage()]

    still = langevin(Bowl(), step_size=0.1)
    first, _ = hoisted(still.step, KEY, start)
    second, _ = hoisted(still.step, KEY, start)
    assert first is second


def test_what_determines_the_program_is_told_apart():
    """Equations, numbers and dtypes are; the values of arrays are not."""

    def program(energy, start=START):
        sampler = langevin(energy, step_size=0.1)
        return hoisted(sampler.step, KEY, sampler.init(start))[0]

    def scaled(scale):
        return lambda x: quadratic(x, scale)

    base = program(scaled(jnp.ones(2)))
    assert base == program(scaled(3 * jnp.ones(2)))
    assert hash(base) == hash(program(scaled(3 * jnp.ones(2))))
    for other in (
        program(scaled(1.0)),
        program(scaled(jnp.ones(1))),
        program(scaled(jnp.ones(2, jnp.bfloat16))),
        program(lambda x: quadratic(x) - jnp.ones(2)),
        program(scaled(jnp.ones(2)), START[:, :2]),
    ):
        assert base != other
    assert program(scaled(0.0)) != program(scaled(-0.0))


def test_what_cannot_be_told_is_unknown():
    iterator, generator = iter([1.0]), np.random.default_rng(0)
    for value in (np.ones(2), iterator, generator, object()):
        assert closed_over(lambda value=value: value) is None
    for value in (1.0, "a", None, START, [START, {"b": 2}], quadratic, Bowl(), jnp, jax.jit(abs)):
        function = functools.partial(quadratic, value)
        assert closed_over(function) == closed_over(function) is not None


def test_traced_and_differentiated_closures():
    """As in a training step, and through the chain."""

    def end(scale):
        sampler = langevin(lambda x: quadratic(x, scale), step_size=0.1, noise_scale=0.0)
        return run_chain(KEY, sampler, sampler.init(START), 2)[0].position.sum()

    assert jax.jit(end)(2.0) == pytest.approx(6 * 0.8**2)
    assert jax.grad(end)(2.0) == pytest.approx(6 * 2 * 0.8 * -0.1)
    np.testing.assert_allclose(jax.vmap(end)(jnp.array([1.0, 2.0])), [4.86, 3.84], rtol=1e-5)


def test_a_sampler_and_its_weights_end_with_it():
    module = Bowl()
    sampler = langevin(module, step_size=0.1)
    run_chain(KEY, sampler, sampler.init(START), 1)
    kept = weakref.ref(sampler.step), weakref.ref(module)
    del sampler, module
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
