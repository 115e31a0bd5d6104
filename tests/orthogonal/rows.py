"""Battery rows of `zoo.orthogonal`."""

import functools

import jax.numpy as jnp
import optax

from tests.battery import BadInput, Row
from zoo import orthogonal
from zoo.orthogonal import KernelAxes

# Not double_soft, which is the code of soft.
KINDS = ("soft", "off_diagonal", "mutual_coherence", "spectral")
ENTRIES, FILTERS = 4, 3


def normal(generator, shape, dtype, scale=1.0):
    return jnp.asarray(scale * generator.normal(size=shape), dtype)


def responses(generator, batch, dtype):
    return (normal(generator, (*batch, FILTERS), dtype, 0.2),)


def kernels(generator, batch, dtype):
    """A stack of kernels; every one counts for itself."""
    return (normal(generator, (*batch, ENTRIES, FILTERS), dtype, 0.5),)


def angles(generator, batch, dtype):
    return (jnp.asarray(generator.uniform(20, 160, size=(*batch, 3)), dtype),)


def dense(generator, batch, dtype):
    x = normal(generator, (*batch, ENTRIES), dtype)
    return x, normal(generator, (ENTRIES, FILTERS), dtype)


def convolution(generator, batch, dtype):
    x = normal(generator, (*batch, 4, 5, 2), dtype)
    return x, normal(generator, (3, 2, 2, FILTERS), dtype)


def bad(label, call, error, argument, expected, got):
    return BadInput(label, call, error, argument, expected, got)


def bad_kernels(function):
    name = function.__name__
    return (
        bad(
            f"{name}: a kernel of rank 1",
            lambda: function(jnp.ones(3)),
            ValueError,
            argument="kernel",
            expected="at least one more",
            got=r"\(3,\)",
        ),
        bad(
            f"{name}: integers",
            lambda: function(jnp.ones((2, 3), int)),
            TypeError,
            argument="kernel",
            expected="floating-point",
            got="int32",
        ),
        bad(
            f"{name}: an axis that is not there",
            lambda: function(jnp.ones((2, 3)), axes=KernelAxes(filters=2)),
            ValueError,
            argument="kernel",
            expected="KernelAxes.filters=2",
            got=r"\(2, 3\)",
        ),
        bad(
            f"{name}: an axis of two roles",
            lambda: function(jnp.ones((2, 3, 4)), axes=KernelAxes(filters=-1, batch=(0, 2))),
            ValueError,
            argument="kernel",
            expected="each once",
            got=r"\(2, 3, 4\)",
        ),
        bad(
            f"{name}: axes as a bare number",
            lambda: function(jnp.ones((2, 3)), axes=0),
            TypeError,
            argument="axes",
            expected="KernelAxes",
            got="got 0",
        ),
    )


BAD_PENALTIES = (
    bad(
        "an unknown kind",
        lambda: orthogonal.orthogonality_penalty(jnp.ones((2, 3)), kind="srip"),
        ValueError,
        argument="kind",
        expected="soft, double_soft, off_diagonal, mutual_coherence, spectral",
        got="got 'srip'",
    ),
    bad(
        "no iterations",
        lambda: orthogonal.orthogonality_penalty(jnp.ones((2, 3)), power_iterations=0),
        ValueError,
        argument="power_iterations",
        expected="at least 1",
        got="got 0",
    ),
)


def bad_responses(function):
    y = jnp.ones((2, 3))
    return (
        bad(
            "no batch axis",
            lambda: function(y[0]),
            ValueError,
            argument="y must",
            expected=r"\[B, K\]",
            got=r"\(3,\)",
        ),
        bad(
            "integers",
            lambda: function(y.astype(int)),
            TypeError,
            argument="y must",
            expected="floating-point",
            got="int32",
        ),
        bad(
            "a flat sign",
            lambda: function(y, sharpness=0),
            ValueError,
            argument="sharpness",
            expected="positive",
            got="got 0",
        ),
        bad(
            "an infinite sharpness",
            lambda: function(y, sharpness=float("inf")),
            ValueError,
            argument="sharpness",
            expected="finite",
            got="got inf",
        ),
    )


def bad_losses(function):
    y = jnp.ones((2, 3))
    return (
        *bad_responses(function),
        bad(
            "an unknown reduction",
            lambda: function(y, reduction="none"),
            ValueError,
            argument="reduction",
            expected="'sum' or 'mean'",
            got="got 'none'",
        ),
        bad(
            "a negative weight",
            lambda: function(y, mean_weight=-1.0),
            ValueError,
            argument="mean_weight",
            expected="at least 0",
            got="got -1",
        ),
    )


BAD_LAYERS = (
    bad(
        "another number of features",
        lambda: orthogonal.filter_responses(jnp.ones((2, 3)), jnp.ones((4, 5))),
        ValueError,
        argument="kernel",
        expected=r"x \[\.\.\., D\]",
        got=r"\(4, 5\) and x \(2, 3\)",
    ),
    bad(
        "a convolution of vectors",
        lambda: orthogonal.filter_responses(jnp.ones((2, 3)), jnp.ones((3, 3, 3, 5))),
        ValueError,
        argument="kernel",
        expected=r"\[B, \*space, I\]",
        got=r"x \(2, 3\)",
    ),
    bad(
        "bytes",
        lambda: orthogonal.filter_responses(jnp.ones((2, 3), jnp.uint8), jnp.ones((3, 5))),
        TypeError,
        argument="x must",
        expected="floating-point",
        got="uint8",
    ),
)

