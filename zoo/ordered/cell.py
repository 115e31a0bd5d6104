"""The mathematics of one ON-LSTM step, and the loop over time with its derivative rule.

The equations are in ``zoo.ordered.ordered_lstm``, which checks the arguments; nothing is checked
here. Written so that only h·recurrent_kernel stays inside the loop, on the way forth and back.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo.ordered.gates import cumax

MasterInput = Literal["complement", "reverse"]


class OnLstmParams(NamedTuple):
    """Parameters of one layer for I inputs, D units and L levels, G = 4D + 2L.

    Columns: master input L | master forget L | output D | candidate D | input D | forget D.
    """

    input_kernel: jax.Array  # [I, G]
    recurrent_kernel: jax.Array  # [D, G]
    bias: jax.Array  # [G]


class OnLstmCarry(NamedTuple):
    """What one step hands to the next."""

    hidden: jax.Array  # [B, D]
    cell: jax.Array  # [B, L, C]; unit d of hidden is (d // C, d % C) here


class MasterGates(NamedTuple):
    """The two master gates, each monotone over the levels."""

    forget: jax.Array  # [..., L], f̃: 0 … 1, how much of each level's history is kept
    input: jax.Array  # [..., L], ĩ: 1 … 0, how much of each level the word may write


class Depths(NamedTuple):
    """How far up each master gate reaches at each step, as a fraction of the levels, in [0, 1]."""

    forget: jax.Array  # [B] or [T, B], 1 - mean_k f̃_k: the largest where the largest unit ends
    input: jax.Array  # [B] or [T, B], mean_k ĩ_k


def dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x·kernel in the dtype of ``x``, accumulated and returned in at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=wide)


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x·kernel + bias, see ``dot``."""
    return dot(x, kernel) + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


def gates_from_logits(logits: jax.Array, levels: int, master_input: MasterInput) -> MasterGates:
    """Gates from the first 2L columns: master input | master forget."""
    forget = cumax(logits[..., levels:])
    downwards = cumax(logits[..., :levels], reverse=True)
    if master_input == "complement":
        # 1 - cumax_k = Σ_{j > k} is the reverse sum one level up: never negative, and as exact
        # near 0 as near 1.
        zero = jnp.zeros_like(downwards[..., :1])
        downwards = jnp.concatenate([downwards[..., 1:], zero], axis=-1)
    return MasterGates(forget, downwards)


def _cell(
    master_input: MasterInput, preactivation: jax.Array, cell: jax.Array
) -> tuple[jax.Array, jax.Array, Depths]:
    """Everything of one step but its matrix products: [B, G], [B, L, C] -> hidden, cell, depths."""
    batch, levels, chunk_size = cell.shape
    master = gates_from_logits(preactivation[:, : 2 * levels], levels, master_input)
    gates = preactivation[:, 2 * levels :].reshape(batch, 4, levels, chunk_size)
    output, candidate, input_, forget = (gates[:, k] for k in range(4))
    master_forget, master_in = master.forget[..., None], master.input[..., None]
    overlap = master_forget * master_in
    kept = jax.nn.sigmoid(forget) * overlap + (master_forget - overlap)
    written = jax.nn.sigmoid(input_) * overlap + (master_in - overlap)
    cell = kept * cell + written * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(output) * jnp.tanh(cell)
    depths = Depths(1 - jnp.mean(master.forget, axis=-1), jnp.mean(master.input, axis=-1))
    return hidden.reshape(batch, levels * chunk_size), cell, depths


def _preactivation(kernel: jax.Array, hidden: jax.Array, projected: jax.Array) -> jax.Array:
    return projected + dot(hidden.astype(kernel.dtype), kernel)


def _run(
    master_input: MasterInput, kernel: jax.Array, carry: OnLstmCarry, projected: jax.Array
) -> tuple[jax.Array, OnLstmCarry, Depths, OnLstmCarry, jax.Array]:
    """The loop; besides its output the carry before each step, and the preactivations [T, B, G]."""

    def step(carry: OnLstmCarry, projected: jax.Array) -> tuple[OnLstmCarry, tuple]:
        preactivation = _preactivation(kernel, carry.hidden, projected)
        hidden, cell, depths = _cell(master_input, preactivation, carry.cell)
        return OnLstmCarry(hidden, cell), (hidden, depths, carry, preactivation)

    last, (hidden, depths, before, preactivations) = lax.scan(step, carry, projected)
    return hidden, last, depths, before, preactivations


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recur(
    master_input: MasterInput, kernel: jax.Array, carry: OnLstmCarry, projected: jax.Array
) -> tuple[jax.Array, OnLstmCarry, Depths]:
    """The loop: [D, G], carry, [T, B, G] -> hidden [T, B, D], carry, depths [T, B]."""
    return _run(master_input, kernel, carry, projected)[:3]


@_recur.defjvp
def _recur_jvp(master_input: MasterInput, primals: tuple, tangents: tuple) -> tuple:
    """The tangent of the loop with the kernel's tangent hoisted out of it.

    d preactivation_t = (d projected_t + h_{t-1}·d kernel) + d h_{t-1}·kernel: the bracket needs
    only known states, so it is one product over all T·B rows, and its transpose, the gradient of
    the kernel, is one as well instead of T accumulations of a [D, G] matrix. Differentiating a
    rule for tangents keeps forward mode and higher derivatives. Residuals are [T, B, G + D]: the
    elementwise part is computed again on the way back.
    """
    kernel, carry, projected = primals
    d_kernel, d_carry, d_projected = tangents

    *output, before, preactivations = _run(master_input, kernel, carry, projected)
    d_hoisted = _preactivation(d_kernel, before.hidden, d_projected)

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
    def d_step(d_carry: OnLstmCarry, inputs: tuple) -> tuple[OnLstmCarry, tuple]:
        preactivation, cell, d_hoisted = inputs
        d_preactivation = _preactivation(kernel, d_carry.hidden, d_hoisted)
        d_hidden, d_cell, d_depths = jax.jvp(
            partial(_cell, master_input), (preactivation, cell), (d_preactivation, d_carry.cell)
        )[1]
        return OnLstmCarry(d_hidden, d_cell), (d_hidden, d_depths)

    d_last, (d_hidden, d_depths) = lax.scan(
        d_step, d_carry, (preactivations, before.cell, d_hoisted)
    )
    return tuple(output), (d_hidden, d_last, d_depths)


# Compiled as a whole also where the caller compiles nothing: a loop over a new closure would be
# compiled again at every call.
recur = jax.jit(_recur, static_argnums=0)
