"""The gradient of a penalty on kernels, added to the updates as weight decay adds its own.

    u' = u + strength · ∂penalty(W)/∂W

Before the transformation that scales by the optimiser's moments it acts as a term of the loss does;
after it, decoupled: every kernel feels ``strength`` alike, whatever the size of its gradients.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo.orthogonal.axes import KernelAxes, axis_roles
from zoo.orthogonal.penalties import Kind, check_kind, orthogonality_penalty


def add_orthogonality_penalty(
    strength: optax.ScalarOrSchedule,
    *,
    kind: Kind = "soft",
    axes: KernelAxes | Any = KernelAxes(),  # noqa: B008 - immutable
    mask: Any = None,
    power_iterations: int | jax.Array = 10,
) -> optax.GradientTransformation:
    """Adds ``strength`` times the gradient of :func:`orthogonality_penalty` to the updates.

    u' = u + strength · ∂penalty(W)/∂W for every kernel W, from its closed form: the loss is not
    touched, and no activation is stored.

    Args:
        strength: ≥ 0, or a schedule of the step. SRIP's, for E steps an epoch, is
            ``optax.piecewise_constant_schedule(s, {30 * E: 1e-3, 50 * E: 0.1, 70 * E: 1e-2,
            120 * E: 0.0})``: factors 1, 10⁻³, 10⁻⁴, 10⁻⁶ and 0.
        kind: the penalty.
        axes: the axes of all kernels; or a tree of ``KernelAxes`` for the parameters (a prefix of
            their tree will do), or a function of the parameters that returns one.
        mask: tree of truth values (a prefix will do), or a function of the parameters that returns
            one: which are penalised. None: all with two axes or more, so biases and scales are
            not, but tables of word vectors are.
        power_iterations: of ``kind="spectral"``.

    Returns:
        A transformation whose state is empty, or the count of steps if ``strength`` is a schedule.

    Raises:
        ValueError: if ``strength`` < 0, the kind is unknown, or (at ``init``) a chosen parameter is
            no kernel of these axes.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.chain(
    ...     optax.scale_by_adam(), add_orthogonality_penalty(0.05), optax.scale(-1.0))
    >>> parameters = {"kernel": jnp.array([[1.0, 0.6], [0.0, 0.8]]), "bias": jnp.zeros(2)}
    >>> state, zeros = optimizer.init(parameters), jax.tree.map(jnp.zeros_like, parameters)
    >>> for _ in range(50):
    ...     updates, state = optimizer.update(zeros, state, parameters)
    ...     parameters = optax.apply_updates(parameters, updates)
    >>> kernel = parameters["kernel"]
    >>> print((kernel.T @ kernel).round(3))
    [[1. 0.]
     [0. 1.]]

    Reference: arXiv 1810.09102; https://kexue.fm/archives/7169.
    """
    check_kind(kind, power_iterations)
    if isinstance(strength, int | float) and not strength >= 0:
        raise ValueError(f"strength must be at least 0, got {strength}")

    def gradient(kernel: jax.Array, own_axes: KernelAxes) -> jax.Array:
        def total(kernel: jax.Array) -> jax.Array:
            return jnp.sum(
                orthogonality_penalty(
                    kernel, kind=kind, axes=own_axes, power_iterations=power_iterations
                )
            )

        return jax.grad(total)(kernel)

    def init(parameters: optax.Params) -> optax.OptState:
        for path, leaf, own_axes in _kernels(parameters, mask, axes):
            axis_roles(jnp.shape(leaf), own_axes, f"parameter {jax.tree_util.keystr(path)}")
        if callable(strength):
            return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "add_orthogonality_penalty: params must be given, got None; call "
                "update(updates, state, params)"
            )
        now = strength
        if callable(strength):
            now = strength(state.count)
            state = optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
        chosen = {path: (leaf, own) for path, leaf, own in _kernels(params, mask, axes)}

        def add(path: Any, leaf: jax.Array) -> jax.Array:
            if path not in chosen:
                return leaf
            return leaf + (now * gradient(*chosen[path])).astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(add, updates), state

    return optax.GradientTransformation(init, update)


def _kernels(parameters: Any, mask: Any, axes: Any) -> list[tuple[Any, Any, KernelAxes]]:
    """Path, leaf and axes of every parameter to penalise."""

    def is_axes(node: Any) -> bool:
        return isinstance(node, KernelAxes)

    def per_leaf(prefix: Any) -> list[Any]:
        prefix = prefix(parameters) if callable(prefix) else prefix
        full = jax.tree.broadcast(prefix, parameters, is_leaf=is_axes)
        return jax.tree.leaves(full, is_leaf=is_axes)

    leaves = jax.tree.leaves_with_path(parameters)
    wanted = [jnp.ndim(leaf) >= 2 for _, leaf in leaves] if mask is None else per_leaf(mask)
    together = zip(leaves, wanted, per_leaf(axes), strict=True)
    return [(path, leaf, own) for (path, leaf), want, own in together if want]
