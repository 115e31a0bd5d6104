import logging

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from zoo.training import make_mesh
from zoo.training.placement import shardings

TREE = {
    "embedding": jax.ShapeDtypeStruct((8, 4), jnp.float32),
    "layers": [{"kernel": jax.ShapeDtypeStruct((4, 8), jnp.float32)}] * 2,
    "bias": jax.ShapeDtypeStruct((4,), jnp.float32),
}
RULES = (
    ("layers/1/kernel", PartitionSpec("model")),
    ("kernel$", PartitionSpec("fsdp", "model")),
    ("^embedding$", PartitionSpec(("fsdp", "model"))),
)


def specs(tree, rules=RULES, **options):
    mesh = make_mesh(data=2, fsdp=2, model=2)
    return jax.tree.map(lambda place: place.spec, shardings(tree, mesh, rules, **options))


def test_first_match_wins_and_no_match_is_replicated():
    assert specs(TREE) == {
        "embedding": PartitionSpec(("fsdp", "model")),
        "layers": [
            {"kernel": PartitionSpec("fsdp", "model")},
            {"kernel": PartitionSpec("model")},
        ],
        "bias": PartitionSpec(),
    }


def test_same_rules_place_the_optimiser_state():
    rules = (("kernel$", PartitionSpec("fsdp", "model")),)
    placed = specs(jax.eval_shape(optax.adam(0.1).init, TREE), rules, strict=False)[0]
    assert placed.mu == placed.nu == specs(TREE, rules)
    assert placed.count == PartitionSpec()
    assert specs(jax.eval_shape(optax.sgd(0.1).init, TREE), rules, strict=False)[0] == ()


def test_shorter_moments_of_a_factored_optimiser_stay_whole():
    tree = {"kernel": jax.ShapeDtypeStruct((256, 256), jnp.float32)}
    state = jax.eval_shape(optax.adafactor(0.1).init, tree)
    placed = specs(state, (("kernel", PartitionSpec("fsdp", "model")),), strict=False)
    assert set(jax.tree.leaves(placed)) == {PartitionSpec()}


def test_dimension_that_does_not_divide_stays_whole_and_is_logged_once(caplog):
    tree = {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.float32)}
    rules = (("kernel", PartitionSpec("fsdp", "model")),)
    with caplog.at_level(logging.WARNING):
        assert specs(tree, rules)["kernel"] == PartitionSpec(None, "model")
        specs(jax.eval_shape(optax.adam(0.1).init, tree), rules, strict=False)
    (record,) = caplog.records
    assert "kernel (3, 4) axis 0 over fsdp=2" in record.getMessage()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("bias", PartitionSpec(None, "model")), r"2 axes, but 'bias' has shape \(4,\)"),
        (("kernle", PartitionSpec("model")), r"'kernle'.*layers/0/kernel"),
        (("bias", PartitionSpec("modle")), r"'modle'.*'model'"),
    ],
)
def test_rule_that_does_not_fit(rule, message):
    with pytest.raises(ValueError, match=message):
        specs(TREE, (rule,))
