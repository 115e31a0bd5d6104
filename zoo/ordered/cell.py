"""The mathematics of one ON-LSTM step, and the loop over time with its derivative rule.

The equations are in ``zoo.ordered.ordered_lstm``, which checks the arguments; nothing is checked
here. Only the recurrent product stays inside the loop, on the way forth and back, and there the
batch is the last axis: a product kernelᵀ·h of [G, D] and [D, B] reads the kernel row by row, which
CPUs do twice as fast as h·kernel at the few rows of a recurrent net.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

MasterInput = Literal["complement", "reverse", "none"]


class OnLstmParams(NamedTuple):
    """Parameters of one layer for I inputs, D units and L levels, G = 4D + 2L.

    Columns: master input L | master forget L | output D | candidate D | input D | forget D.
    Without master gates (``master_input="none"``) the first 2L are missing.
    """

    input_kernel: jax.Array  # [I, G]
    recurrent_kernel: jax.Array  # [D, G]
    bias: jax.Array  # [G]


class OnLstmCarry(NamedTuple):
    """What one step hands to the next."""

    hidden: jax.Array  # [B, D]
    cell: jax.Array  # [B, L, C]; unit d of hidden is (d // C, d % C) here


class MasterGates(NamedTuple):
    """The two master gates, each monotone over the levels but for rounding."""

    forget: jax.Array  # [..., L], f̃: 0 … 1, how much of each level's history is kept
    input: jax.Array  # [..., L], ĩ: 1 … 0, how much of each level the word may write


class Depths(NamedTuple):
    """How far up each master gate reaches at each step, as a fraction of the levels, in [0, 1]."""

    forget: jax.Array  # [B] or [T, B], 1 - mean_k f̃_k: the largest where the largest unit ends
    input: jax.Array  # [B] or [T, B], mean_k ĩ_k


class State(NamedTuple):
    """The carry as the loop holds it, the batch last."""

    hidden: jax.Array  # [D, B]
    cell: jax.Array  # [L, C, B]


def dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x·kernel in the dtype of ``x``, accumulated and returned in at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return _apart(jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=wide), x.dtype)


def _apart(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Keeps XLA from merging a transpose with a product of narrow floats.

    On CPU (0.10 and 0.12) it then lacks the code for narrow inputs and a wide output.
    """
    return x if jnp.finfo(dtype).bits >= 32 else lax.optimization_barrier(x)


def _running_sums(logits: jax.Array, triangle: jax.Array) -> jax.Array:
    """Sums of softmax probabilities over the levels [L, B] that each row of the triangle marks.

    One product: a running sum is a tree of small kernels on CPU. No sum is negative or over 1;
    sums without a level are exactly 0. Neighbours are in order but for rounding.
    """
    probabilities = jax.nn.softmax(logits, axis=0)
    sums = jnp.matmul(triangle, probabilities, precision=lax.Precision.HIGHEST)
    return jnp.where(sums > 1, 1, sums)


def gates_from_logits(logits: jax.Array, master_input: MasterInput) -> MasterGates:
    """f̃ and ĩ [L, B] from the first 2L rows of the preactivation: master input | master forget."""
    levels = logits.shape[0] // 2
    all_levels = jnp.ones((levels, levels), logits.dtype)
    forget = _running_sums(logits[levels:], jnp.tril(all_levels))
    # 1 - cumax_k is the sum over j > k: never negative, and as exact near 0 as near 1.
    above = 1 if master_input == "complement" else 0
    input_ = _running_sums(logits[:levels], jnp.triu(all_levels, above))
    one = jnp.ones_like(forget[:1])
    forget = jnp.concatenate([forget[:-1], one])
    return MasterGates(forget, input_ if above else jnp.concatenate([one, input_[1:]]))


