"""Every public function, every optimiser and every experiment's step lowers for TPU and CUDA.

On any machine: lowering needs no device. What has a form for one platform alone fails here.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.tpu_steps import STEPS
from experiments.attention_map import __main__ as attention_map
from experiments.energy_plane import config as plane_config
from experiments.energy_plane import train as plane
from experiments.smooth_metrics import config as metrics_config
from experiments.smooth_metrics import train as metrics
from tests import battery
from tests.test_battery import ROWS, TRANSFORMATIONS
from zoo.training import make_mesh

PLATFORMS = ("tpu", "cuda")


def lower(function, *arguments):
    jax.jit(function).trace(*arguments).lower(lowering_platforms=PLATFORMS)


def with_derivatives(row):
    """The function of a row, and its derivative where it has one."""

    def run(*arguments):
        primals, rebuild = battery.split(row, arguments)
        outputs, pull_back = jax.vjp(rebuild, *primals)
        return outputs, pull_back(outputs)

    return run if row.differentiable else row.function


# The rows that also run under pmap, one or two a package, are tested quickly.
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=str(row), marks=[pytest.mark.slow] * (not row.pmap)) for row in ROWS],
)
def test_functions_lower(row):
    lower(with_derivatives(row), *row.make(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_optimisers_lower(name):
    lower(lambda tree: battery.two_steps(TRANSFORMATIONS[name](), tree), battery.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_steps_lower(name):
    step = STEPS[name](make_mesh(data=1, fsdp=battery.DEVICES))
    step.function.trace(*step.arguments).lower(lowering_platforms=PLATFORMS)


def learn_on_the_plane():
    config = plane_config.PRESETS["smoke"]
    cells = jnp.ones((config.cells, config.cells))
    return [learn(cells, 1.0) for learn in plane.build(config).values()]


def learn_by_smooth_metrics():
    config = metrics_config.PRESETS["smoke"]
    return metrics.train_all(metrics.build(config), metrics.load(config), 8, config)


def learn_to_mirror():
    return nnx.state(attention_map.train(attention_map.Mirror(nnx.Rngs(0)), steps=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [learn_on_the_plane, learn_by_smooth_metrics, learn_to_mirror],
    ids=lambda f: f.__name__,
)
def test_trainings_on_one_device_lower(train):
    lower(train)


def test_what_one_platform_lacks_is_found():
    with pytest.raises(NotImplementedError, match=r"eig.*tpu"):
        lower(jnp.linalg.eigvals, jnp.eye(2))
