"""Battery rows of `zoo.averaging`; what the functions refuse is in the unit tests."""

import functools

import jax
import jax.numpy as jnp
import optax

from tests.battery import Row, parameters
from zoo import averaging
from zoo.averaging.exponential import AverageState
from zoo.averaging.statistics import recompute_statistics

SHAPES = {"kernel": (3, 2), "bias": (2,)}
STATE = AverageState(steps=None, weight=None, average=0)
WIDE = AverageState(steps=True, weight=True, average=True)


def tree(generator, batch, dtype):
    return {
        name: jnp.asarray(generator.normal(size=(*batch, *shape)), dtype)
        for name, shape in SHAPES.items()
    }


def state_of(generator, batch, dtype):
    """An average of one term; the function under test adds the second."""
    state = averaging.average_init(tree(generator, batch, dtype), debias=False)
    return state._replace(steps=jnp.ones((), jnp.int32))


def transformation(name, optimizer, **options):
    return Row(
        name=f"zoo.averaging.{name}",
        function=optimizer.update,
        arguments=lambda *a: (tree(*a), state_of(*a), tree(*a)),
        axes=(0, STATE, 0),
        out_axes=(0, STATE),
        wide=(False, WIDE),
        differentiable=(0, 2),
        state=(1, 1),
        extreme=0.2,  # parameters and updates are added, the average is subtracted from the sum
        **options,
    )


SCHEDULE = optax.linear_schedule(0.5, 0.9, 5)
ROWS = [
    transformation("parameter_ema", averaging.parameter_ema(0.9), pmap=True),
    transformation(
        "parameter_ema",
        averaging.parameter_ema(SCHEDULE, debias=False, warmup=True, every=2),
        variant="all options",
    ),
    transformation("power_law_ema", averaging.power_law_ema(0.1)),
    transformation("stochastic_weight_average", averaging.stochastic_weight_average(start_step=1)),
    transformation("lookahead", averaging.lookahead(sync_period=2)),
    Row(
        name="zoo.averaging.average_update",
        function=functools.partial(averaging.average_update, decay=0.9),
        arguments=lambda *a: (state_of(*a), tree(*a)),
        axes=(STATE, 0),
        out_axes=STATE,
        wide=WIDE,
        differentiable=(0, 1),
        state=(0, None),
        extreme=0.4,
    ),
    Row(
        name="zoo.averaging.average_init",
        function=averaging.average_init,
        arguments=lambda *a: (tree(*a),),
        axes=(0,),
        out_axes=STATE,
        wide=WIDE,
    ),
    Row(
        name="zoo.averaging.averaged_parameters",
        function=averaging.averaged_parameters,
        arguments=lambda *a: (state_of(*a), tree(*a)),
        axes=(STATE, 0),
        extreme=0.4,
    ),
    Row(
        name="zoo.averaging.post_hoc_average",
        function=lambda *averages: averaging.post_hoc_average(
            averages, [100, 200], [0.1, 0.05], relative_std=0.07
        ),
        arguments=lambda *a: (tree(*a), tree(*a)),
        axes=(0, 0),
        differentiable=(0, 1),
        extreme=0.2,  # weights may be larger than 1
    ),
]
EXEMPT = {"zoo.averaging.averaged_module": "gives a module, tested in test_reading.py"}

TRANSFORMATIONS = [
    functools.partial(averaging.parameter_ema, decay=0.9, start_step=1, every=2),
    functools.partial(averaging.power_law_ema, relative_std=0.1),
    functools.partial(averaging.stochastic_weight_average, start_step=1),
    functools.partial(averaging.lookahead, sync_period=2, slow_step_size=0.25),
]


def statistics(tree):
    """Of two batches, where the tree of one has another place for each number."""
    return recompute_statistics(lambda b: jax.tree.map(lambda x: b[0] * x, tree), [ONES, 3 * ONES])


def average_of(tree):
    return averaging.average_update(averaging.average_init(tree, debias=False), tree, decay=0.9)


ONES = jnp.ones(2)
TREES = {
    "zoo.averaging.average_update": average_of,
    "zoo.averaging.averaged_parameters": lambda tree: averaging.averaged_parameters(
        average_of(parameters()), tree
    ),
    "zoo.averaging.post_hoc_average": lambda tree: averaging.post_hoc_average(
        [tree, parameters()], [100, 200], [0.1, 0.05], relative_std=0.07
    ),
    "zoo.averaging.statistics.recompute_statistics": statistics,
}
CLOSURES = {
    "zoo.averaging.average_update": lambda box: (
        lambda: averaging.average_update(
            averaging.average_init(ONES, debias=False), 3 * ONES, decay=lambda terms: 0.2 * box[0]
        )
    ),
    "zoo.averaging.statistics.recompute_statistics": lambda box: (
        lambda: recompute_statistics(lambda batch: {"mean": box[0] * batch.mean()}, [ONES, ONES])
    ),
}