def _cell(
    master_input: MasterInput, preactivation: jax.Array, cell: jax.Array
) -> tuple[State, Depths]:
    """Everything of one step but its matrix products: [G, B], [L, C, B] -> state, depths."""
    levels, chunk_size, batch = cell.shape
    units = (4, levels, chunk_size, batch)
    output, candidate, input_, forget = preactivation[-4 * levels * chunk_size :].reshape(units)
    kept, written = jax.nn.sigmoid(forget), jax.nn.sigmoid(input_)
    if master_input == "none":
        depths = Depths(1 - jnp.mean(kept, axis=(0, 1)), jnp.mean(written, axis=(0, 1)))
    else:
        master = gates_from_logits(preactivation[: 2 * levels], master_input)
        depths = Depths(1 - jnp.mean(master.forget, axis=0), jnp.mean(master.input, axis=0))
        master_forget, master_in = master.forget[:, None], master.input[:, None]
        overlap = master_forget * master_in
        kept = kept * overlap + (master_forget - overlap)
        written = written * overlap + (master_in - overlap)
    cell = kept * cell + written * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(output) * jnp.tanh(cell)
    return State(hidden.reshape(levels * chunk_size, batch), cell), depths


def _select(mask: jax.Array | None, new: State, old: State) -> State:
    """The new state, or the old one in the columns [B] where the mask is false."""
    if mask is None:
        return new
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), new, old)


def _run(
    master_input: MasterInput,
    reverse: bool,
    kernel: jax.Array,
    state: State,
    projected: jax.Array,
    mask: jax.Array | None,
) -> tuple[jax.Array, State, Depths, State, jax.Array]:
    """The loop; besides its output the state before each step, and the preactivations [T, G, B]."""
    rows = _apart(kernel.T, kernel.dtype)

    def step(state: State, inputs: tuple) -> tuple[State, tuple]:
        projected, mask = inputs
        preactivation = projected + dot(rows, state.hidden)
        after, depths = _cell(master_input, preactivation, state.cell)
        after = _select(mask, after, state)
        return after, (after.hidden, depths, state, preactivation)

    last, (hidden, depths, before, preactivations) = lax.scan(
        step, state, (projected, mask), reverse=reverse
    )
    return hidden, last, depths, before, preactivations


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _recur(
    master_input: MasterInput,
    reverse: bool,
    kernel: jax.Array,
    state: State,
    projected: jax.Array,
    mask: jax.Array | None,
) -> tuple[jax.Array, State, Depths]:
    """The loop: [D, G], state, [T, G, B], [T, B] -> hidden [T, D, B], state, depths [T, B]."""
    return _run(master_input, reverse, kernel, state, projected, mask)[:3]


@_recur.defjvp
def _recur_jvp(
    master_input: MasterInput, reverse: bool, primals: tuple, tangents: tuple
) -> tuple[tuple, tuple]:
    """The tangent of the loop with the kernel's tangent hoisted out of it.

    d preactivation_t = (d projected_t + h_{t-1}·d kernel) + d h_{t-1}·kernel: the bracket needs
    only known states, so it is one product over all T·B rows, and its transpose, the gradient of
    the kernel, is one as well instead of T accumulations of a [D, G] matrix. Differentiating a
    rule for tangents keeps forward mode and higher derivatives. Residuals are [T, G + 2D, B]: the
    elementwise part is computed again on the way back.
    """
    kernel, _, _, mask = primals
    d_kernel, d_state, d_projected, _ = tangents

    *output, before, preactivations = _run(master_input, reverse, *primals)
    hidden = before.hidden.astype(kernel.dtype).swapaxes(1, 2)
    d_hoisted = d_projected + dot(hidden, d_kernel).swapaxes(1, 2)

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
    def d_step(d_state: State, inputs: tuple) -> tuple[State, tuple]:
        preactivation, cell, d_hoisted, mask = inputs
        # Contracted over the first axes, so that the transpose, kernel·d, reads rows again.
        d_hidden = d_state.hidden.astype(kernel.dtype)
        d_preactivation = d_hoisted + jnp.einsum(
            "dg,db->gb", kernel, d_hidden, preferred_element_type=d_hoisted.dtype
        )
        d_after, d_depths = jax.jvp(
            partial(_cell, master_input), (preactivation, cell), (d_preactivation, d_state.cell)
        )[1]
        d_after = _select(mask, d_after, d_state)
        return d_after, (d_after.hidden, d_depths)

    d_last, (d_hidden, d_depths) = lax.scan(
        d_step, d_state, (preactivations, before.cell, d_hoisted, mask), reverse=reverse
    )
    return tuple(output), (d_hidden, d_last, d_depths)


# Compiled as a whole also where the caller compiles nothing: a loop over a new closure would be
# compiled again at every call.
recur = jax.jit(_recur, static_argnums=(0, 1))
