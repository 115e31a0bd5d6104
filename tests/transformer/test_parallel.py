"""The mesh is the only thing that changes: the same losses and parameters on every one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.battery import quick_jit
from zoo._paths import path_name
from zoo.training import (
    LossOutput,
    functional,
    init_state,
    make_mesh,
    make_train_step,
    put_batch,
)
from zoo.training.placement import shardings
from zoo.transformer import Transformer, TransformerConfig, next_tokens, placement_rules
from zoo.transformer.loss import cross_entropy_sums
from zoo.transformer.optimizers import uncorrected_lamb

CONFIG = {
    "vocab_size": 24,
    "features": 16,
    "num_layers": 2,
    "num_heads": 2,
    "feedforward_features": 32,
    "max_positions": 8,
    "dropout": 0.3,
    "mask": "causal",
    "initial_scale": 0.2,
}
ROWS, STEPS = 8, 2
RUNS_ONCE = {"xla_backend_optimization_level": 1}
CHEAP = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def merge_of(config):
    return functional(lambda rngs: Transformer(config, rngs=rngs))[1]


def batches():
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        lengths = generator.integers(2, 9, size=(ROWS, 1))  # unequal weights in every part
        ids = generator.integers(1, 24, size=(ROWS, 8))
        yield {"ids": np.where(np.arange(8) < lengths, ids, 0).astype(np.int32)}


@functools.cache
def drawn():
    """Parameters, which all variants of the config share; compiling the draws takes its time."""
    init, _ = functional(lambda rngs: Transformer(TransformerConfig(**CONFIG), rngs=rngs))
    return jax.device_get(jax.jit(init, compiler_options=RUNS_ONCE)(jax.random.key(0)))


def start(config, mesh, optimizer):
    """The first state, placed by the rules."""
    parameters = drawn()
    return init_state(
        lambda key: jax.tree.map(jnp.asarray, parameters),
        optimizer,
        key=jax.random.key(0),
        mesh=mesh,
        rules=placement_rules(config),
    )


@functools.cache
def train(*, accumulation_steps=1, dropout=True, model_options=(), **mesh_sizes):
    """Losses of some steps and the last state, from the same parameters."""
    size = int(np.prod(list(mesh_sizes.values()) or [1]))
    mesh = make_mesh(**{"data": 1, **mesh_sizes}, devices=jax.devices()[:size])
    config = TransformerConfig(**CONFIG | dict(model_options))
    merge = merge_of(config)

    def loss_fn(parameters, batch, *, key, carry):
        ids = batch["ids"]
        example = next_tokens(ids, mask=ids != 0)
        logits = merge(parameters)(ids, mask=ids != 0, key=key if dropout else None)
        return LossOutput(*cross_entropy_sums(logits, example.targets, example.weights))

    # With BERT's epsilon, 1e-6, a gradient that is nothing but rounding becomes a whole step.
    optimizer = uncorrected_lamb(0.05, eps=1e-3)
    state = start(config, mesh, optimizer)
    step = make_train_step(
        loss_fn, optimizer, accumulation_steps=accumulation_steps, shardings=state.shardings
    )
    losses, compiled = [], None
    for batch in batches():
        placed = put_batch(batch, mesh)
        if compiled is None:
            compiled = step.lower(state, placed).compile(compiler_options=CHEAP)
        state, metrics = compiled(state, placed)
        losses.append(float(metrics["loss"]))
    return losses, state


# Dropout draws for the rows of a micro-batch, so accumulation is compared without it.
VARIANTS = {
    "data 2 x fsdp 2 x model 2": {"data": 2, "fsdp": 2, "model": 2},
    "micro-batches, unrolled, rematerialised, fsdp 2": {
        "accumulation_steps": 4,
        "dropout": False,
        "fsdp": 2,
        "model_options": (("scan_layers", False), ("remat", "full")),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_same_losses_and_parameters_on_every_mesh(name):
    """With dropout too: its masks do not depend on the mesh."""
    losses, state = train(**VARIANTS[name])
    expected_losses, expected = train(dropout=VARIANTS[name].get("dropout", True))
    assert len(set(losses)) == STEPS
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(state.parameters)):
        name = path_name(path)
        other = functools.reduce(dict.__getitem__, name.split("/"), expected.parameters)
        np.testing.assert_allclose(leaf, other, atol=5e-6, err_msg=name)


def test_parameters_and_moments_lie_where_the_rules_say():
    sizes = VARIANTS["data 2 x fsdp 2 x model 2"]
    state = start(TransformerConfig(**CONFIG), make_mesh(**sizes), uncorrected_lamb(0.05))
    replicated = []
    for part in (state.parameters, state.optimizer_state[0].mu):
        for path, leaf in jax.tree.leaves_with_path(part):
            sharding = leaf.sharding
            assert isinstance(sharding, NamedSharding)
            name, shares = path_name(path), leaf.size // np.prod(sharding.shard_shape(leaf.shape))
            if "kernel" in name or name == "token_embedding":
                assert shares >= 2, name
            if ("layers" in name and "kernel" in name) or name == "token_embedding":
                assert shares == 4, name
            if shares == 1:
                replicated.append(leaf.size)
    assert max(replicated) <= CONFIG["num_layers"] * 16  # vectors of D entries alone


def test_every_config_has_rules_that_fit():
    mesh = make_mesh(data=1, fsdp=2, model=2, devices=jax.devices()[:4])
    for changes in (
        {"head": "tied", "norm_position": "pre", "num_segments": 0},
        {"head": "none", "pooler": True},
        {"embedding_features": 8, "positions": "rotary", "tie_embeddings": False},
    ):
        config = TransformerConfig(**CONFIG | changes)
        init, _ = functional(lambda rngs, config=config: Transformer(config, rngs=rngs))
        shapes = jax.eval_shape(init, jax.random.key(0))
        placed = shardings(shapes, mesh, placement_rules(config))  # raises if one fits nothing
        assert jax.tree.structure(placed) == jax.tree.structure(shapes)


def test_under_shard_map_and_without_a_mesh_rows_need_no_constraint():
    merge = merge_of(TransformerConfig(**CONFIG))
    parameters, ids = drawn(), jnp.ones((8, 4), jnp.int32)

    def apply(parameters, ids):
        return merge(parameters).encode(ids)

    rows = PartitionSpec(("data", "fsdp"))
    mapped = jax.shard_map(
        apply, mesh=make_mesh(), in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False
    )
    alone = quick_jit(apply)(parameters, ids)
    np.testing.assert_allclose(quick_jit(mapped)(parameters, ids), alone, atol=1e-6)
