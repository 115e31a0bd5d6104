"""Battery rows of `zoo.ordered`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.battery import BadInput, Row
from zoo import ordered
from zoo.ordered import OnLstmCarry, OnLstmParams

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


def gate_arguments(generator, batch, dtype):
    params, state, x = step_arguments(generator, batch, dtype)
    return params, state.hidden, x


def noise_arguments(generator, batch, dtype):
    return jax.random.key(int(generator.integers(100))), normal(generator, (*batch, 5), dtype)


def states(generator, batch, dtype):
    return (normal(generator, (*batch, 3, 4), dtype),)


def example(make):
    return make(np.random.default_rng(0), (2,), jnp.float32)


def bad_logits(function):
    return BadInput(
        "integer logits",
        lambda: function(jnp.arange(3)),
        TypeError,
        argument=f"{function.__name__}: x",
        expected="floating-point",
        got="int32",
    )


def bad_layer(function, make):
    """What every function of a layer's parameters must refuse."""
    arguments = example(make)
    params = arguments[0]
    narrow = params._replace(bias=params.bias[1:])
    operands = arguments[1:]
    return (
        BadInput(
            "a chunk that does not divide the units",
            lambda: function(*arguments, chunk_size=3),
            ValueError,
            argument="chunk_size",
            expected="must divide .* 4",
            got="got 3",
        ),
        BadInput(
            "a bias without its first column",
            lambda: function(narrow, *operands, chunk_size=CHUNK),
            ValueError,
            argument="params",
            expected=r"\(20,\)",
            got=r"\(19,\)",
        ),
        BadInput(
            "an unknown master gate",
            lambda: function(*arguments, chunk_size=CHUNK, master_input="paper"),
            ValueError,
            argument="master_input",
            expected="'complement', 'reverse' or 'none'",
            got="got 'paper'",
        ),
    )


def bad_sequence(label, change, error, argument, expected, got):
    params, xs, state = example(sequence_arguments)
    arguments = {"params": params, "xs": xs, "carry": state}
    return BadInput(
        label,
        lambda: ordered.on_lstm(**arguments | change(**arguments), chunk_size=CHUNK),
        error,
        argument,
        expected,
        got,
    )


BAD_SEQUENCES = (
    bad_sequence(
        "one feature too few",
        lambda xs, **_: {"xs": xs[..., 1:]},
        ValueError,
        argument="xs",
        expected="3 features",
        got=r"\(3, 2, 2\)",
    ),
    bad_sequence(
        "token ids",
        lambda xs, **_: {"xs": xs.astype(int)},
        TypeError,
        argument="xs",
        expected="floating-point",
        got="int32",
    ),
    bad_sequence(
        "no time axis",
        lambda xs, **_: {"xs": xs[0]},
        ValueError,
        argument="xs",
        expected="time, batch, features",
        got=r"\(2, 3\)",
    ),
    bad_sequence(
        "a mask of another length",
        lambda xs, **_: {"mask": jnp.ones((2, 2), bool)},
        ValueError,
        argument="mask",
        expected=r"bool \[time, batch\] = \(3, 2\)",
        got=r"\(2, 2\)",
    ),
    bad_sequence(
        "the carry of another batch",
        lambda carry, **_: {"carry": jax.tree.map(lambda leaf: leaf[:1], carry)},
        ValueError,
        argument="carry",
        expected=r"\(2, 2, 2\)",
        got=r"\(1, 2, 2\)",
    ),
)


def masked_arguments(generator, batch, dtype):
    mask = jnp.asarray(generator.random((3, *batch)) < 0.7)
    return *sequence_arguments(generator, batch, dtype), mask


def masked_reversed(params, xs, carry, mask):
    """The padding must not count, in the direction in which it comes first."""
    return ordered.on_lstm(params, xs, carry, chunk_size=CHUNK, mask=mask, reverse=True)


# On saturated gates a matrix product must not overflow: 3 + 4 products of inputs and weights.
LAYER = {"differentiable": (0, 1, 2), "extreme": 0.05, "extreme_arguments": (1,)}

