"""Both objectives: closed forms, and the program's events replayed by the functions that train."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.battery import quick_jit
from tests.spherical import reference
from zoo import spherical
from zoo.spherical.objective import two_hinges_loss

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "jose_c.json"


def update(triple, rate, margin=0.15):
    """One step of the trainer on a triple (u, v, u')."""
    gradients = jax.grad(lambda triple: two_hinges_loss(*triple, margin=margin))(triple)
    optimizer = spherical.riemannian_sgd(rate, angular=False)
    updates, _ = optimizer.update(gradients, optimizer.init(triple), triple)
    return optax.apply_updates(triple, updates)


update_alone = quick_jit(update, static_argnames="margin")


def test_joint_hinge_is_the_formula():
    u, v, d, other = spherical.random_uniform(jax.random.key(0), (4, 50, 8))
    expected = np.maximum(0, 0.4 - (u * v + u * d - other * v - other * d).sum(axis=-1))
    found = quick_jit(functools.partial(spherical.jose_loss, margin=0.4))(u, v, d, other)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < (expected == 0).sum() < 50


@pytest.mark.usefixtures("double_precision")
def test_a_step_on_two_hinges_is_the_programs_rule():
    u, v, other = spherical.random_uniform(jax.random.key(1), (3, 8))
    f, h, rate = u @ v, other @ v, 0.1
    rules = (
        u + rate * (1 - f) * (v - f * u),
        v + rate * (1 - f + h) * (u - other - (f - h) * v),
        other + rate * 2 * h * (h * other - v),
    )
    for found, rule in zip(update_alone((u, v, other), rate, margin=10.0), rules, strict=True):
        np.testing.assert_allclose(found, rule / jnp.linalg.norm(rule), atol=1e-14)


def test_a_met_hinge_moves_nothing():
    u, v, other = spherical.random_uniform(jax.random.key(2), (3, 8))
    moved = update_alone((u, u, -u), 0.1)
    assert all((a == b).all() for a, b in zip(moved, (u, u, -u), strict=True))
    assert jnp.isnan(update_alone((u, v, other), jnp.nan, margin=10.0)[0]).all()
    for nan in (u, jnp.nan * v, other), (u, v, jnp.nan * other):
        assert jnp.isnan(two_hinges_loss(*nan))
        assert jnp.isnan(spherical.jose_loss(*nan[:2], *nan[1:]))


def test_reference_is_the_authors_program():
    """The recipe in the file made these numbers; they have six decimals."""
    golden = json.loads(GOLDEN.read_text())
    words, _, tables, _ = reference.train(golden["lines"], sample=1.0)
    assert words == golden["words"]
    for table, name in zip(tables, ("centers", "contexts", "documents"), strict=True):
        np.testing.assert_allclose(table, golden[name], atol=1e-6)


def test_replayed_events_end_at_the_same_vectors():
    # A short run: each step adds a rounding of float32.
    lines = json.loads(GOLDEN.read_text())["lines"][:8]
    _, start, tables, events = reference.train(lines, sample=1.0)
    moved = [np.abs(a - b).max() for a, b in zip(start, tables, strict=True)]
    assert min(moved) > 0.05
    columns = [jnp.asarray(column) for column in zip(*events, strict=True)]

    def step(tables, event):
        words, contexts, documents = tables
        rate, center, context, document, negative = event
        of_document = document >= 0
        target = jnp.where(of_document, documents[document], contexts[context])
        u, other = words[center], words[negative]
        u_new, target_new, other_new = update((u, target, other), rate)
        # Where the random word is the center itself, its step comes on top of the other.
        h = u @ target
        twice = spherical.retract(u_new, rate * 2 * h * (h * u_new - target))
        other_new = jnp.where(center == negative, twice, other_new)
        words = words.at[center].set(u_new).at[negative].set(other_new)
        contexts = contexts.at[jnp.where(of_document, -1, context)].set(
            jnp.where(of_document, contexts[-1], target_new)
        )
        documents = documents.at[document].set(
            jnp.where(of_document, target_new, documents[document])
        )
        return (words, contexts, documents), None

    tables_now = tuple(map(jnp.asarray, start))
    replayed, _ = jax.jit(lambda t: jax.lax.scan(step, t, columns))(tables_now)
    for ours, theirs in zip(replayed, tables, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
