"""Heat map of a stock Flax attention layer that returns no weights.

    python -m experiments.attention_map [--steps N] [--output FILE.png]

A model of one `flax.nnx.MultiHeadAttention` learns to write a sequence backwards, in seconds. Then
`zoo.capture.capture` reads the attention matrix out of the unchanged layer: a predicate selects the
quotient that ends its softmax. In the picture the bright diagonal from the lower left to the upper
right is the mirror: the output at position t attends to the input at T - 1 - t.
"""

import argparse
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from zoo import extras
from zoo.capture import capture
from zoo.capture.equations import Equation

from ..command_line import local_path

LETTERS = "abcdefghij"
LENGTH, BATCH, FEATURES, HEADS = 12, 64, 32, 2


class Mirror(nnx.Module):
    """Embeddings of letters and places, one attention layer, logits."""

    def __init__(self, rngs: nnx.Rngs):
        self.letters = nnx.Embed(len(LETTERS), FEATURES, rngs=rngs)
        self.places = nnx.Embed(LENGTH, FEATURES, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, FEATURES, decode=False, rngs=rngs)
        self.logits = nnx.Linear(FEATURES, len(LETTERS), rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Logits ``[batch, time, letters]`` of the sequences ``ids`` ``[batch, time]``."""
        places = self.places(jnp.broadcast_to(jnp.arange(LENGTH), ids.shape))
        return self.logits(self.attention(self.letters(ids) + places))


def train(model: Mirror, steps: int) -> Mirror:
    """Adam on random sequences, all steps in one scan."""
    structure, params = nnx.split(model)
    optimizer = optax.adam(1e-2)

    def step(state: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, optimizer_state = state
        ids = jax.random.randint(key, (BATCH, LENGTH), 0, len(LETTERS))

        def loss(params: nnx.State) -> jax.Array:
            logits = nnx.merge(structure, params)(ids)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, ::-1])
            return jnp.mean(losses)

        updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
        return (optax.apply_updates(params, updates), optimizer_state), None

    keys = jax.random.split(jax.random.key(1), steps)
    run = jax.jit(lambda state: jax.lax.scan(step, state, keys))
    (params, _), _ = run((params, optimizer.init(params)))
    return nnx.merge(structure, params)


def is_attention(equation: Equation) -> bool:
    """The quotient that ends a softmax over the keys."""
    return (
        equation.primitive.name == "div"
        and equation.shape[-2:] == (LENGTH, LENGTH)
        and "softmax" in equation.functions
    )


def draw(attention: np.ndarray, words: str) -> "matplotlib.figure.Figure":  # noqa: F821
    """One heat map per head of ``attention`` ``[heads, time, time]``."""
    size = (4 * len(attention) + 0.8, 4)
    figure = extras.require("matplotlib.figure", "plot").Figure(size, layout="constrained")
    axes = figure.subplots(1, len(attention), squeeze=False)[0]
    for head, (axis, weights) in enumerate(zip(axes, attention, strict=True)):
        image = axis.imshow(weights, vmin=0, vmax=1, cmap="viridis")
        axis.set_xticks(range(len(words)), words)
        axis.set_yticks(range(len(words)), words[::-1])
        axis.set(title=f"head {head}", xlabel="letter it attends to")
    axes[0].set_ylabel("letter written")
    figure.colorbar(image, ax=axes, label="attention", shrink=0.8)
    return figure


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """The command; returns what it prints."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", default="attention_map.png", metavar="FILE.png")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    output = local_path(options.output)
    if not output.parent.is_dir() or output.suffix != ".png":
        parser.error(f"--output must be a file .png in a folder that exists, got {output}")
    try:
        extras.require("matplotlib.figure", "plot")  # found out before the training
    except ImportError as error:
        parser.exit(2, f"{error}\n")

    model = train(Mirror(nnx.Rngs(0)), options.steps)
    ids = jax.random.randint(jax.random.key(2), (256, LENGTH), 0, len(LETTERS))
    logits, values = jax.jit(capture(model, where=is_attention))(ids)
    (attention,) = values.values()
    attention = attention.reshape(len(ids), HEADS, LENGTH, LENGTH)

    mirrored = jnp.trace(attention[..., ::-1], axis1=-2, axis2=-1) / LENGTH
    results = {
        "accuracy": float(jnp.mean(jnp.argmax(logits, -1) == ids[:, ::-1])),
        "attention on the mirrored place": float(jnp.mean(mirrored)),
        "change of the output": float(jnp.max(jnp.abs(logits - jax.jit(model)(ids)))),
    }
    for name, value in results.items():
        print(f"{name:32} {value:.4g}")
    text = "".join(LETTERS[i] for i in ids[0])
    draw(np.asarray(attention[0]), text).savefig(output, dpi=80)
    print(f"wrote {output}")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
