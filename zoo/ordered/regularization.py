"""The regularisation of AWD-LSTM, as ON-LSTM's language model uses it.

    locked dropout      one mask for all steps of a sequence (``dropout`` with shared_axes)
    embedding dropout   complete rows of the word table      (the same)
    weight drop         recurrent weights set to 0, one mask for a batch and all its steps
    AR                  activation · mean h_t²
    TAR                 temporal · mean (h_t - h_{t-1})²

Averaging is in ``zoo.ordered.nt_asgd``. Source: Stephen Merity, Nitish Shirish Keskar, Richard
Socher, "Regularizing and Optimizing LSTM Language Models", 2017, arXiv 1708.02182; AR and TAR:
Merity, McCann, Socher, "Revisiting Activation Regularization for Language RNNs", 2017,
arXiv 1708.01009.
"""

import jax
import jax.numpy as jnp

from zoo import _checks


def dropout(
    key: jax.Array, x: jax.Array, *, rate: float, shared_axes: tuple[int, ...] = ()
) -> jax.Array:
    """Dropout whose mask is the same all along ``shared_axes``.

    y = x · m / (1 - rate),  m ~ Bernoulli(1 - rate), one draw per entry of the other axes.

    Args:
        key: typed key, consumed.
        x: any shape.
        rate: share of entries set to 0, in [0, 1).
        shared_axes: axes along which the mask does not change: time for locked dropout, the
            features of an embedding table to drop complete words.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: if ``rate`` is outside [0, 1).

    >>> import jax, jax.numpy as jnp
    >>> y = dropout(jax.random.key(0), jnp.ones((2, 3)), rate=0.5, shared_axes=(1,))
    >>> bool((y == y[:, :1]).all())
    True

    Reference: arXiv 1708.02182, sections 4.2 and 4.3.
    """
    rate = _checks.number("dropout: rate", rate, at_least=0, below=1)
    shared = {axis % x.ndim for axis in shared_axes}
    shape = tuple(1 if axis in shared else size for axis, size in enumerate(x.shape))
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def weight_drop(
    key: jax.Array | None, kernel: jax.Array, *, rate: float, inverted: bool = True
) -> jax.Array:
    """A recurrent kernel with a share of its weights set to 0, for all steps of a batch.

    With m ~ Bernoulli(1 - rate), one draw per weight:

        inverted      training: kernel · m / (1 - rate)    evaluation: kernel
        as original   training: kernel · m                 evaluation: kernel · (1 - rate)

    The two differ in the size of the stored weights, and so in the steps of an optimiser; weights
    that the original trained need the second form.

    Args:
        key: typed key, consumed; None for evaluation.
        kernel: any shape.
        rate: share of weights set to 0, in [0, 1).
        inverted: which form.

    Returns:
        The shape and dtype of ``kernel``.

    Raises:
        ValueError: if ``rate`` is outside [0, 1).

    >>> import jax, jax.numpy as jnp
    >>> weight_drop(None, jnp.ones(2), rate=0.25, inverted=False).tolist()
    [0.75, 0.75]

    Reference: arXiv 1708.02182, section 2; the second form is that of ON-LSTM's code.
    """
    rate = _checks.number("weight_drop: rate", rate, at_least=0, below=1)
    if inverted:
        return kernel if key is None else dropout(key, kernel, rate=rate)
    if key is None:
        return kernel * (1 - rate)
    return jnp.where(jax.random.bernoulli(key, 1 - rate, kernel.shape), kernel, 0)


def activation_penalty(
    hidden: jax.Array, *, activation: float = 2.0, temporal: float = 1.0
) -> jax.Array:
    """AR and TAR of the last layer's states, to be added to the loss of each token.

    penalty_t = activation · mean_d h_td² + temporal · T / (T - 1) · mean_d (h_td - h_{t-1,d})²,

    the second term from the second step on; the mean over all tokens is then that of the source,
    where TAR is averaged over T - 1 differences.

    Args:
        hidden: ``[B, T, D]``, before the dropout of the output, as ON-LSTM's code has it (AWD-LSTM
            takes AR after it).
        activation: strength of AR.
        temporal: strength of TAR.

    Returns:
        ``[B, T]`` in at least float32.

    Raises:
        ValueError: if ``hidden`` is not [batch, time, units], or a strength is not finite.

    >>> import jax.numpy as jnp
    >>> activation_penalty(jnp.array([[[1.0], [3.0]]])).tolist()
    [[2.0, 26.0]]

    Reference: arXiv 1708.01009, section 3.
    """
    activation = _checks.number("activation", activation)
    temporal = _checks.number("temporal", temporal)
    time = _checks.shapes(hidden=(hidden, "B T D"))["T"]
    hidden = hidden.astype(_checks.accumulator(hidden.dtype))
    penalty = activation * jnp.mean(hidden**2, axis=-1)
    steps = jnp.mean(jnp.diff(hidden, axis=1) ** 2, axis=-1)
    return penalty + temporal * time / max(time - 1, 1) * jnp.pad(steps, ((0, 0), (1, 0)))
