"""Penalties on kernels: formulas, closed-form gradients, limits, axes, the transformation."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from tests.battery import quick_jit
from zoo.orthogonal import KernelAxes, add_orthogonality_penalty, orthogonality_penalty

KINDS = ("soft", "double_soft", "off_diagonal", "mutual_coherence", "spectral")
SHAPES = {"tall": (7, 4), "wide": (4, 7), "very wide": (3, 11)}

penalty = quick_jit(orthogonality_penalty, static_argnames=("kind", "axes"))
slope = quick_jit(jax.grad(orthogonality_penalty), static_argnames=("kind", "axes"))
value_and_slope = quick_jit(jax.value_and_grad(orthogonality_penalty), static_argnames=("kind",))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def orthonormal(seed, entries, filters):
    return np.linalg.qr(normal(seed, entries, filters))[0]


def by_definition(w, kind):
    """Value and gradient as the module docstring writes them."""
    distance = w.T @ w - np.eye(w.shape[1])
    if kind == "soft":
        return (distance**2).sum(), 4 * w @ distance
    if kind == "double_soft":
        other = w @ w.T - np.eye(w.shape[0])
        return (distance**2).sum() + (other**2).sum(), 4 * (w @ distance + other @ w)
    if kind == "off_diagonal":
        pairs = distance - np.diag(np.diag(distance))
        return (pairs**2).sum(), 4 * w @ pairs
    if kind == "mutual_coherence":
        i, j = divmod(np.abs(distance).argmax(), len(distance))
        gradient = np.zeros_like(w)
        gradient[:, i] += np.sign(distance[i, j]) * w[:, j]
        gradient[:, j] += np.sign(distance[i, j]) * w[:, i]
        return np.abs(distance).max(), gradient
    values, vectors = np.linalg.eigh(distance)
    top = np.abs(values).argmax()
    v, u = vectors[:, top], np.sign(values[top]) * vectors[:, top]
    return np.linalg.norm(distance, ord=2), w @ (np.outer(v, u) + np.outer(u, v))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_closed_forms(kind, shape, double_precision):
    w = normal(0, *shape)
    found = value_and_slope(w, kind=kind, power_iterations=2000)
    for ours, expected in zip(found, by_definition(w, kind), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-8)


def test_second_derivatives(double_precision):
    w, tangent = normal(2, 6, 3), normal(3, 6, 3)
    for kind in ("soft", "off_diagonal"):
        product = quick_jit(
            lambda w, t, kind=kind: jax.jvp(
                lambda w: jax.grad(orthogonality_penalty)(w, kind=kind), (w,), (t,)
            )[1]
        )(w, tangent)
        step = 1e-5
        ahead, behind = (by_definition(w + s * tangent, kind)[1] for s in (step, -step))
        np.testing.assert_allclose(product, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_orthonormal_filters_are_free_and_at_rest(kind):
    value, gradient = value_and_slope(orthonormal(4, 4, 3).astype(np.float32), kind=kind)
    excess = 4 - 3 if kind == "double_soft" else 0  # WWᵀ cannot be the identity of 4
    np.testing.assert_allclose(value, excess, atol=1e-5)
    assert np.isfinite(gradient).all()
    exact = np.eye(4, 3, dtype=np.float32)  # where a norm is 0 it has no slope
    np.testing.assert_array_equal(value_and_slope(exact, kind=kind)[1], 0)
    value, gradient = by_definition(0 * exact, kind)
    np.testing.assert_allclose(value_and_slope(0 * exact, kind=kind)[0], value, rtol=1e-6)
    np.testing.assert_array_equal(value_and_slope(0 * exact, kind=kind)[1], gradient)
    nothing = np.zeros((4, 0), np.float32)
    assert penalty(nothing, kind=kind) == (4 if kind == "double_soft" else 0)


def test_off_diagonal_leaves_lengths_free():
    w = orthonormal(5, 8, 5) * np.array([1, 10, 0.1, 3, 0])
    np.testing.assert_allclose(penalty(w.astype(np.float32), kind="off_diagonal"), 0, atol=1e-8)
    assert penalty(w, kind="soft") > 1000


def test_limits_where_filters_outnumber_their_entries():
    entries, filters = 4, 12
    tight = orthonormal(6, filters, entries).T  # WWᵀ = I
    assert penalty(tight, kind="soft") == pytest.approx(filters - entries, rel=1e-5)
    assert penalty(tight, kind="double_soft") == pytest.approx(filters - entries, rel=1e-5)
    assert penalty(tight, kind="spectral") == pytest.approx(1, rel=1e-5)
    # Three orthonormal bases whose angles to each other are all equal reach Welch's bound.
    unit = normal(7, entries, filters)
    unit /= np.linalg.norm(unit, axis=0)
    assert penalty(unit, kind="off_diagonal") >= filters * (filters - entries) / entries
    union = np.concatenate([np.eye(4), hadamard(4) / 2, np.eye(4)], axis=1)
    assert penalty(union, kind="off_diagonal") == pytest.approx(
        filters * (filters - entries) / entries
    )


def hadamard(size):
    return np.array([[1]]) if size == 1 else np.kron([[1, 1], [1, -1]], hadamard(size // 2))


def test_the_other_side_is_another_penalty():
    """SRIP's PyTorch code takes the Gram matrix over the entries: with more of them, never 0."""
    w = orthonormal(8, 18, 4).reshape(3, 3, 2, 4).astype(np.float32)
    assert penalty(w, kind="spectral") < 1e-5
    over_entries = KernelAxes(filters=(0, 1, 2))
    assert penalty(w, kind="spectral", axes=over_entries) == pytest.approx(1, rel=1e-5)


