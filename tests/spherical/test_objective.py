"""Both objectives: closed forms, the gradients behind the steps, the program's events replayed."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.spherical import reference
from zoo import spherical

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "jose_c.json"


def triple(seed, size=8):
    return spherical.random_uniform(jax.random.key(seed), (3, size))


def test_joint_hinge_is_the_formula():
    u, v, d, other = spherical.random_uniform(jax.random.key(0), (4, 50, 8))
    expected = np.maximum(0, 0.4 - (u * v + u * d - other * v - other * d).sum(axis=-1))
    found = spherical.jose_loss(u, v, d, other, margin=0.4)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < (expected == 0).sum() < 50
    with pytest.raises(ValueError, match="margin must be positive, got 0"):
        spherical.jose_loss(u, v, d, other, margin=0)


@pytest.mark.usefixtures("double_precision")
def test_steps_are_gradients_on_the_sphere():
    """Of ½(1 - u·v)², (u'·v)² and ½(1 - u·v + u'·v)²: found by differentiation."""
    u, v, other = triple(1)
    moved = spherical.two_hinges_update(u, v, other, learning_rate=1e-3, margin=10.0)
    losses = {
        "center": (lambda x: (1 - x @ v) ** 2 / 2, u),
        "context": (lambda x: (1 - u @ x + other @ x) ** 2 / 2, v),
        "negative": (lambda x: (x @ v) ** 2, other),
    }
    for name, (loss, x) in losses.items():
        step = spherical.tangent_projection(x, jax.grad(loss)(x))
        expected = spherical.retract(x, -1e-3 * step)
        np.testing.assert_allclose(getattr(moved, name), expected, atol=1e-10)


def test_a_met_hinge_moves_nothing():
    u, v, other = triple(2)
    moved = spherical.two_hinges_update(u, u, -u, learning_rate=0.1)
    assert all((a == b).all() for a, b in zip(moved, (u, u, -u), strict=True))
    nan = spherical.two_hinges_update(u, v, other, learning_rate=jnp.nan, margin=10.0)
    assert jnp.isnan(nan.center).all()


@pytest.fixture(scope="module")
def run():
    golden = json.loads(GOLDEN.read_text())
    return golden, reference.train(golden["lines"], sample=1.0)


def test_reference_is_the_authors_program(run):
    """The recipe in the file made these numbers; they have six decimals."""
    golden, (words, _, tables, _) = run
    assert words == golden["words"]
    for table, name in zip(tables, ("centers", "contexts", "documents"), strict=True):
        np.testing.assert_allclose(table, golden[name], atol=1e-6)


def test_replayed_events_end_at_the_same_vectors(run):
    golden, _ = run
    # A short run: each step adds a rounding of float32.
    _, start, tables, events = reference.train(golden["lines"][:8], sample=1.0)
    moved = [np.abs(a - b).max() for a, b in zip(start, tables, strict=True)]
    assert min(moved) > 0.05
    columns = [jnp.asarray(column) for column in zip(*events, strict=True)]

    def step(tables, event):
        words, contexts, documents = tables
        rate, center, context, document, negative = event
        of_document = document >= 0
        target = jnp.where(of_document, documents[document], contexts[context])
        u, other = words[center], words[negative]
        new = spherical.two_hinges_update(u, target, other, learning_rate=rate)
        # Where the random word is the center itself, its step comes on top of the other.
        h = u @ target
        twice = spherical.retract(new.center, rate * 2 * h * (h * new.center - target))
        active = 0 < 0.15  # f = h, always within the margin
        again = jnp.where((center == negative) & active, twice, new.negative)
        words = words.at[center].set(new.center).at[negative].set(again)
        contexts = contexts.at[jnp.where(of_document, -1, context)].set(
            jnp.where(of_document, contexts[-1], new.context)
        )
        documents = documents.at[document].set(
            jnp.where(of_document, new.context, documents[document])
        )
        return (words, contexts, documents), None

    tables_now = tuple(map(jnp.asarray, start))
    replayed, _ = jax.jit(lambda t: jax.lax.scan(step, t, columns))(tables_now)
    for ours, theirs in zip(replayed, tables, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
