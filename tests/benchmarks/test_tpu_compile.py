"""What the check of compiled steps finds wrong, and what not, with the compiler of a CPU."""

import dataclasses

import jax
import pytest

from benchmarks import tpu_compile, tpu_steps
from experiments.pretraining.config import PRESETS
from zoo.training import make_mesh

SMOKE = PRESETS["smoke"]
TINY = dataclasses.replace(
    SMOKE,
    data=dataclasses.replace(SMOKE.data, length=16),
    model=dataclasses.replace(SMOKE.model, features=16, num_heads=2, feedforward_features=32),
    training=dataclasses.replace(SMOKE.training, batch_size=24),  # no axis of a parameter
)
GATHER = "%x = (s32[]{{}}, {}{{3,2,1,0}}) all-gather-start(bf16[1,4]{{1,0}} %y), channel_id=1"


@pytest.fixture(scope="module")
def step():
    return tpu_steps.pretraining(TINY, 64, make_mesh(data=1, fsdp=8))


@pytest.mark.slow  # compiles for eight devices
def test_the_step_of_pretraining_gathers_single_layers_alone(step):
    cheap = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    text = step.function.lower(*step.arguments).compile(compiler_options=cheap).as_text()
    kinds = {kind for kind, _ in tpu_compile.collectives(text)}
    assert "all-gather" in kinds  # of parameters: the check has something to look at
    assert tpu_compile.problems(step, text) == []


def test_gathered_activations_and_stacks_are_found(step):
    for shape, message in (
        ("f32[24,16,16]", "activations of all devices are gathered: f32[24, 16, 16]"),
        ("bf16[2,32,16]", "all layers of a parameter are gathered: bf16[2, 32, 16]"),
    ):
        gathered = GATHER.format(shape)
        assert tpu_compile.problems(step, gathered) == [message]
        summed = gathered.replace("all-gather-start", "all-reduce")
        assert tpu_compile.problems(step, summed) == [message]
    assert tpu_compile.problems(step, GATHER.format("bf16[16,32]")) == []


def test_parameters_without_rules_are_found(step, monkeypatch):
    everything = jax.sharding.PartitionSpec()
    monkeypatch.setattr(tpu_compile, "SMALL", 1000)
    rules = lambda config: ((".", everything),)  # noqa: E731
    monkeypatch.setattr(tpu_steps.pretraining_train, "placement_rules", rules)
    replicated = tpu_steps.pretraining(TINY, 64, make_mesh(data=1, fsdp=8))
    assert "token_embedding [64, 16] is whole on every device" in tpu_compile.problems(
        replicated, ""
    )
