"""Battery rows of `zoo.averaging`."""

import functools

import jax.numpy as jnp
import optax

from tests.battery import BadInput, Row
from zoo import averaging
from zoo.averaging import AverageState

SHAPES = {"kernel": (3, 2), "bias": (2,)}


def normal(generator, shape, dtype):
    return jnp.asarray(generator.normal(size=shape), dtype)


def tree(generator, batch, dtype):
    return {name: normal(generator, (*batch, *shape), dtype) for name, shape in SHAPES.items()}


def state_of(generator, batch, dtype):
    """An average of one term, of which the second is to come."""
    state = averaging.average_init(tree(generator, batch, dtype), debias=False)
    return state._replace(steps=jnp.ones((), jnp.int32))


def update_arguments(generator, batch, dtype):
    updates = tree(generator, batch, dtype)
    return updates, state_of(generator, batch, dtype), tree(generator, batch, dtype)


def average_arguments(generator, batch, dtype):
    return state_of(generator, batch, dtype), tree(generator, batch, dtype)


def bad(label, call, error, argument, expected, got):
    return BadInput(label, call, error, argument, expected, got)


def bad_transformation(make):
    """What every average must refuse."""
    return (
        bad("no step", lambda: make(every=0), ValueError, "every", "at least 1", "got 0"),
        bad("half a step", lambda: make(every=0.5), TypeError, "every", "an integer", "got 0.5"),
        bad(
            "no parameters",
            lambda: make().update(jnp.ones(2), make().init(jnp.ones(2))),
            ValueError,
            "params",
            "must be given",
            "got None",
        ),
        bad(
            "a mask of nothing",
            lambda: make(mask={"kernel": False}).init({"kernel": jnp.ones(2)}),
            ValueError,
            "mask",
            "at least one parameter",
            "got False",
        ),
    )


TRANSFORMATIONS = {
    "parameter_ema": [
        ("debiased", functools.partial(averaging.parameter_ema, 0.9)),
        ("initialised", functools.partial(averaging.parameter_ema, 0.9, debias=False)),
        ("every", functools.partial(averaging.parameter_ema, 0.9, every=2)),
        (
            "schedule",
            functools.partial(
                averaging.parameter_ema, optax.linear_schedule(0.5, 0.9, 5), warmup=True
            ),
        ),
    ],
    "power_law_ema": [("", functools.partial(averaging.power_law_ema, 0.1))],
    "stochastic_weight_average": [
        ("", functools.partial(averaging.stochastic_weight_average, start_step=1))
    ],
}
BAD = {
    "parameter_ema": (
        bad("one", lambda: averaging.parameter_ema(1.0), ValueError, "decay", r"\[0, 1\)", "1.0"),
        *bad_transformation(functools.partial(averaging.parameter_ema, 0.9)),
    ),
    "power_law_ema": (
        bad(
            "too wide",
            lambda: averaging.power_law_ema(0.4),
            ValueError,
            "relative_std",
            r"\(0, 0.3003\)",
            "got 0.4",
        ),
        *bad_transformation(functools.partial(averaging.power_law_ema, 0.1)),
    ),
    "stochastic_weight_average": bad_transformation(
        functools.partial(averaging.stochastic_weight_average, start_step=0)
    ),
}

STATE = AverageState(steps=None, weight=None, average=0)
WIDE = AverageState(steps=True, weight=True, average=True)
UPDATE = {
    "arguments": update_arguments,
    "axes": (0, STATE, 0),
    "out_axes": (0, STATE),
    "wide": (False, WIDE),
    "differentiable": (0, 2),
    "state": (1, 1),
    # Parameters and updates are added, and the average is subtracted from the sum.
    "extreme": 0.2,
}


ROWS = [
    *(
        Row(
            name=f"zoo.averaging.{name}",
            variant=variant,
            function=make().update,
            bad=BAD[name] if number == 0 else (),
            **UPDATE,
        )
        for name, variants in TRANSFORMATIONS.items()
        for number, (variant, make) in enumerate(variants)
    ),
    Row(
        name="zoo.averaging.lookahead",
        function=averaging.lookahead(sync_period=2).update,
        bad=(
            bad(
                "no step",
                lambda: averaging.lookahead(sync_period=0),
                ValueError,
                "sync_period",
                "at least 1",
                "got 0",
            ),
        ),
        **UPDATE,
    ),
    Row(
        name="zoo.averaging.average_update",
        function=functools.partial(averaging.average_update, decay=0.9),
        arguments=average_arguments,
        axes=(STATE, 0),
        out_axes=STATE,
        wide=WIDE,
        differentiable=(0, 1),
        state=(0, None),
        extreme=0.4,
        bad=(
            bad(
                "a decay of 1",
                lambda: averaging.average_update(
                    averaging.average_init(jnp.ones(2)), jnp.ones(2), decay=1
                ),
                ValueError,
                "decay",
                r"\[0, 1\)",
                "got 1",
            ),
        ),
    ),
    Row(
        name="zoo.averaging.average_init",
        function=averaging.average_init,
        arguments=lambda generator, batch, dtype: (tree(generator, batch, dtype),),
        axes=(0,),
        out_axes=STATE,
        wide=WIDE,
    ),
    Row(
        name="zoo.averaging.averaged_parameters",
        function=averaging.averaged_parameters,
        arguments=average_arguments,
        axes=(STATE, 0),
        extreme=0.4,
        bad=(
            bad(
                "no average",
                lambda: averaging.averaged_parameters({"kernel": jnp.ones(2)}),
                ValueError,
                "opt_state",
                "must hold one average",
                "got 0",
            ),
        ),
    ),
    Row(
        name="zoo.averaging.post_hoc_average",
        function=lambda *averages: averaging.post_hoc_average(
            averages, [100, 200], [0.1, 0.05], relative_std=0.07
        ),
        arguments=lambda generator, batch, dtype: (
            tree(generator, batch, dtype),
            tree(generator, batch, dtype),
        ),
        axes=(0, 0),
        differentiable=(0, 1),
        extreme=0.2,  # weights may be larger than 1
        bad=(
            bad(
                "two averages of one",
                lambda: averaging.post_hoc_average(
                    [jnp.ones(2)], [1, 2], [0.1, 0.1], relative_std=0.1
                ),
                ValueError,
                "averages",
                "as many as steps",
                "got 1 and 2",
            ),
        ),
    ),
]

EXEMPT = {
    "zoo.averaging.power_law_exponent": "a plain number from a plain number, on the host",
    "zoo.averaging.post_hoc_weights": "float64 weights from plain numbers, on the host",
    "zoo.averaging.recompute_statistics": "loops over batches on the host; see test_others.py",
}