def test_one_power_iteration_is_srip_and_more_come_closer(double_precision):
    w = normal(9, 12, 9)
    distance = w.T @ w - np.eye(9)
    v = distance @ np.random.default_rng(0).normal(size=9)  # the fixed start
    v /= np.linalg.norm(v)
    found = [float(penalty(w, kind="spectral", power_iterations=n)) for n in (1, 3, 10, 100, 1000)]
    assert found[0] == pytest.approx(np.linalg.norm(distance @ v))
    assert found == sorted(found)
    assert found[-1] == pytest.approx(np.linalg.norm(distance, ord=2))


@pytest.mark.parametrize("kind", ["soft", "spectral"])
def test_layouts(kind):
    """A kernel counts for what it is, however its axes are laid out."""
    kernel = normal(10, 3, 2, 4, 5).astype(np.float32)
    expected = penalty(kernel.reshape(24, 5), kind=kind)
    in_torch = penalty(kernel.transpose(3, 2, 0, 1), kind=kind, axes=KernelAxes(filters=0))
    np.testing.assert_allclose([in_torch, penalty(kernel, kind=kind)], [expected] * 2, rtol=1e-5)
    heads = penalty(kernel, kind=kind, axes=KernelAxes(filters=(0, 3), batch=1))
    each = [penalty(kernel[:, h].transpose(1, 0, 2).reshape(4, 15), kind=kind) for h in range(2)]
    np.testing.assert_allclose(heads, each, rtol=1e-5)


def test_float16_does_not_overflow():
    w = np.full((64, 64), 2, np.float16)
    value = penalty(w, kind="off_diagonal")
    assert value.dtype == jnp.float32
    assert value == 64 * 63 * 256**2