BAD_DIMENSIONS = (
    bad(
        "a line",
        lambda: orthogonal.random_angle_density(jnp.ones(3), dimension=1),
        ValueError,
        argument="dimension",
        expected="at least 2",
        got="got 1",
    ),
    bad(
        "a dimension as a float",
        lambda: orthogonal.random_angle_density(jnp.ones(3), dimension=9.0),
        ValueError,
        argument="dimension",
        expected="int",
        got=r"got 9\.0",
    ),
    bad(
        "integer degrees",
        lambda: orthogonal.random_angle_density(jnp.arange(3), dimension=9),
        TypeError,
        argument="degrees",
        expected="floating-point",
        got="int32",
    ),
)


def one_update(kernel):
    """A step of the transformation on updates of zeros, for a stack of kernels."""
    transformation = orthogonal.add_orthogonality_penalty(0.1, axes=KernelAxes(batch=0))
    state = transformation.init(kernel)
    return transformation.update(jnp.zeros_like(kernel), state, kernel)[0]


ONE = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
BAD_TRANSFORMATIONS = (
    bad(
        "a negative strength",
        lambda: orthogonal.add_orthogonality_penalty(-1e-3),
        ValueError,
        argument="strength",
        expected="at least 0",
        got="got -0.001",
    ),
    bad(
        "an unknown kind",
        lambda: orthogonal.add_orthogonality_penalty(1e-3, kind="hard"),
        ValueError,
        argument="kind",
        expected="soft",
        got="'hard'",
    ),
    bad(
        "a bias that is to be penalised",
        lambda: orthogonal.add_orthogonality_penalty(1e-3, mask=True).init(ONE),
        ValueError,
        argument="parameter .'bias'.",
        expected="mask them out",
        got=r"\(3,\)",
    ),
    bad(
        "no parameters",
        lambda: orthogonal.add_orthogonality_penalty(1e-3).update(ONE, optax.EmptyState()),
        ValueError,
        argument="params",
        expected="must be given",
        got="got None",
    ),
)

# float16 in, float32 inside: what is left is the rounding of the input itself, squared.
INPUT_ROUNDING = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 8e-3}

ROWS = [
    Row(
        name="zoo.orthogonal.sign_correlation",
        function=orthogonal.sign_correlation,
        arguments=responses,
        axes=(0,),
        out_axes=None,
        batch=(8,),
        axis_name=True,
        bad=bad_responses(orthogonal.sign_correlation),
    ),
    *(
        Row(
            name="zoo.orthogonal.self_orthogonality",
            variant=reduction,
            function=functools.partial(
                orthogonal.self_orthogonality, reduction=reduction, center=center
            ),
            arguments=responses,
            axes=(0,),
            out_axes=None,
            batch=(8,),
            axis_name=True,
            wide=True,
            tolerance=INPUT_ROUNDING,
            # Taken off, the mean may double the largest response.
            extreme=0.4 if center else 1.0,
            bad=bad_losses(orthogonal.self_orthogonality),
        )
        for reduction, center in (("sum", False), ("mean", True))
    ),
    *(
        Row(
            name="zoo.orthogonal.orthogonality_penalty",
            variant=kind,
            function=functools.partial(
                orthogonal.orthogonality_penalty,
                kind=kind,
                axes=KernelAxes(batch=0),
                # The derivative is that of the norm itself: it needs the vector to have converged.
                power_iterations=200,
            ),
            arguments=kernels,
            axes=(0,),
            wide=True,
            tolerance=INPUT_ROUNDING,
            extreme=1e-30,  # fourth powers
            bad=bad_kernels(orthogonal.orthogonality_penalty) + BAD_PENALTIES,
        )
        for kind in KINDS
    ),
    Row(
        name="zoo.orthogonal.add_orthogonality_penalty",
        function=one_update,
        arguments=kernels,
        axes=(0,),
        tolerance=INPUT_ROUNDING,
        extreme=1e-30,
        bad=BAD_TRANSFORMATIONS,
    ),
    Row(
        name="zoo.orthogonal.filter_angles",
        function=functools.partial(orthogonal.filter_angles, axes=KernelAxes(batch=0)),
        arguments=kernels,
        axes=(0,),
        wide=True,
        tolerance=INPUT_ROUNDING,
        differentiable=(),  # a statistic: no slope for parallel filters
        bad=bad_kernels(orthogonal.filter_angles),
    ),
    Row(
        name="zoo.orthogonal.random_angle_density",
        function=functools.partial(orthogonal.random_angle_density, dimension=9),
        arguments=angles,
        axes=(0,),
        tolerance=INPUT_ROUNDING,
        bad=BAD_DIMENSIONS,
    ),
    *(
        Row(
            name="zoo.orthogonal.filter_responses",
            variant=arguments.__name__,
            function=orthogonal.filter_responses,
            arguments=arguments,
            axes=(0, None),
            differentiable=(0, 1),
            extreme=1e-3,
            extreme_arguments=(0,),
            bad=BAD_LAYERS,
        )
        for arguments in (dense, convolution)
    ),
]

EXEMPT = {
    "zoo.orthogonal.random_angle_std": "a float from a static size, no array argument",
}
