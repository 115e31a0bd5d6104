"""Battery rows of `zoo.ordered`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.battery import BadInput, Row
from zoo import ordered
from zoo.ordered import OnLstmCarry, OnLstmParams
from zoo.ordered.nt_asgd import nt_asgd_parameters, observe_validation
from zoo.ordered.regularization import activation_penalty, dropout

INPUTS, UNITS, CHUNK = 3, 4, 2
LEVELS = UNITS // CHUNK
COLUMNS = 4 * UNITS + 2 * LEVELS


def normal(generator, shape, dtype, scale=1.0):
    return jnp.asarray(scale * generator.normal(size=shape), dtype)


def logits(generator, batch, dtype):
    return (normal(generator, (*batch, 5), dtype),)


def parameters(generator, dtype):
    return OnLstmParams(
        normal(generator, (INPUTS, COLUMNS), dtype, 0.5),
        normal(generator, (UNITS, COLUMNS), dtype, 0.5),
        normal(generator, (COLUMNS,), dtype, 0.5),
    )


def carry(generator, batch, dtype):
    return OnLstmCarry(
        normal(generator, (*batch, UNITS), dtype, 0.5),
        normal(generator, (*batch, LEVELS, CHUNK), dtype),
    )


def step_arguments(generator, batch, dtype):
    x = normal(generator, (*batch, INPUTS), dtype)
    return parameters(generator, dtype), carry(generator, batch, dtype), x


def sequence_arguments(generator, batch, dtype):
    xs = normal(generator, (3, *batch, INPUTS), dtype)
    return parameters(generator, dtype), xs, carry(generator, batch, dtype)


def masked_arguments(generator, batch, dtype):
    mask = jnp.asarray(generator.random((3, *batch)) < 0.7)
    return *sequence_arguments(generator, batch, dtype), mask


def noise_arguments(generator, batch, dtype):
    return jax.random.key(int(generator.integers(100))), normal(generator, (*batch, 5), dtype)


def states(generator, batch, dtype):
    return (normal(generator, (*batch, 3, 4), dtype),)


def masked_and_reversed(params, xs, carry, mask):
    """The padding must not count, in the direction in which it comes first."""
    return ordered.on_lstm(
        params, xs, carry, chunk_size=CHUNK, master_input="reverse", mask=mask, reverse=True
    )


def bad_layer(label, error, argument, expected, got, function=ordered.on_lstm, **changes):
    """A call of a layer with some of its arguments changed."""

    def call():
        generator = np.random.default_rng(0)
        params, xs, state = sequence_arguments(generator, (2,), jnp.float32)
        arguments = {"params": params, "carry": state, "chunk_size": CHUNK}
        arguments |= {"xs": xs} if function is ordered.on_lstm else {"x": xs[0]}
        for name, change in changes.items():
            arguments[name] = change(arguments[name]) if callable(change) else change
        function(**arguments)

    return BadInput(label, call, error, argument, expected, got)


BAD_STEP = (
    bad_layer(
        "a chunk that does not divide the units",
        ValueError,
        "chunk_size",
        "must divide .* 4",
        "got 3.*possible: 1, 2, 4",
        ordered.on_lstm_step,
        chunk_size=3,
    ),
    bad_layer(
        "a bias without its first column",
        ValueError,
        "params.bias",
        r"\[20\]",
        r"\[19\]",
        ordered.on_lstm_step,
        params=lambda params: params._replace(bias=params.bias[1:]),
    ),
    bad_layer(
        "an unknown master gate",
        ValueError,
        "master_input",
        "'complement', 'reverse', 'none'",
        "got 'paper'",
        ordered.on_lstm_step,
        master_input="paper",
    ),
    bad_layer(
        "a time axis",
        ValueError,
        "x must",
        r"\[B, I\]",
        r"\[1, 2, 3\]",
        ordered.on_lstm_step,
        x=lambda x: x[None],
    ),
)
BAD_SEQUENCE = (
    bad_layer(
        "one feature too few",
        ValueError,
        "xs",
        "where I is 3 in params.input_kernel",
        r"\[3, 2, 2\]",
        xs=lambda xs: xs[..., 1:],
    ),
    bad_layer(
        "token ids", TypeError, "xs", "floating-point", "int32", xs=lambda xs: xs.astype(int)
    ),
    bad_layer("no time axis", ValueError, "xs", r"\[T, B, I\]", r"\[2, 3\]", xs=lambda xs: xs[0]),
    bad_layer(
        "a mask of another length",
        ValueError,
        "mask",
        r"bool \[time, batch\] = \(3, 2\)",
        r"\(2, 2\)",
        mask=jnp.ones((2, 2), bool),
    ),
    bad_layer("a mask of numbers", ValueError, "mask", "bool", "float32", mask=jnp.ones((3, 2))),
    bad_layer(
        "the carry of another batch",
        ValueError,
        "carry.hidden",
        "B is 2 in xs",
        r"\[1, 4\]",
        carry=lambda carry: jax.tree.map(lambda leaf: leaf[:1], carry),
    ),
)

# On saturated gates a matrix product must not overflow: 3 + 4 products of inputs and weights.
LAYER = {"differentiable": (0, 1, 2), "extreme": 0.05}
SEQUENCE = {
    "axes": (None, 1, 0),
    "out_axes": ordered.OnLstmOutput(1, 0, 1),
    "wide": ordered.OnLstmOutput(False, False, True),
    "extreme_arguments": (1,),
}

ROWS = [
    *(
        Row(
            name=f"zoo.ordered.{function.__name__}",
            variant="reverse" if reverse else "",
            function=functools.partial(function, reverse=reverse),
            arguments=logits,
            axes=(0,),
            # The logarithm may reach twice the largest input.
            extreme=1.0 if function is ordered.cumax else 0.4,
            pmap=function is ordered.cumax and not reverse,
            bad=(
                BadInput(
                    "integer logits",
                    functools.partial(function, jnp.arange(3)),
                    TypeError,
                    argument=f"{function.__name__}: x",
                    expected="floating-point",
                    got="int32.*astype",
                ),
            ),
        )
        for function, reverse in (
            (ordered.cumax, False),
            (ordered.cumax, True),
            (ordered.log_cumax, True),
        )
    ),
    Row(
        name="zoo.ordered.on_lstm_step",
        function=functools.partial(ordered.on_lstm_step, chunk_size=CHUNK),
        arguments=step_arguments,
        axes=(None, 0, 0),
        wide=(False, True),
        state=(1, 0),
        extreme_arguments=(2,),
        bad=BAD_STEP,
        **LAYER,
    ),
    Row(
        name="zoo.ordered.on_lstm",
        function=functools.partial(ordered.on_lstm, chunk_size=CHUNK),
        arguments=sequence_arguments,
        bad=BAD_SEQUENCE,
        **LAYER,
        **SEQUENCE,
    ),
    Row(
        name="zoo.ordered.on_lstm",
        variant="masked, reversed",
        function=masked_and_reversed,
        arguments=masked_arguments,
        **LAYER,
        **SEQUENCE | {"axes": (None, 1, 0, 1)},
    ),
    Row(
        name="zoo.ordered.regularization.activation_penalty",
        function=activation_penalty,
        arguments=states,
        axes=(0,),
        wide=True,
        extreme=1e-30,  # squares
        bad=(
            BadInput(
                "no batch",
                lambda: activation_penalty(jnp.ones((3, 4))),
                ValueError,
                argument="hidden",
                expected=r"\[B, T, D\]",
                got=r"\[3, 4\]",
            ),
        ),
    ),
    Row(
        name="zoo.ordered.regularization.dropout",
        function=functools.partial(dropout, rate=0.25, shared_axes=(-1,)),
        arguments=noise_arguments,
        axes=(None, 0),
        differentiable=(1,),
        extreme=0.5,  # what stays is divided by 0.75
        random=True,
        skip={"shard_map_equals_unsharded": "each device draws its own mask"},
        bad=(
            BadInput(
                "nothing left",
                lambda: dropout(jax.random.key(0), jnp.ones(3), rate=1),
                ValueError,
                argument="rate",
                expected="≥ 0 and < 1|< 1 and ≥ 0",
                got="got 1",
            ),
        ),
    ),
]

EXEMPT = {
    "zoo.ordered.nt_asgd": "an Optax transformation, tested in test_nt_asgd.py",
    "zoo.ordered.depths_to_tree": "returns nested lists of words, on the host",
    "zoo.ordered.read_treebank": "reads files",
    "zoo.ordered.tree_spans": "takes nested lists of words, on the host",
    "zoo.ordered.evalb_scores": "takes trees of words, on the host",
    "zoo.ordered.bracket_scores": "takes nested lists of words, on the host",
}


def averaged_since_trigger(tree):
    optimizer = ordered.nt_asgd(patience=1)
    state = optimizer.init(tree)
    for loss in (1.0, 2.0, 3.0):
        state = observe_validation(state, loss)
    return nt_asgd_parameters(optimizer.update(tree, state, tree)[1], tree)


TRANSFORMATIONS = [functools.partial(ordered.nt_asgd, patience=2)]
TREES = {"zoo.ordered.nt_asgd.nt_asgd_parameters": averaged_since_trigger}
