"""Battery rows of `zoo.spherical`; what the functions refuse is in the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.battery import BadInput, Row
from zoo import spherical
from zoo.spherical.objective import two_hinges_loss
from zoo.spherical.optimizers import RiemannianSgdState, riemannian_adam, riemannian_momentum
from zoo.spherical.von_mises_fisher import (
    random_von_mises_fisher,
    von_mises_fisher_entropy,
    von_mises_fisher_log_density,
    von_mises_fisher_mean,
)

SIZE = 4


def unit_arrays(generator, batch, count):
    x = generator.normal(size=(count, *batch, SIZE))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def vectors(count):
    return lambda generator, batch, dtype: tuple(
        jnp.asarray(v, dtype) for v in unit_arrays(generator, batch, count)
    )


def tangents(generator, batch, dtype):
    x, y, v = unit_arrays(generator, batch, 3)
    v = v - np.sum(x * v, axis=-1, keepdims=True) * x
    return tuple(jnp.asarray(a, dtype) for a in (x, y, v))


def key(generator):
    return jax.random.key(int(generator.integers(100)))


def refuses(function, count):
    """Every function refuses integers, and one vector of another size."""
    x = jnp.ones((2, SIZE))
    name = function.__name__
    bad = [(lambda: function(*[jnp.arange(3)] * count), TypeError, "floating-point", "int32")]
    if count > 1:
        arguments = [x] * (count - 1) + [x[:, 1:]]
        bad.append((lambda: function(*arguments), ValueError, r"\.\.\., D.*is 4", r"\[2, 3\]"))
    if function in (spherical.jose_loss, two_hinges_loss):
        bad.append((lambda: function(*[x] * count, margin=0), ValueError, "margin.*> 0", "got 0"))
    return tuple(
        BadInput(expected, call, error, "margin" if "margin" in expected else name, expected, got)
        for call, error, expected, got in bad
    )


def row(function, count, *, arguments=None, options=None, module="zoo.spherical", **changes):
    return Row(
        name=f"{module}.{function.__name__}",
        function=functools.partial(function, **options) if options else function,
        arguments=arguments or vectors(count),
        axes=(0,) * count,
        differentiable=tuple(range(count)),
        bad=refuses(function, count),
        **{"extreme": 0.1, **changes},
    )


ROWS = [
    row(spherical.normalize, 1, extreme=1.0),
    # Products of two or three vectors: unit ones, beside one of any length.
    row(spherical.tangent_projection, 2, extreme_arguments=(1,)),
    row(spherical.retract, 2),
    row(
        spherical.exponential_map,
        2,
        extreme_arguments=(1,),
        skip={"finite_at_extremes": "|v| radians have no digits left at the largest numbers"},
    ),
    row(spherical.logarithmic_map, 2, extreme=1e-20, extreme_arguments=(1,)),
    row(spherical.geodesic_distance, 2),
    row(
        spherical.parallel_transport,
        3,
        arguments=tangents,
        extreme=1e-2,
        extreme_arguments=(2,),
    ),
    row(
        spherical.jose_loss,
        4,
        options={"margin": 3.0},
        extreme_arguments=(2,),
        extreme=1e-2,
    ),
    row(
        two_hinges_loss,
        3,
        options={"margin": 3.0},
        module="zoo.spherical.objective",
        extreme=1e-33,  # squares of products
        skip={"gradients_match_differences": "its terms stop parts of their gradients"},
    ),
    Row(
        name="zoo.spherical.riemannian_sgd",
        function=spherical.riemannian_sgd(optax.linear_schedule(0.3, 0.1, 5)).update,
        arguments=lambda generator, batch, dtype: (
            jnp.asarray(generator.normal(size=(*batch, SIZE)), dtype),
            RiemannianSgdState(jnp.zeros((), jnp.int32)),
            *vectors(1)(generator, batch, dtype),
        ),
        axes=(0, None, 0),
        out_axes=(0, None),
        differentiable=(0, 2),
        state=(1, 1),
        extreme=1e-20,  # squares of the gradient
        extreme_arguments=(0,),
        pmap=True,
    ),
    Row(
        name="zoo.spherical.von_mises_fisher.von_mises_fisher_log_density",
        function=functools.partial(von_mises_fisher_log_density, concentration=2.0),
        arguments=vectors(2),
        axes=(0, 0),
        differentiable=(0, 1),
        extreme=1e-20,
    ),
    Row(
        name="zoo.spherical.von_mises_fisher.von_mises_fisher_mean",
        function=von_mises_fisher_mean,
        arguments=lambda generator, batch, dtype: (
            *vectors(1)(generator, batch, dtype),
            jnp.asarray(generator.uniform(0.1, 9, batch), dtype),
        ),
        axes=(0, 0),
        differentiable=(0, 1),
        extreme=1e-3,  # of the largest number
        extreme_arguments=(0,),
    ),
    Row(
        name="zoo.spherical.von_mises_fisher.von_mises_fisher_entropy",
        function=functools.partial(von_mises_fisher_entropy, size=SIZE),
        arguments=lambda generator, batch, dtype: (
            jnp.asarray(generator.uniform(0.1, 9, batch), dtype),
        ),
        axes=(0,),
        differentiable=(0,),
        skip={"finite_at_extremes": "a negative concentration gives NaN"},
    ),
    *(
        Row(
            name=f"zoo.spherical.{function.__name__}",
            function=function,
            arguments=lambda generator, batch, dtype: vectors(1)(generator, (*batch, 5), dtype),
            axes=(0,),
            differentiable=(0,),
            extreme=0.1,
            skip={
                "finite_at_extremes": "points of the sphere have length 1",
                "gradients_match_differences": "on the sphere, in test_von_mises_fisher.py",
                "sharded_equals_unsharded": "its loop ends on all devices together",
            },
            bad=(
                BadInput(
                    "one point without its axis",
                    lambda function=function: function(jnp.ones(3)),
                    ValueError,
                    argument=f"{function.__name__}: x",
                    expected=r"\[..., N, D\]",
                    got=r"got \[3\]",
                ),
            ),
        )
        for function in (spherical.fit_von_mises_fisher, spherical.frechet_mean)
    ),
    Row(
        name="zoo.spherical.von_mises_fisher.random_von_mises_fisher",
        function=functools.partial(random_von_mises_fisher, concentration=2.0),
        arguments=lambda generator, batch, dtype: (
            key(generator),
            *vectors(1)(generator, batch, dtype),
        ),
        axes=(None, 0),
        differentiable=(),
        random=True,
        skip={
            "vmap_equals_loop": "the shape of the draw is that of the batch",
            "sharded_equals_unsharded": "a rejection loop ends on all devices together",
            "shard_map_equals_unsharded": "each device would draw the same numbers",
        },
    ),
    Row(
        name="zoo.spherical.random_uniform",
        function=functools.partial(spherical.random_uniform, shape=(3, SIZE)),
        arguments=lambda generator, batch, dtype: (key(generator),),
        axes=(None,),
        differentiable=(),
        random=True,
        skip={"keeps_dtype": "it has no floating-point input; the dtype is an option"},
        bad=(
            BadInput(
                "no axis",
                lambda: spherical.random_uniform(jax.random.key(0), ()),
                ValueError,
                argument="shape",
                expected="D ≥ 1",
                got=r"got \(\)",
            ),
        ),
    ),
]

EXEMPT = {
    "zoo.spherical.save_embeddings": "writes a file",
    "zoo.spherical.load_embeddings": "reads a file",
    "zoo.spherical.load_word2vec": "reads a file",
    "zoo.spherical.train_jose": "a complete training; see test_trainer.py",
    "zoo.spherical.embed_documents": "a complete training; see test_trainer.py",
}

TRANSFORMATIONS = [
    functools.partial(make, learning_rate=0.1)
    for make in (spherical.riemannian_sgd, riemannian_momentum, riemannian_adam)
]
