"""ON-LSTM: an LSTM whose units are ordered, so that its forgetting draws a tree over the sentence.

One step, with C units to a chunk, L = D / C chunks («levels»), each master gate value shared by the
C units of its level:

    f, i, o = σ(...), σ(...), σ(...);  ĉ = tanh(...)             the gates of a plain LSTM
    f̃ = cumax(...)                                               master forget gate, ends at 1
    ĩ = 1 - cumax(...)                                           master input gate, ends at 0
    ω = f̃ · ĩ                                                    where the two overlap
    c' = (f·ω + f̃ - ω) · c + (i·ω + ĩ - ω) · ĉ
    h' = o · tanh(c')

where every (...) is its own slice of x·input_kernel + h·recurrent_kernel + bias. High levels keep
what spans the sentence, low levels what changes with every word; how far f̃ forgets at a word
(``Depths.forget``) tells how large a unit ended before it.

The paper's ĩ is exactly 0 at the top level, where f̃ is exactly 1: the top chunk of the cell never
leaves its initial value. ``master_input="reverse"`` is the article's symmetric gate, the sum from
the other end, which has no dead chunk. ``master_input="none"`` leaves the master gates out (both
are 1): a plain LSTM, for comparison, whose ``Depths.forget`` is 1 - mean f.

Sources: Yikang Shen, Shawn Tan, Alessandro Sordoni, Aaron Courville, «Ordered Neurons: Integrating
Tree Structures into Recurrent Neural Networks», 2018, arXiv 1810.09536; Su Jianlin,
https://kexue.fm/archives/6621.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.ordered.cell import (
    Depths,
    MasterGates,
    MasterInput,
    OnLstmCarry,
    OnLstmParams,
    State,
    dot,
    gates_from_logits,
    recur,
)


class OnLstmOutput(NamedTuple):
    """The result of :func:`on_lstm`."""

    hidden: jax.Array  # [T, B, D]
    carry: OnLstmCarry  # after the last step
    depths: Depths  # [T, B] each, in at least float32: trees are read from their order


def initial_carry(batch: int, features: int, *, chunk_size: int, dtype: Any = None) -> OnLstmCarry:
    """A carry of zeros: nothing read yet.

    Args:
        batch: B, number of sequences.
        features: D, number of units.
        chunk_size: C, units that share a master gate value; must divide ``features``.
        dtype: dtype of the carry, JAX's default float if None.

    Returns:
        ``OnLstmCarry`` of zeros, ``[B, D]`` and ``[B, D / C, C]``.

    Raises:
        ValueError: if ``chunk_size`` does not divide ``features``.

    >>> initial_carry(2, 6, chunk_size=3).cell.shape
    (2, 2, 3)
    """
    levels = _num_levels(features, chunk_size)
    return OnLstmCarry(
        jnp.zeros((batch, features), dtype), jnp.zeros((batch, levels, chunk_size), dtype)
    )


def master_gates(
    params: OnLstmParams,
    hidden: jax.Array,
    x: jax.Array,
    *,
    chunk_size: int,
    master_input: MasterInput = "complement",
) -> MasterGates:
    """The master gates at given states, for pictures and analysis.

    f̃ = cumax(...) and ĩ = 1 - cumax(...) as in the module docstring. Over a whole sequence, pass
    the hidden states *before* each step: the initial one, then ``output.hidden[:-1]``.

    Args:
        params: parameters of the layer.
        hidden: ``[..., D]``, the hidden state before the step.
        x: ``[..., I]``, the input of the step.
        chunk_size: C, units that share a master gate value.
        master_input: ``"complement"`` (paper) or ``"reverse"`` (article).

    Returns:
        ``MasterGates``, each ``[..., L]`` in at least float32.

    Raises:
        ValueError: if shapes or ``chunk_size`` do not fit; TypeError: if an input is not floating.

    >>> import jax.numpy as jnp
    >>> params = OnLstmParams(jnp.ones((3, 20)), jnp.ones((4, 20)), jnp.zeros(20))
    >>> gates = master_gates(params, jnp.zeros((5, 4)), jnp.ones((5, 3)), chunk_size=2)
    >>> print(gates.forget[0], gates.input[0])
    [0.5 1. ] [0.5 0. ]

    Reference: arXiv 1810.09536, equations 9 and 10.
    """
    if master_input == "none":
        raise ValueError("master_gates: master_input='none' has none, expected one that has")
    levels = _check_params(params, chunk_size, master_input)
    _check_operand("x", x, params.input_kernel)
    _check_operand("hidden", hidden, params.recurrent_kernel)
    first = OnLstmParams(*(p[..., : 2 * levels] for p in params))
    logits = dot(x, first.input_kernel) + dot(hidden, first.recurrent_kernel)
    columns = logits.reshape(-1, 2 * levels).T + first.bias.astype(logits.dtype)[:, None]
    gates = gates_from_logits(columns, master_input)
    return MasterGates(*(gate.T.reshape(*logits.shape[:-1], levels) for gate in gates))


def on_lstm_step(
    params: OnLstmParams,
    carry: OnLstmCarry,
    x: jax.Array,
    *,
    chunk_size: int,
    master_input: MasterInput = "complement",
) -> tuple[OnLstmCarry, Depths]:
    """One step of an ON-LSTM, the equations of the module docstring.

    Args:
        params: parameters of the layer.
        carry: ``[B, D]`` and ``[B, L, C]``, the state before the step.
        x: ``[B, I]``, the input.
        chunk_size: C, units that share a master gate value.
        master_input: ``"complement"``, the paper's ĩ = 1 - cumax, which leaves the top chunk of the
            cell at its initial value for ever; ``"reverse"``, the article's ĩ, the cumax from the
            last level down; or ``"none"``, a plain LSTM, whose params have 4D columns.

    Returns:
        The state after the step in the dtype of ``x``, and the depths ``[B]``.

    Raises:
        ValueError: if shapes or ``chunk_size`` do not fit; TypeError: if an input is not floating.

    >>> import jax.numpy as jnp
    >>> params = OnLstmParams(jnp.ones((3, 20)), jnp.ones((4, 20)), jnp.zeros(20))
    >>> carry = initial_carry(5, 4, chunk_size=2)
    >>> carry, depths = on_lstm_step(params, carry, jnp.ones((5, 3)), chunk_size=2)
    >>> carry.hidden.shape, carry.cell.shape, depths.forget.shape
    ((5, 4), (5, 2, 2), (5,))

    Reference: arXiv 1810.09536, equations 1 to 14.
    """
    output = on_lstm(params, x[None], carry, chunk_size=chunk_size, master_input=master_input)
    return output.carry, jax.tree.map(lambda depth: depth[0], output.depths)


def on_lstm(
    params: OnLstmParams,
    xs: jax.Array,
    carry: OnLstmCarry | None = None,
    *,
    chunk_size: int,
    master_input: MasterInput = "complement",
    mask: jax.Array | None = None,
    reverse: bool = False,
) -> OnLstmOutput:
    """Runs an ON-LSTM layer over a sequence, :func:`on_lstm_step` for each ``xs[t]``.

    The input product, and in the gradient both weight products, are taken over the whole sequence
    at once; only the recurrent product stays in the loop.

    Args:
        params: parameters of the layer.
        xs: ``[T, B, I]``, time first. T = 0 returns the carry as it came.
        carry: state before the first step, zeros if None.
        chunk_size: C, units that share a master gate value; must divide D.
        master_input: ``"complement"`` (paper), ``"reverse"`` (article) or ``"none"``, see
            :func:`on_lstm_step`.
        mask: ``[T, B]`` bool, false at padding: the carry stays as it was, ``hidden`` repeats it,
            the depths are 0, and ``xs`` has no influence whatever it holds. All true if None.
        reverse: reads from the last step to the first. A forward and a reversed layer side by side,
            ``jnp.concatenate([a.hidden, b.hidden], -1)``, are a bidirectional one.

    Returns:
        ``OnLstmOutput`` in the dtype of ``xs``, ``hidden[t]`` after reading ``xs[t]``; depths in at
        least float32.

    Raises:
        ValueError: if shapes or ``chunk_size`` do not fit; TypeError: if an input is not floating.

    >>> import jax.numpy as jnp
    >>> params = OnLstmParams(jnp.ones((3, 20)), jnp.ones((4, 20)), jnp.zeros(20))
    >>> output = on_lstm(params, jnp.ones((7, 5, 3)), chunk_size=2)
    >>> output.hidden.shape, output.depths.forget.shape
    ((7, 5, 4), (7, 5))
    >>> print(output.carry.cell[0, 1])  # the paper's input gate never writes the top chunk
    [0. 0.]

    Reference: arXiv 1810.09536, section 4.
    """
    levels = _check_params(params, chunk_size, master_input)
    _check_operand("xs", xs, params.input_kernel)
    if xs.ndim != 3:
        raise ValueError(f"on_lstm: xs must be [time, batch, features], got shape {xs.shape}")
    features = params.recurrent_kernel.shape[0]
    expected = ((xs.shape[1], features), (xs.shape[1], levels, chunk_size))
    if carry is None:
        carry = initial_carry(xs.shape[1], features, chunk_size=chunk_size, dtype=xs.dtype)
    elif (got := (carry.hidden.shape, carry.cell.shape)) != expected:
        raise ValueError(
            f"on_lstm: carry must have shapes hidden, cell = {expected} for this batch and "
            f"chunk_size={chunk_size}, got {got}; build it with initial_carry"
        )
    if mask is not None:
        _check_mask(mask, xs)
        xs = jnp.where(mask[..., None], xs, 0)
    projected = dot(xs, params.input_kernel)
    projected = (projected + params.bias.astype(projected.dtype)[None, None]).swapaxes(1, 2)
    state = State(carry.hidden.T, jnp.moveaxis(carry.cell, 0, -1))
    state = jax.tree.map(lambda x: x.astype(projected.dtype), state)
    kernel = params.recurrent_kernel.astype(xs.dtype)
    hidden, last, depths = recur(master_input, reverse, kernel, state, projected, mask)
    if mask is not None:
        depths = jax.tree.map(lambda depth: jnp.where(mask, depth, 0), depths)
    carry = OnLstmCarry(last.hidden.T, jnp.moveaxis(last.cell, -1, 0))
    carry = jax.tree.map(lambda x: x.astype(xs.dtype), carry)
    return OnLstmOutput(hidden.swapaxes(1, 2).astype(xs.dtype), carry, depths)


class OnLstm(nnx.Module):
    """One ON-LSTM layer as a Flax NNX module; :func:`on_lstm` with its parameters.

    Kernels and bias start as the original's: uniform in ±1/√fan_in.

    Args:
        in_features: I, width of the input.
        features: D, number of units.
        chunk_size: C, units that share a master gate value; must divide ``features``.
        master_input: ``"complement"`` (paper), ``"reverse"`` (article) or ``"none"``.
        param_dtype: dtype of the parameters.
        reverse: read from the last step to the first.
        rngs: Flax's random streams; ``params`` is used.

    Raises:
        ValueError: if ``chunk_size`` does not divide ``features``.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> layer = OnLstm(3, 4, chunk_size=2, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((7, 5, 3))).hidden.shape
    (7, 5, 4)

    Reference: arXiv 1810.09536.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        chunk_size: int,
        master_input: MasterInput = "complement",
        param_dtype: Any = jnp.float32,
        reverse: bool = False,
        rngs: nnx.Rngs,
    ):
        columns = _num_columns(features, chunk_size, master_input)
        self.features = features
        self.chunk_size = chunk_size
        self.master_input = master_input
        self.reverse = reverse

        def uniform(shape: tuple[int, ...], fan_in: int) -> nnx.Param:
            bound = fan_in**-0.5
            key = rngs.params()
            return nnx.Param(jax.random.uniform(key, shape, param_dtype, -bound, bound))

        self.input_kernel = uniform((in_features, columns), in_features)
        self.recurrent_kernel = uniform((features, columns), features)
        # The original adds two biases, one drawn like the input kernel, one like the recurrent
        # one; their sum is all that matters and a single bias is enough to train.
        self.bias = uniform((columns,), features)

    @property
    def params(self) -> OnLstmParams:
        """The parameters as :func:`on_lstm` takes them."""
        return OnLstmParams(self.input_kernel[...], self.recurrent_kernel[...], self.bias[...])

    def __call__(
        self, xs: jax.Array, carry: OnLstmCarry | None = None, *, mask: jax.Array | None = None
    ) -> OnLstmOutput:
        """Runs the layer over ``xs`` ``[T, B, I]``, see :func:`on_lstm`."""
        return on_lstm(
            self.params,
            xs,
            carry,
            chunk_size=self.chunk_size,
            master_input=self.master_input,
            mask=mask,
            reverse=self.reverse,
        )


