"""Penalties that pull the filters of a kernel apart by its numbers alone, without data.

With W [D, K], one filter per column, G = WᵀW and λ the eigenvalues of G - I:

    soft               ‖G - I‖²_F = Σ λ²                  (soft orthogonality)
    double_soft        ‖WᵀW - I‖²_F + ‖WWᵀ - I‖²_F        = 2·soft + D - K
    off_diagonal       ‖G ∘ (1 - I)‖²_F                   (BigGAN: filters of any length)
    mutual_coherence   max_ij |G - I|_ij
    spectral           ‖G - I‖₂ = max |λ|                 (SRIP, by power iteration)

Gradients: soft 4W(G - I), double_soft twice that, off_diagonal 4W(G ∘ (1 - I)), mutual_coherence
±w_j in column i and ±w_i in column j of the largest entry, spectral W(vuᵀ + uvᵀ) with the unit
vectors (G - I)v = ‖G - I‖₂·u, which are held fixed in higher derivatives too.

Where K > D not all filters can be orthogonal. Then soft ≥ K - D, double_soft ≥ K - D, spectral ≥ 1,
and off_diagonal ≥ K(K - D)/D for filters of length 1 (Welch 1974).

Sources: Nitin Bansal, Xiaohan Chen, Zhangyang Wang, "Can We Gain More from Orthogonality
Regularizations in Training Deep CNNs?", 2018, arXiv 1810.09102 (soft, double soft, mutual
coherence, SRIP); Andrew Brock, Jeff Donahue, Karen Simonyan, "Large Scale GAN Training for High
Fidelity Natural Image Synthesis", 2018, arXiv 1809.11096 (off-diagonal); article
https://kexue.fm/archives/7169.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from zoo import _checks
from zoo._paths import for_tree, path_name, spread

Kind = Literal["soft", "double_soft", "off_diagonal", "mutual_coherence", "spectral"]


class KernelAxes(NamedTuple):
    """Which axes of a kernel count its filters; axes in neither field are the filter's entries.

    kernel [*window, I, K]  ->  W [D, K],   D = window · I entries of each of the K filters

    Layouts differ between layers and libraries, and a penalty on the wrong matrix is a different
    penalty: the PyTorch code of SRIP (https://github.com/VITA-Group/Orthogonality-in-CNNs) takes
    the Gram matrix over the entries, its Keras code the one over the filters.

    The default fits what Flax calls a kernel: dense ``[D, K]``, convolutions ``[*window, I, K]``.
    Others: PyTorch's ``[K, I, *window]`` is ``KernelAxes(filters=0)``; attention's
    ``[D, heads, K]`` is ``KernelAxes(filters=(1, 2))``, or ``KernelAxes(batch=1)`` to compare
    within each head only; layers stacked by a scan, ``[L, D, K]``, are ``KernelAxes(batch=0)``.

    >>> import jax.numpy as jnp
    >>> as_matrix(jnp.ones((3, 3, 8, 16)), KernelAxes()).shape
    (72, 16)
    >>> as_matrix(jnp.ones((4, 8, 2, 5)), KernelAxes(filters=(1, 3), batch=0)).shape
    (4, 2, 40)
    """

    filters: int | Sequence[int] = -1  # their product is K
    batch: int | Sequence[int] = ()  # separate kernels: nothing is compared across these axes


def as_matrix(kernel: jax.Array, axes: KernelAxes, name: str = "kernel") -> jax.Array:
    """The kernel as ``[*batch, D, K]`` in at least float32.

    Raises:
        TypeError: if the kernel is not floating; ValueError: if the axes do not fit.
    """
    if not isinstance(axes, KernelAxes):
        raise TypeError(f"axes must be a KernelAxes, got {axes!r}")
    _, kernel = _checks.widened(name, kernel)
    rank = kernel.ndim
    # As one integer or several, of any type that counts.
    filters, batch = (
        tuple(map(operator.index, np.atleast_1d(np.asarray(a, object)).tolist())) for a in axes
    )
    named = tuple(axis % rank for axis in (*batch, *filters) if -rank <= axis < rank)
    entries = tuple(axis for axis in range(rank) if axis not in named)
    if not filters or not entries or len({*named}) < len(batch) + len(filters):
        raise ValueError(
            f"{name} must have the axes of {axes}, each once, and at least one more for the "
            f"entries of a filter; got shape {kernel.shape}. Kernels of rank 1, such as biases and "
            "scales, have no filters: mask them out, or say which axes count the filters"
        )
    batch, filters = named[: len(batch)], named[len(batch) :]
    kernel = kernel.transpose(*batch, *entries, *filters)
    sizes = kernel.shape[len(batch) :]
    matrix = math.prod(sizes[: len(entries)]), math.prod(sizes[len(entries) :])
    return kernel.reshape(*kernel.shape[: len(batch)], *matrix)


def orthogonality_penalty(
    kernel: jax.Array,
    *,
    kind: Kind = "soft",
    axes: KernelAxes = KernelAxes(),  # noqa: B008 - immutable
    power_iterations: int | jax.Array = 10,
) -> jax.Array:
    """How far the filters of a kernel are from orthogonal, by one of the module's formulas.

    soft = ‖WᵀW - I‖²_F, and so on; W is ``kernel`` as a matrix with one filter per column.

    A ``double_soft`` penalty has exactly twice the gradient of ``soft``: ‖WWᵀ‖_F = ‖WᵀW‖_F and the
    traces are equal, so the two terms differ by the constant K - D.

    Args:
        kernel: ``[*window, I, K]``, or any layout that ``axes`` describes.
        kind: the formula.
        axes: which axes count filters; which separate kernels.
        power_iterations: of ``"spectral"``, from a fixed start; every iteration costs two products
            with a vector, and too few give less than the norm. One is what SRIP's authors use.
            Traced, less than one gives NaN.

    Returns:
        ``[*batch]``, a scalar where ``axes.batch`` is empty, in at least float32.

    Raises:
        ValueError: if ``kind``, ``axes`` or ``power_iterations`` do not fit; TypeError: if the
            kernel is not floating.

    >>> import jax, jax.numpy as jnp
    >>> kernel = jnp.array([[1.0, 0.6], [0.0, 0.8]])
    >>> {kind: round(float(orthogonality_penalty(kernel, kind=kind)), 4)
    ...  for kind in ("soft", "double_soft", "off_diagonal", "mutual_coherence", "spectral")}
    {'soft': 0.72, 'double_soft': 1.44, 'off_diagonal': 0.72, 'mutual_coherence': 0.6,
     'spectral': 0.6}
    >>> print(jax.grad(orthogonality_penalty)(kernel))
    [[1.44 2.4 ]
     [1.92 0.  ]]

    Reference: arXiv 1810.09102, section 3; arXiv 1809.11096, section 3.1.
    """
    power_iterations = _check_kind(kind, power_iterations)
    matrix = as_matrix(kernel, axes)
    match kind:
        case "soft":
            return _identity_distance(matrix)
        case "double_soft":
            return 2 * _identity_distance(matrix) + (matrix.shape[-2] - matrix.shape[-1])
        case "off_diagonal":
            return _off_diagonal(matrix)
        case "mutual_coherence":
            return _mutual_coherence(matrix)
        case "spectral":
            return _spectral(matrix, power_iterations)


def add_orthogonality_penalty(
    strength: optax.ScalarOrSchedule,
    *,
    kind: Kind = "soft",
    axes: KernelAxes | Any = KernelAxes(),  # noqa: B008 - immutable
    mask: Any = None,
    power_iterations: int | jax.Array = 10,
) -> optax.GradientTransformation:
    """Adds the gradient of :func:`orthogonality_penalty` to the updates, as weight decay does.

    u' = u + strength · ∂penalty(W)/∂W for every kernel W: the loss is not touched, and no
    activation is stored. Before the transformation that scales by the optimiser's moments it acts
    as a term of the loss does; after it, decoupled: every kernel feels ``strength`` alike.

    Args:
        strength: ≥ 0, or a schedule of the step. SRIP's, for E steps per epoch, is
            ``optax.piecewise_constant_schedule(s, {30 * E: 1e-3, 50 * E: 0.1, 70 * E: 1e-2,
            120 * E: 0.0})``: factors 1, 10⁻³, 10⁻⁴, 10⁻⁶ and 0.
        kind: the penalty.
        axes: the axes of all kernels; or a tree of ``KernelAxes`` for the parameters (a prefix of
            their tree will do), or a function of the parameters that returns one.
        mask: tree of truth values (a prefix will do), or a function of the parameters that returns
            one: which are penalised. None: all with two axes or more, so biases and scales are
            not, but tables of word vectors are. None and functions choose among the floating
            parameters: integers and keys have no gradient. Masks, axes, parameters and updates are
            matched by path, in whatever containers they are.
        power_iterations: of ``kind="spectral"``.

    Returns:
        A transformation whose state is empty, or the count of steps if ``strength`` is a schedule.

    Raises:
        ValueError: if ``strength`` < 0, the kind is unknown, or (at ``init``) a chosen parameter is
            no kernel of these axes, or the mask is False alone; TypeError: if a tree chooses a
            parameter that is not floating.

    >>> import jax, jax.numpy as jnp
    >>> transformation = add_orthogonality_penalty(0.5)
    >>> parameters = {"kernel": jnp.array([[1.0, 0.6], [0.0, 0.8]]), "bias": jnp.zeros(2)}
    >>> zeros, state = jax.tree.map(jnp.zeros_like, parameters), transformation.init(parameters)
    >>> updates, state = transformation.update(zeros, state, parameters)
    >>> print(updates["kernel"], updates["bias"])
    [[0.72 1.2 ]
     [0.96 0.  ]] [0. 0.]

    Reference: arXiv 1810.09102; https://kexue.fm/archives/7169.
    """
    _check_kind(kind, power_iterations)
    scheduled = callable(strength)
    strength = strength if scheduled else _checks.number("strength", strength, at_least=0)

    penalty = functools.partial(orthogonality_penalty, kind=kind, power_iterations=power_iterations)
    gradient = jax.grad(lambda kernel, axes: jnp.sum(penalty(kernel, axes=axes)))

    def roles(parameters: optax.Params) -> tuple[Any, Any]:
        """Whether each parameter is penalised, and its axes, as two trees."""
        own_mask, own_axes = (for_tree(option, parameters) for option in (mask, axes))
        if mask is None:
            own_mask = jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, parameters)
        elif own_mask is False:
            raise ValueError(
                "mask must select at least one parameter, got False for every one; "
                "optax.inject_hyperparams gives functions the step unless static_args names them"
            )
        by_rule = own_mask is not mask  # which may ask for shapes alone
        own_mask = spread(own_mask, parameters, name="mask")
        if by_rule:
            own_mask = jax.tree.map(
                lambda leaf, chosen: chosen and _is_floating(leaf), parameters, own_mask
            )
        is_axes = lambda node: isinstance(node, KernelAxes)  # noqa: E731
        return own_mask, spread(own_axes, parameters, name="axes", is_leaf=is_axes)

    def init(parameters: optax.Params) -> optax.OptState:
        def check(path: Any, leaf: Any, chosen: bool, axes: KernelAxes) -> None:
            if chosen:
                name = f"parameter {path_name(path)}"
                jax.eval_shape(lambda leaf: as_matrix(leaf, axes, name), leaf)

        jax.tree.map_with_path(check, parameters, *roles(parameters))
        if scheduled:
            return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "params must be given to add_orthogonality_penalty, got None; call "
                "update(updates, state, params)"
            )
        now = strength
        if scheduled:
            now = _checks.number("strength", strength(state.count), at_least=0)
            state = optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

        def add(kernel: Any, update: Any, chosen: bool, axes: KernelAxes) -> Any:
            if update is None or not chosen:
                return update
            return update + (now * gradient(kernel, axes)).astype(update.dtype)

        is_none = lambda leaf: leaf is None  # noqa: E731
        own = spread(updates, params, name="updates", is_leaf=is_none)
        added = jax.tree.map(add, params, own, *roles(params))
        return spread(added, updates, name="params", is_leaf=is_none), state

    return optax.GradientTransformation(init, update)


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _check_kind(kind: str, power_iterations: int | jax.Array) -> int | jax.Array:
    """The iterations, as a Python integer where they are known."""
    _checks.choice("kind", kind, get_args(Kind))
    if isinstance(power_iterations, jax.core.Tracer):
        return power_iterations
    return _checks.count("power_iterations", power_iterations, at_least=1)


# Gram matrices G = WᵀW, and sums over their entries from the smaller side: the two Gram matrices
# of W share their non-zero eigenvalues, so that
#     ‖WᵀW‖² = ‖WWᵀ‖²,   ‖WᵀW - I_K‖² = ‖WWᵀ - I_D‖² + K - D


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # Accelerators round float32 factors to fewer bits unless told otherwise, and G - I of filters
    # that are nearly orthonormal would be that rounding alone.
    return jnp.einsum("...dk,...dl->...kl", a, b, precision=lax.Precision.HIGHEST)


@jax.custom_jvp
def gram(matrix: jax.Array) -> jax.Array:
    """``[..., D, K]`` -> ``[..., K, K]``, WᵀW; its gradient is one product, W·(Ḡ + Ḡᵀ)."""
    return _product(matrix, matrix)


@gram.defjvp
def _gram_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (matrix,), (tangent,) = primals, tangents
    half = _product(matrix, tangent)
    return gram(matrix), half + jnp.swapaxes(half, -1, -2)


def _identity_like(square: jax.Array) -> jax.Array:
    """The identity of the last two axes, with as many axes as ``square``."""
    size = square.shape[-1]
    return jnp.eye(size, dtype=square.dtype).reshape((1,) * (square.ndim - 2) + (size, size))


def _identity_distance(matrix: jax.Array) -> jax.Array:
    """‖WᵀW - I_K‖² in the Frobenius norm, ``[..., D, K]`` -> ``[...]``."""
    rows, columns = matrix.shape[-2:]
    smaller = gram(matrix if columns <= rows else jnp.swapaxes(matrix, -1, -2))
    deviation = smaller - _identity_like(smaller)
    return jnp.sum(deviation**2, axis=(-1, -2)) + max(columns - rows, 0)


def pair_sums(matrix: jax.Array, axis_name: Any = None) -> tuple[jax.Array, jax.Array]:
    """Σ_{i≠j} G_ij and Σ_{i≠j} G_ij², ``[..., D, K]`` -> ``[...]`` twice.

    With ``axis_name`` the rows of W are those of all devices together.
    """
    rows, columns = matrix.shape[-2:]
    # From the smaller side the diagonal has to be subtracted. For filters of equal length that is
    # at most half of the sum where K > 2D, so no digits are lost.
    if columns > 2 * rows and axis_name is None:
        norms = jnp.sum(matrix**2, axis=-2)
        smaller = gram(jnp.swapaxes(matrix, -1, -2))
        total = jnp.sum(jnp.sum(matrix, axis=-1) ** 2, axis=-1) - jnp.sum(norms, axis=-1)
        return total, jnp.sum(smaller**2, axis=(-1, -2)) - jnp.sum(norms**2, axis=-1)
    full = gram(matrix)
    if axis_name is not None:
        full = lax.psum(full, axis_name)
    pairs = jnp.where(_identity_like(full) == 1, 0, full)
    return jnp.sum(pairs, axis=(-1, -2)), jnp.sum(pairs**2, axis=(-1, -2))


def _off_diagonal(matrix: jax.Array) -> jax.Array:
    """Σ_{i≠j} G_ij² for filters of any lengths, ``[..., D, K]`` -> ``[...]``."""
    rows, columns = matrix.shape[-2:]
    squares = pair_sums(matrix)[1]
    if columns <= 2 * rows:
        return squares
    # Where a few long filters leave less than a hundredth of what was subtracted for them, the
    # pairs themselves are summed; also for infinities.
    diagonal = jnp.sum(jnp.sum(matrix**2, axis=-2) ** 2, axis=-1)
    return _squares_if(jnp.all(squares >= diagonal / 100), squares, matrix)


@jax.jit  # outside of jit every new conditional would be compiled again
def _squares_if(keeps: jax.Array, squares: jax.Array, matrix: jax.Array) -> jax.Array:
    def of_pairs(squares: jax.Array, matrix: jax.Array) -> jax.Array:
        full = gram(matrix)
        pairs = jnp.where(_identity_like(full) == 1, 0, full)
        return jnp.sum(pairs**2, axis=(-1, -2))

    return lax.cond(
        keeps, lambda squares, matrix: squares, jax.checkpoint(of_pairs), squares, matrix
    )


def _mutual_coherence(matrix: jax.Array) -> jax.Array:
    columns = matrix.shape[-1]
    if columns == 0:
        return jnp.zeros(matrix.shape[:-2], matrix.dtype)
    fixed = gram(lax.stop_gradient(matrix))
    entries = jnp.abs(fixed - _identity_like(fixed)).reshape(*matrix.shape[:-2], columns**2)
    i, j = jnp.divmod(jnp.argmax(entries, axis=-1), columns)
    # The largest entry once more from its two filters, so that only they get a gradient, and
    # without another product of matrices.
    first, second = (
        jnp.take_along_axis(matrix, jnp.expand_dims(index, (-1, -2)), axis=-1)[..., 0]
        for index in (i, j)
    )
    entry = jnp.sum(first * second, axis=-1) - (i == j)
    return entry * lax.stop_gradient(jnp.sign(entry))  # no slope at 0, as abs has


def _spectral(matrix: jax.Array, power_iterations: int | jax.Array) -> jax.Array:
    vector = _dominant_vector(lax.stop_gradient(matrix), power_iterations)
    squares = jnp.sum(_apply(matrix, vector) ** 2, axis=-1)
    # An orthonormal W has norm 0, where the root has no slope.
    positive = squares != 0  # not > 0: NaN must stay NaN
    norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
    enough = power_iterations >= 1
    return norm if enough is True else jnp.where(enough, norm, jnp.nan)


@jax.jit
def _dominant_vector(matrix: jax.Array, power_iterations: int | jax.Array) -> jax.Array:
    """The vector ``[..., K]`` that G - I stretches most, nearly."""
    fixed = np.random.default_rng(0).normal(size=matrix.shape[-1])
    shape = (*matrix.shape[:-2], matrix.shape[-1])
    start = jnp.broadcast_to(jnp.asarray(fixed, matrix.dtype), shape)

    def step(_: int, vector: jax.Array) -> jax.Array:
        return _normalize(_apply(matrix, vector))

    return lax.fori_loop(1, power_iterations, step, step(0, start))


def _apply(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """(WᵀW - I)·v without WᵀW."""
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    inner = product("...dk,...k->...d", matrix, vector)
    return product("...dk,...d->...k", matrix, inner) - vector


def _normalize(vector: jax.Array) -> jax.Array:
    """Length 1; a zero vector stays zero."""
    largest = jnp.max(jnp.abs(vector), axis=-1, keepdims=True, initial=0)
    scaled = vector / jnp.where(largest == 0, 1, largest)
    norm = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / jnp.where(norm == 0, 1, norm)
