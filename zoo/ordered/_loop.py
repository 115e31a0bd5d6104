"""The loop over time of :func:`zoo.ordered.on_lstm`, equal to a scan of ``on_lstm_step``.

It differs from that scan in three ways, none of which changes a number but by rounding:

- The batch is the last axis. A product kernelᵀ·h of [G, D] and [D, B] reads the kernel row by row,
  which CPUs do twice as fast as h·kernel at the few rows of a recurrent net.
- Only the recurrent product is inside, on the way forth and back: a rule for tangents takes the
  gradient of the kernel in one product over all steps.
- :func:`zoo.ordered.cumax` is a product with a triangular matrix, one kernel per step where a
  prefix sum is several: on a TPU v5e the compiler estimates 43,000 cycles per step, 50,000 with
  ``cumax``; on a CPU they are equal.

``tests/ordered/test_ordered_lstm.py`` compares values and derivatives. Nothing is checked here.
Letters: T time, B batch, D units, L levels, C chunk, G = 4D + 2L columns of the kernels.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import _checks, _cpu


class State(NamedTuple):
    """What one step hands to the next."""

    hidden: jax.Array  # [D, B]
    cell: jax.Array  # [L, C, B]


Depths = tuple[jax.Array, jax.Array]  # forget and input, [B] or [T, B]


def dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x·kernel in the dtype of ``x``, accumulated and returned in at least float32."""
    wide = _checks.accumulator(x.dtype)
    return _cpu.apart(
        jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=wide), like=x.dtype
    )


def _master_gates(logits: jax.Array, master_input: str) -> tuple[jax.Array, jax.Array]:
    """``zoo.ordered.ordered_lstm.master_gates`` by products: forget, input [L, 1, B] of [2L, B]."""
    levels = logits.shape[0] // 2
    probabilities = jax.nn.softmax(logits.reshape(2, levels, -1), axis=1)
    one = jnp.ones((1, *logits.shape[1:]), logits.dtype)
    all_levels = jnp.ones((levels, levels), logits.dtype)

    def sums(triangle: jax.Array, probabilities: jax.Array) -> jax.Array:
        product = jnp.matmul(triangle, probabilities, precision=lax.Precision.HIGHEST)
        return jnp.where(product > 1, 1, product)

    forget = jnp.concatenate([sums(jnp.tril(all_levels), probabilities[1])[:-1], one])
    # 1 - cumax_k is the sum over j > k: never negative, and as exact near 0 as near 1.
    above = 1 if master_input == "complement" else 0
    input_ = sums(jnp.triu(all_levels, above), probabilities[0])
    input_ = input_ if above else jnp.concatenate([one, input_[1:]])
    return forget[:, None], input_[:, None]


def _cell(master_input: str, preactivation: jax.Array, cell: jax.Array) -> tuple[State, Depths]:
    """Everything of one step but its matrix products: [G, B], [L, C, B] -> state, depths."""
    levels, chunk_size, batch = cell.shape
    units = (4, levels, chunk_size, batch)
    output, candidate, input_, forget = preactivation[-4 * levels * chunk_size :].reshape(units)
    kept, written = jax.nn.sigmoid(forget), jax.nn.sigmoid(input_)
    seen = kept, written
    if master_input != "none":
        seen = master = _master_gates(preactivation[: 2 * levels], master_input)
        overlap = master[0] * master[1]
        kept = kept * overlap + (master[0] - overlap)
        written = written * overlap + (master[1] - overlap)
    depths = 1 - jnp.mean(seen[0], axis=(0, 1)), jnp.mean(seen[1], axis=(0, 1))
    cell = kept * cell + written * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(output) * jnp.tanh(cell)
    return State(hidden.reshape(levels * chunk_size, batch), cell), depths


def _select(mask: jax.Array | None, new: State, old: State) -> State:
    """The new state, or the old one in the columns [B] where the mask is false."""
    return new if mask is None else jax.tree.map(lambda a, b: jnp.where(mask, a, b), new, old)


def _forward(
    master_input: str,
    reverse: bool,
    kernel: jax.Array,
    state: State,
    projected: jax.Array,
    mask: jax.Array | None,
) -> tuple[tuple[jax.Array, State, Depths], tuple[State, jax.Array]]:
    """The output of the loop; the state before each step, and the preactivations [T, G, B]."""
    rows = _cpu.apart(kernel.T, like=kernel.dtype)

    def step(state: State, inputs: tuple) -> tuple[State, tuple]:
        projected, mask = inputs
        preactivation = projected + dot(rows, state.hidden)
        after, depths = _cell(master_input, preactivation, state.cell)
        after = _select(mask, after, state)
        return after, (after.hidden, depths, state, preactivation)

    last, (hidden, depths, *residuals) = lax.scan(step, state, (projected, mask), reverse=reverse)
    return (hidden, last, depths), tuple(residuals)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(
    master_input: str,
    reverse: bool,
    kernel: jax.Array,
    state: State,
    projected: jax.Array,
    mask: jax.Array | None,
) -> tuple[jax.Array, State, Depths]:
    """The loop: [D, G], state, [T, G, B], [T, B] -> hidden [T, D, B], state, depths [T, B]."""
    return _forward(master_input, reverse, kernel, state, projected, mask)[0]


@_run.defjvp
def _run_jvp(
    master_input: str, reverse: bool, primals: tuple, tangents: tuple
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
    output, (before, preactivations) = _forward(master_input, reverse, *primals)
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
    return output, (d_hidden, d_last, d_depths)


# Compiled as one also where the caller compiles nothing: a loop over a new closure would be
# compiled again at every call.
run = jax.jit(_run, static_argnums=(0, 1))