ROWS = [
    Row(
        name="zoo.ordered.activation_penalty",
        function=ordered.activation_penalty,
        arguments=states,
        axes=(0,),
        wide=True,
        extreme=1e-30,  # squares
        bad=(
            BadInput(
                "no batch",
                lambda: ordered.activation_penalty(jnp.ones((3, 4))),
                ValueError,
                argument="hidden",
                expected=r"\[batch, time, units\]",
                got=r"\(3, 4\)",
            ),
        ),
    ),
    Row(
        name="zoo.ordered.weight_drop",
        function=functools.partial(ordered.weight_drop, rate=0.25, inverted=False),
        arguments=noise_arguments,
        axes=(None, 0),
        differentiable=(1,),
        random=True,
        skip={"shard_map_equals_unsharded": "each device draws its own mask"},
        bad=(
            BadInput(
                "a negative rate",
                lambda: ordered.weight_drop(None, jnp.ones(3), rate=-1),
                ValueError,
                argument="rate",
                expected=r"\[0, 1\)",
                got="got -1",
            ),
        ),
    ),
    *(
        Row(
            name=f"zoo.ordered.{function.__name__}",
            variant="reverse" if reverse else "",
            function=functools.partial(function, reverse=reverse),
            arguments=logits,
            axes=(0,),
            # The logarithm may reach twice the largest input.
            extreme=1.0 if function is ordered.cumax else 0.4,
            bad=(bad_logits(function),),
        )
        for function in (ordered.cumax, ordered.log_cumax)
        for reverse in (False, True)
    ),
    Row(
        name="zoo.ordered.master_gates",
        function=functools.partial(ordered.master_gates, chunk_size=CHUNK),
        arguments=gate_arguments,
        axes=(None, 0, 0),
        wide=True,
        bad=bad_layer(ordered.master_gates, gate_arguments),
        **LAYER,
    ),
    Row(
        name="zoo.ordered.on_lstm_step",
        function=functools.partial(ordered.on_lstm_step, chunk_size=CHUNK),
        arguments=step_arguments,
        axes=(None, 0, 0),
        wide=(False, True),
        state=(1, 0),
        bad=bad_layer(ordered.on_lstm_step, step_arguments),
        **LAYER | {"extreme_arguments": (2,)},
    ),
    *(
        Row(
            name="zoo.ordered.on_lstm",
            variant=master_input,
            function=functools.partial(
                ordered.on_lstm, chunk_size=CHUNK, master_input=master_input
            ),
            arguments=sequence_arguments,
            axes=(None, 1, 0),
            out_axes=ordered.OnLstmOutput(1, 0, 1),
            wide=ordered.OnLstmOutput(False, False, True),
            bad=bad_layer(ordered.on_lstm, sequence_arguments) + BAD_SEQUENCES,
            **LAYER,
        )
        for master_input in ("complement", "reverse")
    ),
    Row(
        name="zoo.ordered.on_lstm",
        variant="masked, reversed",
        function=masked_reversed,
        arguments=masked_arguments,
        axes=(None, 1, 0, 1),
        out_axes=ordered.OnLstmOutput(1, 0, 1),
        wide=ordered.OnLstmOutput(False, False, True),
        **LAYER,
    ),
    Row(
        name="zoo.ordered.dropout",
        function=functools.partial(ordered.dropout, rate=0.25, shared_axes=(-1,)),
        arguments=noise_arguments,
        axes=(None, 0),
        differentiable=(1,),
        extreme=0.5,  # what stays is divided by 0.75
        random=True,
        skip={"shard_map_equals_unsharded": "each device draws its own mask"},
        bad=(
            BadInput(
                "nothing left",
                lambda: ordered.dropout(jax.random.key(0), jnp.ones(3), rate=1),
                ValueError,
                argument="rate",
                expected=r"\[0, 1\)",
                got="got 1",
            ),
        ),
    ),
]

EXEMPT = {
    "zoo.ordered.load_original": "changes a module from arrays on the host",
    "zoo.ordered.original_parameter_count": "counts from static sizes",
    "zoo.ordered.nt_asgd": "an Optax transformation, tested in test_nt_asgd.py",
    "zoo.ordered.observe_validation": "takes an optimiser's state, tested in test_nt_asgd.py",
    "zoo.ordered.nt_asgd_parameters": "takes an optimiser's state, tested in test_nt_asgd.py",
    "zoo.ordered.draw_gates": "draws with matplotlib",
    "zoo.ordered.draw_trees": "draws with matplotlib",
    "zoo.ordered.initial_carry": "zeros from static sizes, no array argument",
    "zoo.ordered.depths_to_tree": "returns nested lists of words, on the host",
    "zoo.ordered.split_tree": "returns nested lists of words, on the host",
    "zoo.ordered.spans_to_tree": "returns nested lists of words, on the host",
    "zoo.ordered.prune_tree": "takes nested lists of words, on the host",
    "zoo.ordered.right_branching_tree": "returns nested lists of words, on the host",
    "zoo.ordered.left_branching_tree": "returns nested lists of words, on the host",
    "zoo.ordered.balanced_tree": "returns nested lists of words, on the host",
    "zoo.ordered.random_tree": "returns nested lists of words, on the host",
    "zoo.ordered.binarized_tree": "takes nested lists of words, on the host",
    "zoo.ordered.corpus_scores": "takes nested lists of words, on the host",
    "zoo.ordered.label_recall": "takes nested lists of words, on the host",
    "zoo.ordered.mean_word_depth": "takes nested lists of words, on the host",
    "zoo.ordered.parsing_table": "takes nested lists of words, on the host",
    "zoo.ordered.parse_brackets": "reads text",
    "zoo.ordered.keep_words": "takes labelled trees, on the host",
    "zoo.ordered.read_treebank": "reads files",
    "zoo.ordered.tree_words": "takes nested lists of words, on the host",
    "zoo.ordered.tree_spans": "takes nested lists of words, on the host",
    "zoo.ordered.bracket_scores": "takes nested lists of words, on the host",
}
