"""ON-LSTM: an LSTM whose units are ordered, so that its forgetting draws a tree over the sentence.

One step, with C units to a chunk and L = D / C chunks ("levels"); the C units of a level share one
value of each master gate:

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

Sources: Yikang Shen, Shawn Tan, Alessandro Sordoni, Aaron Courville, "Ordered Neurons: Integrating
Tree Structures into Recurrent Neural Networks", 2018, arXiv 1810.09536; Su Jianlin,
https://kexue.fm/archives/6621.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import _checks
from zoo.ordered import _loop
from zoo.ordered.gates import cumax

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
    """The two master gates, each monotone over the levels."""

    forget: jax.Array  # [..., L], f̃: 0 … 1, how much of each level's history is kept
    input: jax.Array  # [..., L], ĩ: 1 … 0, how much of each level the word may write


class Depths(NamedTuple):
    """How far up each master gate reaches at each step, as a fraction of the levels, in [0, 1]."""

    forget: jax.Array  # [B] or [T, B], 1 - mean_k f̃_k: the largest where the largest unit ends
    input: jax.Array  # [B] or [T, B], mean_k ĩ_k


class OnLstmOutput(NamedTuple):
    """The result of :func:`on_lstm`."""

    hidden: jax.Array  # [T, B, D]
    carry: OnLstmCarry  # after the last step
    depths: Depths  # [T, B] each, in at least float32: trees are read from their order


def master_gates(logits: jax.Array, *, master_input: MasterInput = "complement") -> MasterGates:
    """The two master gates, f̃ = cumax(...) and ĩ = 1 - cumax(...).

    Args:
        logits: ``[..., 2L]``, what stands in the two brackets: master input L | master forget L.
        master_input: ``"complement"`` (paper) or ``"reverse"`` (article).

    Returns:
        ``MasterGates``, each ``[..., L]``.

    Raises:
        ValueError: for another ``master_input``.

    >>> import jax.numpy as jnp
    >>> gates = master_gates(jnp.array([0.0, 0.0, 5.0, -jnp.inf]))
    >>> print(gates.forget, gates.input)
    [1. 1.] [0.5 0. ]

    Reference: arXiv 1810.09536, equations 9 and 10.
    """
    _checks.choice("master_gates: master_input", master_input, ("complement", "reverse"))
    input_logits, forget_logits = jnp.split(logits, 2, axis=-1)
    if master_input == "reverse":
        return MasterGates(cumax(forget_logits), cumax(input_logits, reverse=True))
    return MasterGates(cumax(forget_logits), 1 - cumax(input_logits))


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
    chunk_size = _checks.count("chunk_size", chunk_size)
    units = _check(params, carry, chunk_size, master_input, x=(x, "B I"))
    logits = _loop.dot(x, params.input_kernel)
    logits += _loop.dot(carry.hidden.astype(x.dtype), params.recurrent_kernel)
    logits += params.bias.astype(logits.dtype)[None]
    by_level = logits[:, -4 * units :].reshape(len(x), 4, units // chunk_size, chunk_size)
    output, candidate, input_, forget = jnp.unstack(by_level, axis=1)  # [B, L, C] each

    f, i, o = jax.nn.sigmoid(forget), jax.nn.sigmoid(input_), jax.nn.sigmoid(output)
    candidate = jnp.tanh(candidate)
    master = f, i
    if master_input != "none":
        gates = master_gates(logits[:, : -4 * units], master_input=master_input)
        master = master_forget, master_in = gates.forget[..., None], gates.input[..., None]
        overlap = master_forget * master_in
        f = f * overlap + (master_forget - overlap)
        i = i * overlap + (master_in - overlap)
    cell = f * carry.cell + i * candidate
    hidden = (o * jnp.tanh(cell)).reshape(len(x), units)

    carry = OnLstmCarry(hidden.astype(x.dtype), cell.astype(x.dtype))
    forgotten, written = (jnp.mean(gate, axis=(1, 2)) for gate in master)
    return carry, Depths(1 - forgotten, written)


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

    The loop is a faster form of a scan of that step, see ``zoo/ordered/_loop.py``: the input
    product, and in the gradient both weight products, are taken over all steps at once.

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
    chunk_size = _checks.count("chunk_size", chunk_size)
    units = _check(params, carry, chunk_size, master_input, xs=(xs, "T B I"))
    if carry is None:
        carry = initial_carry(xs.shape[1], units, chunk_size=chunk_size, dtype=xs.dtype)
        # Like xs, they vary over the axes of shard_map: loops ask for it.
        carry = jax.tree.map(lambda zeros: jnp.zeros_like(xs, shape=zeros.shape), carry)
    if mask is not None:
        if mask.shape != xs.shape[:2] or mask.dtype != bool:
            raise ValueError(
                f"mask must be bool [time, batch] = {xs.shape[:2]} like xs, got {mask.dtype} "
                f"{mask.shape}; from lengths: jnp.arange(time)[:, None] < lengths[None]"
            )
        xs = jnp.where(mask[..., None], xs, 0)
    projected = _loop.dot(xs, params.input_kernel)
    projected = (projected + params.bias.astype(projected.dtype)[None, None]).swapaxes(1, 2)
    state = _loop.State(carry.hidden.T, jnp.moveaxis(carry.cell, 0, -1))
    state = jax.tree.map(lambda x: x.astype(projected.dtype), state)
    kernel = params.recurrent_kernel.astype(xs.dtype)
    hidden, last, depths = _loop.run(master_input, reverse, kernel, state, projected, mask)
    if mask is not None:
        depths = jax.tree.map(lambda depth: jnp.where(mask, depth, 0), depths)
    carry = OnLstmCarry(last.hidden.T, jnp.moveaxis(last.cell, -1, 0))
    carry = jax.tree.map(lambda x: x.astype(xs.dtype), carry)
    return OnLstmOutput(hidden.swapaxes(1, 2).astype(xs.dtype), carry, Depths(*depths))


def initial_carry(batch: int, features: int, *, chunk_size: int, dtype: Any = None) -> OnLstmCarry:
    """A carry of zeros for B sequences and D units: ``[B, D]`` and ``[B, D / C, C]``."""
    levels = _num_levels(features, chunk_size)
    cell = jnp.zeros((batch, levels, chunk_size), dtype)
    return OnLstmCarry(jnp.zeros((batch, features), dtype), cell)


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


def _num_columns(features: int, chunk_size: int, master_input: str) -> int:
    """4D + 2L, or 4D without master gates."""
    _checks.choice("master_input", master_input, ("complement", "reverse", "none"))
    levels = _num_levels(features, chunk_size)
    return 4 * features + (0 if master_input == "none" else 2 * levels)


def _check(
    params: OnLstmParams,
    carry: OnLstmCarry | None,
    chunk_size: int,
    master_input: str,
    **inputs: tuple[jax.Array, str],
) -> int:
    """Checks what a layer is given; returns its number of units."""
    units = params.recurrent_kernel.shape[0]
    columns = _num_columns(units, chunk_size, master_input)
    for name, (x, _) in inputs.items():
        _checks.floating(name, x)
    arrays = {
        "params.input_kernel": (params.input_kernel, f"I {columns}"),
        "params.recurrent_kernel": (params.recurrent_kernel, f"{units} {columns}"),
        "params.bias": (params.bias, f"{columns}"),
    }
    if carry is not None:
        inputs["carry.hidden"] = (carry.hidden, f"B {units}")
        inputs["carry.cell"] = (carry.cell, f"B {units // chunk_size} {chunk_size}")
    _checks.shapes(**arrays, **inputs)
    return units