def _num_levels(features: int, chunk_size: int) -> int:
    if chunk_size < 1 or features % chunk_size:
        divisors = [c for c in range(1, features + 1) if features % c == 0]
        raise ValueError(
            f"chunk_size must divide the number of units {features}, got {chunk_size}; "
            f"possible: {', '.join(map(str, divisors))}"
        )
    return features // chunk_size


def _num_columns(features: int, chunk_size: int, master_input: MasterInput) -> int:
    """4D + 2L, or 4D without master gates."""
    if master_input not in ("complement", "reverse", "none"):
        raise ValueError(
            f"master_input must be 'complement', 'reverse' or 'none', got {master_input!r}"
        )
    levels = _num_levels(features, chunk_size)
    return 4 * features + (0 if master_input == "none" else 2 * levels)


def _check_params(params: OnLstmParams, chunk_size: int, master_input: MasterInput) -> int:
    """Checks the parameters' shapes; returns the number of levels."""
    features = params.recurrent_kernel.shape[0]
    columns = _num_columns(features, chunk_size, master_input)
    levels = features // chunk_size
    expected = ((params.input_kernel.shape[0], columns), (features, columns), (columns,))
    if (got := tuple(p.shape for p in params)) != expected:
        raise ValueError(
            f"params must have shapes {expected} (4D + 2L columns for D={features} units and "
            f"L={levels} levels of chunk_size={chunk_size}, 4D without master gates), got {got}"
        )
    return levels


def _check_mask(mask: jax.Array, xs: jax.Array) -> None:
    if mask.shape != xs.shape[:2] or mask.dtype != bool:
        raise ValueError(
            f"mask must be bool [time, batch] = {xs.shape[:2]} like xs, got {mask.dtype} "
            f"{mask.shape}; from lengths: jnp.arange(time)[:, None] < lengths[None]"
        )


def _check_operand(name: str, x: jax.Array, kernel: jax.Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a floating-point array, got {x.dtype}; "
            "token ids must be embedded first"
        )
    if not x.ndim or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"{name} must have {kernel.shape[0]} features on its last axis to match its kernel "
            f"{kernel.shape}, got shape {x.shape}"
        )