def products(function, *arguments):
    """The operations of the matrix products that a compiled program does."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return sum(count_products(jaxpr))


def count_products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shared = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            yield 2 * int(shared * np.prod(equation.outvars[0].aval.shape))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from count_products(inner)


@pytest.mark.parametrize(("entries", "filters"), [(64, 16), (16, 64)])
def test_a_gradient_costs_two_products_of_the_smaller_side(entries, filters):
    w = normal(11, entries, filters).astype(np.float32)

    def naive(w):
        return jnp.sum((w.T @ w - jnp.eye(filters)) ** 2)

    one = 2 * entries * filters * min(entries, filters)
    assert products(jax.value_and_grad(orthogonality_penalty), w) == 2 * one
    assert products(jax.value_and_grad(naive), w) == 3 * 2 * entries * filters**2
    coherence = jax.value_and_grad(lambda w: orthogonality_penalty(w, kind="mutual_coherence"))
    assert products(coherence, w) == 2 * entries * filters**2


# The transformation.

PARAMETERS = {
    "conv": {"kernel": normal(12, 3, 3, 2, 4).astype(np.float32), "bias": np.ones(4, np.float32)},
    "stack": {"kernel": normal(13, 2, 5, 3).astype(np.float32)},
}
AXES = {"conv": KernelAxes(), "stack": KernelAxes(batch=0)}


def updates_of(transformation, parameters=PARAMETERS):
    zeros, state = jax.tree.map(np.zeros_like, parameters), transformation.init(parameters)
    return quick_jit(transformation.update)(zeros, state, parameters)[0]


def test_it_adds_the_gradient_of_every_kernel():
    found = updates_of(add_orthogonality_penalty(0.5, axes=AXES))
    np.testing.assert_allclose(
        found["conv"]["kernel"], 0.5 * slope(PARAMETERS["conv"]["kernel"]), rtol=1e-5
    )
    for layer in range(2):
        own = slope(PARAMETERS["stack"]["kernel"][layer])
        np.testing.assert_allclose(found["stack"]["kernel"][layer], 0.5 * own, rtol=1e-5)
    np.testing.assert_array_equal(found["conv"]["bias"], 0)
    by_function = updates_of(add_orthogonality_penalty(0.5, axes=lambda parameters: AXES))
    jax.tree.map(np.testing.assert_array_equal, found, by_function)


def test_mask():
    mask = {"conv": {"kernel": True, "bias": False}, "stack": False}
    found = updates_of(add_orthogonality_penalty(1.0, mask=mask))
    assert np.abs(found["conv"]["kernel"]).min() > 0
    np.testing.assert_array_equal(found["stack"]["kernel"], 0)
    np.testing.assert_array_equal(found["conv"]["bias"], 0)
    by_function = updates_of(add_orthogonality_penalty(1.0, mask=lambda _: mask))
    jax.tree.map(np.testing.assert_array_equal, found, by_function)


def test_trees_without_kernels():
    for parameters in ({}, {"bias": np.ones(3, np.float32)}):
        found = updates_of(add_orthogonality_penalty(1.0), parameters)
        jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.zeros_like, parameters))


def test_inside_masked_and_multi_steps():
    inner = add_orthogonality_penalty(1.0)
    mask = {"conv": True, "stack": False}
    found = updates_of(optax.masked(inner, mask))
    np.testing.assert_allclose(
        found["conv"]["kernel"], slope(PARAMETERS["conv"]["kernel"]), rtol=1e-5
    )
    np.testing.assert_array_equal(found["stack"]["kernel"], 0)
    conv = {"kernel": PARAMETERS["conv"]["kernel"]}
    several = optax.MultiSteps(inner, every_k_schedule=2)
    state, zeros = several.init(conv), jax.tree.map(jnp.zeros_like, conv)
    first, state = several.update(zeros, state, conv)
    second, _ = several.update(zeros, state, conv)
    np.testing.assert_array_equal(first["kernel"], 0)
    np.testing.assert_allclose(second["kernel"], slope(conv["kernel"]), rtol=1e-5)


def test_schedules_count_steps_and_keep_their_state():
    # SRIP's own: down in powers of ten, then off.
    schedule = optax.piecewise_constant_schedule(1.0, {1: 1e-3, 2: 0.1, 3: 1e-2, 4: 0.0})
    transformation = add_orthogonality_penalty(schedule)
    kernel = {"kernel": PARAMETERS["conv"]["kernel"]}
    own, zeros = slope(kernel["kernel"]), jax.tree.map(jnp.zeros_like, kernel)
    state = transformation.init(kernel)
    update = quick_jit(transformation.update)
    for strength in (1.0, 1e-3, 1e-4, 1e-6, 0.0):
        found, after = update(zeros, state, kernel)
        np.testing.assert_allclose(found["kernel"], strength * own, rtol=1e-5, atol=1e-12)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
        state = after
    assert not jax.tree.leaves(add_orthogonality_penalty(1.0).init(kernel))


def test_strength_as_an_injected_hyperparameter():
    transformation = optax.inject_hyperparams(add_orthogonality_penalty)(strength=0.5)
    kernel = {"kernel": PARAMETERS["conv"]["kernel"]}
    found = updates_of(transformation, kernel)
    np.testing.assert_allclose(found["kernel"], 0.5 * slope(kernel["kernel"]), rtol=1e-5)


def test_updates_keep_their_dtype_and_may_be_none():
    parameters = PARAMETERS["conv"]
    transformation = add_orthogonality_penalty(0.5)
    updates = {"kernel": jnp.zeros(parameters["kernel"].shape, jnp.bfloat16), "bias": None}
    found, _ = transformation.update(updates, transformation.init(parameters), parameters)
    assert found["kernel"].dtype == jnp.bfloat16
    assert found["bias"] is None


def as_state(tree):
    """Nested dicts as NNX holds parameters."""
    return nnx.State(
        {k: as_state(v) if isinstance(v, dict) else nnx.Param(v) for k, v in tree.items()}
    )


CONTAINERS = {"dict": dict, "FrozenDict": freeze, "State": as_state}
MASK = {"conv": True, "stack": {"kernel": False}}


@pytest.mark.parametrize("updates", CONTAINERS)
@pytest.mark.parametrize("parameters", CONTAINERS)
def test_everything_is_matched_by_path(parameters, updates):
    parameters, zeros = (
        CONTAINERS[name](tree)
        for name, tree in (
            (
                parameters,
                {"conv": {"kernel": PARAMETERS["conv"]["kernel"]}, "stack": PARAMETERS["stack"]},
            ),
            (
                updates,
                {
                    "conv": {"kernel": jnp.zeros((3, 3, 2, 4))},
                    "stack": {"kernel": jnp.zeros((2, 5, 3))},
                },
            ),
        )
    )
    transformation = add_orthogonality_penalty(0.5, axes=freeze(AXES), mask=freeze(MASK))
    found, _ = transformation.update(zeros, transformation.init(parameters), parameters)
    assert jax.tree.structure(found) == jax.tree.structure(zeros)
    conv, stack = (jax.tree.leaves(found[name])[0] for name in ("conv", "stack"))
    np.testing.assert_allclose(conv, 0.5 * slope(PARAMETERS["conv"]["kernel"]), rtol=1e-5)
    np.testing.assert_array_equal(stack, 0)
    for option in ({"mask": {"conv": True}}, {"axes": {"stack": KernelAxes()}}):
        with pytest.raises(
            ValueError, match=r"(mask|axes) must .* each of the paths .*got none for"
        ):
            add_orthogonality_penalty(0.5, **option).init(parameters)


def test_integers_and_keys_are_no_kernels():
    parameters = {
        "kernel": PARAMETERS["conv"]["kernel"],
        "table": jnp.ones((2, 3), int),
        "keys": jax.random.split(jax.random.key(0), (2, 2)),
    }
    updates = {"kernel": jnp.zeros((3, 3, 2, 4)), "table": jnp.ones((2, 3), int), "keys": None}
    rule = lambda tree: jax.tree.map(lambda leaf: leaf.ndim >= 2, tree)  # noqa: E731
    for mask in (None, rule):
        transformation = add_orthogonality_penalty(0.5, mask=mask)
        found, _ = transformation.update(updates, transformation.init(parameters), parameters)
        np.testing.assert_allclose(found["kernel"], 0.5 * slope(parameters["kernel"]), rtol=1e-5)
        assert found["table"] is updates["table"]
        assert found["keys"] is None
    with pytest.raises(
        TypeError, match="parameter table must be a floating-point array, got int32"
    ):
        add_orthogonality_penalty(0.5, mask={"kernel": True, "table": True, "keys": False}).init(
            parameters
        )
    lost = optax.inject_hyperparams(add_orthogonality_penalty)(strength=0.5, mask=rule)
    with pytest.raises(ValueError, match=r"mask must select .* unless static_args names them"):
        lost.init({"kernel": parameters["kernel"]})


def test_what_is_out_of_range_and_traced_gives_nan():
    kernel = jnp.ones((3, 2))
    few = quick_jit(lambda n: orthogonality_penalty(kernel, kind="spectral", power_iterations=n))
    assert np.isnan(few(0))
    assert not np.isnan(few(1))
    for strength in (lambda step: -1.0 + 0 * step, optax.linear_schedule(-1.0, -1.0, 1)):
        transformation = add_orthogonality_penalty(strength)
        update = quick_jit(lambda k, t=transformation: t.update(k, t.init(k), k)[0])
        assert np.isnan(update(kernel)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_swallowed(kind, value):
    for shape in SHAPES.values():
        w = normal(0, *shape).astype(np.float32)
        w[1, 2] = value
        assert not np.isfinite(penalty(w, kind=kind))
    if np.isnan(value):
        assert np.isnan(slope(w, kind=kind)).any()


def test_axes_are_counts_of_any_type():
    kernel = normal(0, 2, 5, 3)
    for filters, batch in ((np.int64(2), np.int32(0)), (np.array([2]), [np.int8(0)])):
        found = penalty(kernel, axes=KernelAxes(filters=-1, batch=0))
        axes = KernelAxes(filters=filters, batch=batch)
        np.testing.assert_allclose(orthogonality_penalty(kernel, axes=axes), found, rtol=1e-6)
    with pytest.raises(TypeError):
        orthogonality_penalty(kernel, axes=KernelAxes(filters=1.5))


@pytest.mark.parametrize("long", [1, 3, 4])
@pytest.mark.parametrize("filters", [9, 40])
def test_a_few_long_filters_leave_the_digits_of_the_others(long, filters):
    """Squares of the long ones, subtracted from the sum of all, would leave nothing."""
    w = np.concatenate([1e3 * np.eye(4, long), 0.1 * normal(15, 4, filters - long)], axis=1)
    w[:long, long:] = 0  # orthogonal to the long ones
    w = w.astype(np.float32)
    expected, gradient = by_definition(w.astype(float), "off_diagonal")
    found = value_and_slope(w, kind="off_diagonal")
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
    stack = np.stack([w, normal(16, 4, filters)])  # another needs no care
    both = penalty(stack.astype(np.float32), kind="off_diagonal", axes=KernelAxes(batch=0))
    np.testing.assert_allclose(both[0], expected, rtol=1e-5)


def test_in_a_flax_optimizer():
    """Descent on the penalty alone reaches orthonormal filters and leaves the bias."""
    model = nnx.Linear(9, 4, rngs=nnx.Rngs(0))
    tx = optax.chain(add_orthogonality_penalty(1.0), optax.sgd(0.02))
    graph, state = nnx.split((model, nnx.Optimizer(model, tx, wrt=nnx.Param)))

    @quick_jit
    def descend(state):
        def step(state, _):
            model, optimizer = nnx.merge(graph, state)
            optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
            return nnx.state((model, optimizer)), None

        return jax.lax.scan(step, state, length=300)[0]

    model, _ = nnx.merge(graph, descend(state))
    kernel = np.asarray(model.kernel[...])
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(4), atol=1e-4)
    np.testing.assert_array_equal(model.bias[...], 0)
