"""What the experiments share: means over held-out rows, presets, changes of a config."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments import command_line
from experiments.energy_plane.config import PRESETS
from experiments.running import held_out_means
from zoo.training import LossOutput, make_mesh


def test_held_out_means_count_every_row_once():
    @jax.jit
    def loss(parameters, batch, *, key, carry):
        weights = jnp.float32(batch["valid"])
        total = (weights * parameters * batch["x"]).sum()
        return LossOutput(total, weights.sum(), metrics={"large": ((batch["x"] > 2).sum(), 5.0)})

    rows, mesh = [{"x": jnp.float32(i)} for i in range(5)], make_mesh(devices=jax.devices()[:1])
    means = held_out_means(loss, 2.0, rows, batch_size=2, mesh=mesh)
    assert means == {"loss": 4.0, "large": 3 / 15}  # 3, 4 and the copy of 4 that fills a batch


@pytest.mark.parametrize(
    "flags", [["--preset=smoke", "--long", "3"], ["--long=3", "--preset", "smoke"]]
)
def test_flags_change_a_preset(flags):
    found = []

    def run(config):
        found.append(config)

    run.__module__ = "experiments.energy_plane.train"
    command_line.main(run, PRESETS, None, flags)
    expected = dataclasses.replace(PRESETS["smoke"], long=3, workdir="runs/energy_plane_smoke")
    assert found == [expected]


def test_a_change_of_a_section_keeps_the_rest_of_it():
    config = command_line.RunConfig(loop=command_line.LoopConfig(log_every=7))
    changed = command_line.change(config, workdir="there", loop={"progress": False})
    loop = command_line.LoopConfig(log_every=7, progress=False)
    assert changed == command_line.RunConfig(workdir="there", loop=loop)
