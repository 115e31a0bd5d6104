"""Battery rows of `zoo.orthogonal`."""

import functools

import jax.numpy as jnp
import optax

from tests.battery import BadInput, Row
from zoo import orthogonal
from zoo.orthogonal import KernelAxes
from zoo.orthogonal.angles import random_angle_density

ENTRIES, FILTERS = 4, 3
# float16 in, float32 inside: what is left is the rounding of the input itself, squared.
INPUT_ROUNDING = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 8e-3}


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


def one_update(kernel):
    """A step of the transformation on updates of zeros, for a stack of kernels."""
    transformation = orthogonal.add_orthogonality_penalty(0.1, axes=KernelAxes(batch=0))
    state = transformation.init(kernel)
    return transformation.update(jnp.zeros_like(kernel), state, kernel)[0]


def refusals(function, *cases):
    """Calls that must be refused: error, what the message must say, arguments, options."""
    return tuple(
        BadInput(
            f"{arguments} {options}",
            functools.partial(function, *arguments, **options),
            error,
            argument=says[0],
            expected=says[1],
            got=says[2],
        )
        for error, says, arguments, options in cases
    )


ONES, VOLUME = jnp.ones((2, 3)), jnp.ones((2, 3, 4))
INTEGERS = jnp.ones((2, 3), int)
BAD_PENALTIES = refusals(
    orthogonal.orthogonality_penalty,
    (ValueError, ("kernel", "at least one more", r"\(3,\)"), (jnp.ones(3),), {}),
    (TypeError, ("kernel", "floating-point", "int32"), (INTEGERS,), {}),
    (
        ValueError,
        ("kernel", "KernelAxes.filters=2", r"\(2, 3\)"),
        (ONES,),
        {"axes": KernelAxes(filters=2)},
    ),
    (
        ValueError,
        ("kernel", "each once", r"\(2, 3, 4\)"),
        (VOLUME,),
        {"axes": KernelAxes(filters=-1, batch=(0, 2))},
    ),
    (TypeError, ("axes", "KernelAxes", "got 0"), (ONES,), {"axes": 0}),
    (ValueError, ("kind", "'soft', 'double_soft'", "got 'srip'"), (ONES,), {"kind": "srip"}),
    (
        ValueError,
        ("power_iterations", "at least 1", "got 0"),
        (ONES,),
        {"power_iterations": 0},
    ),
)
BAD_LOSSES = refusals(
    orthogonal.self_orthogonality,
    (ValueError, ("y must", r"\[B, K\]", r"\(3,\)"), (ONES[0],), {}),
    (TypeError, ("y must", "floating-point", "int32"), (INTEGERS,), {}),
    (ValueError, ("sharpness", "> 0", "got 0"), (ONES,), {"sharpness": 0}),
    (ValueError, ("sharpness", "finite", "got inf"), (ONES,), {"sharpness": float("inf")}),
    (ValueError, ("reduction", "'sum', 'mean'", "got 'none'"), (ONES,), {"reduction": "none"}),
    (ValueError, ("mean_weight", "≥ 0", "got -1"), (ONES,), {"mean_weight": -1.0}),
)
BAD_LAYERS = refusals(
    orthogonal.filter_responses,
    (ValueError, ("kernel", r"x \[\.\.\., D\]", r"x \(2, 3\)"), (ONES, jnp.ones((4, 5))), {}),
    (
        ValueError,
        ("kernel", r"\[B, \*space, I\]", r"x \(2, 3\)"),
        (ONES, jnp.ones((3, 3, 3, 5))),
        {},
    ),
    (TypeError, ("x must", "floating-point", "int32"), (INTEGERS, jnp.ones((3, 5))), {}),
)
BAD_DIMENSIONS = refusals(
    random_angle_density,
    (ValueError, ("dimension", "at least 2", "got 1"), (jnp.ones(3),), {"dimension": 1}),
    (TypeError, ("dimension", "integer", r"got 9\.0"), (jnp.ones(3),), {"dimension": 9.0}),
    (TypeError, ("degrees", "floating-point", "int32"), (jnp.arange(3),), {"dimension": 9}),
)
BAD_STRENGTHS = refusals(
    orthogonal.add_orthogonality_penalty,
    (ValueError, ("strength", "≥ 0", "got -0.001"), (-1e-3,), {}),
    (ValueError, ("kind", "'soft'", "'hard'"), (1e-3,), {"kind": "hard"}),
)
PARAMETERS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
BAD_PARAMETERS = (
    *refusals(
        orthogonal.add_orthogonality_penalty(1e-3, mask=True).init,
        (ValueError, ("parameter bias", "mask them out", r"\(3,\)"), (PARAMETERS,), {}),
    ),
    *refusals(
        orthogonal.add_orthogonality_penalty(1e-3).update,
        (ValueError, ("params", "must be given", "None"), (PARAMETERS, optax.EmptyState()), {}),
    ),
)

ROWS = [
    Row(
        name="zoo.orthogonal.sign_correlation",
        function=orthogonal.sign_correlation,
        arguments=responses,
        axes=(0,),
        out_axes=None,
        batch=(8,),
        axis_name=True,
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
            # Subtracting the mean may double the largest response.
            extreme=0.4 if center else 1.0,
            bad=() if center else BAD_LOSSES,
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
            bad=BAD_PENALTIES if kind == "soft" else (),
        )
        # Not double_soft, which is the code of soft.
        for kind in ("soft", "off_diagonal", "mutual_coherence", "spectral")
    ),
    Row(
        name="zoo.orthogonal.add_orthogonality_penalty",
        function=one_update,
        arguments=kernels,
        axes=(0,),
        tolerance=INPUT_ROUNDING,
        extreme=1e-30,
        pmap=True,
        bad=BAD_STRENGTHS + BAD_PARAMETERS,
    ),
    Row(
        name="zoo.orthogonal.filter_angles",
        function=functools.partial(orthogonal.filter_angles, axes=KernelAxes(batch=0)),
        arguments=kernels,
        axes=(0,),
        wide=True,
        tolerance=INPUT_ROUNDING,
        differentiable=(),  # a statistic: no slope for parallel filters
    ),
    Row(
        name="zoo.orthogonal.angles.random_angle_density",
        function=functools.partial(random_angle_density, dimension=9),
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
            bad=BAD_LAYERS if arguments is dense else (),
        )
        for arguments in (dense, convolution)
    ),
]

EXEMPT = {}

TRANSFORMATIONS = [functools.partial(orthogonal.add_orthogonality_penalty, strength=0.1)]
