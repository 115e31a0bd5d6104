"""Battery rows of `zoo.spherical`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.battery import BadInput, Row
from zoo import spherical

SIZE = 4


def unit_arrays(generator, batch, count):
    x = generator.normal(size=(count, *batch, SIZE))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def units(generator, batch, dtype, count):
    return tuple(jnp.asarray(v, dtype) for v in unit_arrays(generator, batch, count))


def vectors(count):
    return lambda generator, batch, dtype: units(generator, batch, dtype, count)


def tangents(generator, batch, dtype):
    x, y, v = unit_arrays(generator, batch, 3)
    v = v - np.sum(x * v, axis=-1, keepdims=True) * x
    return tuple(jnp.asarray(a, dtype) for a in (x, y, v))


def keyed(generator, batch, dtype):
    return jax.random.key(int(generator.integers(100))), *units(generator, batch, dtype, 1)


def bad_sizes(function, count):
    name = function.__name__
    x = jnp.ones((2, SIZE))
    arguments = [x] * (count - 1) + [x[:, 1:]]
    bad = [
        BadInput(
            "integers",
            lambda: function(*[jnp.arange(3)] * count),
            TypeError,
            argument=f"{name}: ",
            expected="floating-point",
            got="int32",
        )
    ]
    if count > 1:
        bad.append(
            BadInput(
                "another size",
                lambda: function(*arguments),
                ValueError,
                argument=name,
                expected="one size D",
                got=r"\(2, 3\)",
            )
        )
    return tuple(bad)


def row(function, count, *, arguments=None, bound=None, **changes):
    return Row(
        name=f"zoo.spherical.{function.__name__}",
        function=bound or function,
        arguments=arguments or vectors(count),
        axes=(0,) * count,
        differentiable=tuple(range(count)),
        bad=bad_sizes(function, count) if bound is None else (),
        **{"extreme": 0.1, **changes},
    )


def bad_margin(function, count):
    x = jnp.ones((2, SIZE))
    return (
        BadInput(
            "no margin",
            lambda: function(*[x] * count, margin=-1.0),
            ValueError,
            argument="margin",
            expected="positive",
            got="-1",
        ),
    )


ROWS = [
    row(spherical.normalize, 1, extreme=1.0),
    # Products of two or three vectors: unit ones, beside one of any length.
    row(spherical.tangent_projection, 2, extreme=0.1, extreme_arguments=(1,)),
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
        bound=functools.partial(spherical.jose_loss, margin=3.0),
        extreme_arguments=(2,),
        extreme=1e-2,
    ),
    row(
        spherical.two_hinges_update,
        3,
        bound=functools.partial(spherical.two_hinges_update, learning_rate=0.1, margin=3.0),
        extreme=1e-33,  # products of five numbers
    ),
    Row(
        name="zoo.spherical.von_mises_fisher_log_density",
        function=functools.partial(spherical.von_mises_fisher_log_density, concentration=2.0),
        arguments=vectors(2),
        axes=(0, 0),
        differentiable=(0, 1),
        extreme=1e-20,
    ),
    Row(
        name="zoo.spherical.random_von_mises_fisher",
        function=functools.partial(spherical.random_von_mises_fisher, concentration=2.0),
        arguments=keyed,
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
        arguments=lambda generator, batch, dtype: (jax.random.key(int(generator.integers(9))),),
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
    "zoo.spherical.build_vocabulary": "reads text, on the host",
    "zoo.spherical.encode_corpus": "reads text, on the host",
    "zoo.spherical.letters": "splits text, on the host",
    "zoo.spherical.save_word2vec": "writes a file",
    "zoo.spherical.load_word2vec": "reads a file",
    "zoo.spherical.save_embeddings": "writes a file",
    "zoo.spherical.load_embeddings": "reads a file",
    "zoo.spherical.train_jose": "a whole training run; see test_trainer.py",
    "zoo.spherical.embed_documents": "a whole training run; see test_trainer.py",
    "zoo.spherical.word_similarity": "scores on the host",
    "zoo.spherical.read_word_pairs": "reads a file",
    "zoo.spherical.cluster_documents": "scikit-learn, on the host",
    "zoo.spherical.classify_documents": "scikit-learn, on the host",
    "zoo.spherical.draw_map": "draws with matplotlib",
    "zoo.spherical.riemannian_sgd": "returns a transformation; see test_optimizers.py",
    "zoo.spherical.riemannian_momentum": "returns a transformation; see test_optimizers.py",
    "zoo.spherical.riemannian_adam": "returns a transformation; see test_optimizers.py",
}
