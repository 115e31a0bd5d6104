"""How far F1 over a batch is below F1 over everything: in value, and in its gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zoo.smooth import smooth_f1
from zoo.smooth.streaming import streaming_f1, streaming_f1_init

from .config import BiasConfig

Rows = list[dict[str, float]]


def bias_table(config: BiasConfig, key: jax.Array, *, remembered_examples: int) -> Rows:
    """F1 of a simulated scorer: the mean over batches of each size, and the streaming form.

    The scorer is a logistic model of two parameters, so that the gradient has a direction: ours are
    the slope and the offset of its logits.
    """
    label_key, noise_key = jax.random.split(key)
    labels = jax.random.bernoulli(label_key, config.positive_share, (config.rows,))
    noise = jax.random.normal(noise_key, (config.rows,))
    logits = config.offset + config.separation * labels + config.noise * noise
    labels = labels.astype(jnp.int32)

    def predict(parameters: jax.Array, logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(parameters[0] * logits + parameters[1])

    @jax.value_and_grad
    def f1(parameters: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return smooth_f1(predict(parameters, logits), labels)

    start = jnp.array([1.0, 0.0])
    f1_of_all, slope = jax.jit(f1)(start, logits, labels)

    @functools.partial(jax.jit, static_argnums=0)
    def of_batches(size: int, logits: jax.Array, labels: jax.Array) -> tuple:
        batches = logits.reshape(-1, size), labels.reshape(-1, size)
        values, slopes = jax.vmap(lambda *batch: f1(start, *batch))(*batches)
        decay = max(0.0, 1 - size / remembered_examples)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def stream(parameters: jax.Array, state: Any, logits: jax.Array, labels: jax.Array) -> Any:
            state, f1 = streaming_f1(state, predict(parameters, logits), labels, decay=decay)
            return f1, state

        def step(state: Any, batch: tuple) -> tuple:
            (f1, state), slope = stream(start, state, *batch)
            return state, (f1, slope)

        _, (streamed, streamed_slopes) = jax.lax.scan(step, streaming_f1_init(), batches)
        warm = len(streamed) // 8  # the first batches fill the state
        return (
            jnp.mean(values),
            jnp.mean(slopes, axis=0),
            jnp.mean(streamed[warm:]),
            jnp.mean(streamed_slopes[warm:], axis=0),
        )

    rows = []
    for size in config.batch_sizes:
        value, batch_slope, streamed, streamed_slope = of_batches(size, logits, labels)
        rows.append(
            {
                "batch size": size,
                "mean of batch F1": float(value),
                "mean of streaming F1": float(streamed),
                "F1 of all": float(f1_of_all),
                "gradient error, batch": _relative_error(batch_slope, slope),
                "gradient error, streaming": _relative_error(streamed_slope, slope),
            }
        )
    return rows


def _relative_error(found: jax.Array, true: jax.Array) -> float:
    return float(jnp.linalg.norm(found - true) / jnp.linalg.norm(true))
