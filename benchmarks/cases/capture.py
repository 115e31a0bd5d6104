"""Cases of `zoo.capture`: hidden states and attention matrices of a small Transformer encoder.

All programs return the output and, a layer, what was read; they differ in how it gets out.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.case import Case, Program
from zoo.capture import capture, tap
from zoo.capture.equations import Equation

SIZES = {
    "tiny": {"layers": 2, "batch": 1, "tokens": 8, "units": 8, "heads": 2},
    "small": {"layers": 4, "batch": 8, "tokens": 64, "units": 64, "heads": 4},
    "wide": {"layers": 8, "batch": 8, "tokens": 256, "units": 512, "heads": 8},
}
Mark = Callable[[nn.Module, jax.Array], jax.Array]


def is_attention(equation: Equation) -> bool:
    """The quotient that ends a softmax."""
    return equation.primitive.name == "div" and "softmax" in equation.functions


class Block(nn.Module):
    """Pre-norm attention and two dense layers; ``mark`` sees the result."""

    heads: int
    mark: Mark = lambda module, x: x
    sow_weights: bool = False
    attention_fn: Callable[..., jax.Array] = nn.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The next hidden state."""
        attention = nn.MultiHeadDotProductAttention(self.heads, attention_fn=self.attention_fn)
        x = x + attention(nn.LayerNorm()(x), sow_weights=self.sow_weights)
        x = x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))))
        return self.mark(self, x)


class Encoder(nn.Module):
    """Blocks one after the other; hands out their results if asked to."""

    layers: int
    block: dict[str, Any]
    returns_hidden: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """The output, with all hidden states if asked to."""
        hidden = []
        for index in range(self.layers):
            x = Block(**self.block, name=f"block_{index}")(x)
            hidden.append(x)
        return (x, hidden) if self.returns_hidden else x


class Step(nn.Module):
    """A block as the body of a scan."""

    block: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        """The next hidden state, twice."""
        x = Block(**self.block)(x)
        return x, x


class ScannedEncoder(nn.Module):
    """The same blocks, rolled into one scan."""

    layers: int
    block: dict[str, Any]
    returns_hidden: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """The output, with all hidden states if asked to."""
        scanned = nn.scan(
            Step,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, hidden = scanned(self.block)(x, None)
        return (x, hidden) if self.returns_hidden else x


def tapped(_: nn.Module, x: jax.Array) -> jax.Array:
    return tap(x, "hidden")


def sown(module: nn.Module, x: jax.Array) -> jax.Array:
    module.sow("intermediates", "hidden", x)
    return x


def program(
    reader: Callable[[nn.Module], Callable[..., Any]],
    encoder: Callable[..., nn.Module],
    options: dict[str, Any],
    block: dict[str, Any],
    gradient: bool = False,
    *,
    layers: int,
    batch: int,
    tokens: int,
    units: int,
    heads: int,
) -> Program:
    x = jax.random.normal(jax.random.key(0), (batch, tokens, units))
    plain = encoder(layers, {"heads": heads})
    generator = np.random.default_rng(1)  # initialisers would have to be compiled
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(scale=units**-0.5, size=leaf.shape), leaf.dtype),
        jax.eval_shape(plain.init, jax.random.key(1), x),
    )
    read = reader(encoder(layers, {"heads": heads, **block}, **options))
    if not gradient:
        return read, (variables, x)

    def loss(variables: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        output, values = read(variables, x)
        return jnp.sum(output**2), values

    return jax.value_and_grad(loss, has_aux=True), (variables, x)


def by_capture(**options: Any) -> Callable[[nn.Module], Callable[..., Any]]:
    def reader(model: nn.Module) -> Callable[..., Any]:
        captured = capture(model.apply, **options)

        def run(variables: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            output, values = captured(variables, x)
            return output, list(values.values())

        return run

    return reader


def by_return(model: nn.Module) -> Callable[..., Any]:
    return model.apply


def by_sow(model: nn.Module) -> Callable[..., Any]:
    def run(variables: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        output, updates = model.apply(variables, x, mutable=["intermediates"])
        return output, jax.tree.leaves(updates)

    return run


def by_capture_intermediates(model: nn.Module) -> Callable[..., Any]:
    def run(variables: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        output, updates = model.apply(
            variables,
            x,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Block),
        )
        return output, jax.tree.leaves(updates)

    return run


def by_list(layers: int, heads: int, **size: int) -> Program:
    """The trick with ``attention_fn`` and a list outside of it."""

    def reader(model: nn.Module) -> Callable[..., Any]:
        def run(variables: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            kept.clear()
            return model.apply(variables, x), list(kept)

        return run

    kept: list[jax.Array] = []

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, **_: Any) -> jax.Array:
        kept.append(nn.dot_product_attention_weights(query, key))
        return jnp.einsum("...hqk,...khd->...qhd", kept[-1], value)

    return program(
        reader, Encoder, {}, {"attention_fn": attend}, layers=layers, heads=heads, **size
    )


class AttentionStack(nnx.Module):
    """Attention layers of NNX, which sow their weights; no dense layers."""

    def __init__(self, layers: int, units: int, heads: int):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(
            [nnx.MultiHeadAttention(heads, units, decode=False, rngs=rngs) for _ in range(layers)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """The output of the last layer."""
        for layer in self.layers:
            x = x + layer(x, sow_weights=True)
        return x


def by_nnx_capture(*, layers: int, batch: int, tokens: int, units: int, heads: int) -> Program:
    structure, state = nnx.split(AttentionStack(layers, units, heads))

    def run(state: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        model = nnx.merge(structure, state)
        output, weights = nnx.capture(model, nnx.Intermediate)(x)
        return output, jax.tree.leaves(weights)

    return run, (state, jax.random.normal(jax.random.key(0), (batch, tokens, units)))


def tokens(layers: int, batch: int, tokens: int, **_: int) -> int:
    return layers * batch * tokens


def hidden_case(name: str, encoder: type[nn.Module], gradient: bool) -> Case:
    def with_reader(*arguments: Any) -> Callable[..., Program]:
        return functools.partial(program, *arguments, gradient=gradient)

    rivals = {
        "returned by hand": with_reader(by_return, encoder, {"returns_hidden": True}, {}),
        "Linen sow": with_reader(by_sow, encoder, {}, {"mark": sown}),
        "not read": with_reader(lambda model: lambda *a: (model.apply(*a), []), encoder, {}, {}),
    }
    equal = ["returned by hand", "Linen sow"]
    if encoder is Encoder:
        rivals["Linen capture_intermediates"] = with_reader(
            by_capture_intermediates, encoder, {}, {}
        )
        equal.append("Linen capture_intermediates")
    return Case(
        name=name,
        build=with_reader(by_capture(names="hidden"), encoder, {}, {"mark": tapped}),
        rivals=rivals,
        equal=tuple(equal),
        sizes=SIZES,
        small=("tiny", "small"),
        count=tokens,
        unit="layer tokens",
    )


CASES = [
    hidden_case("capture.hidden states", Encoder, gradient=False),
    hidden_case("capture.hidden states gradient", Encoder, gradient=True),
    hidden_case("capture.hidden states in a scan", ScannedEncoder, gradient=False),
    Case(
        name="capture.attention",
        build=functools.partial(program, by_capture(where=is_attention), Encoder, {}, {}),
        rivals={
            "list in attention_fn": by_list,
            "Linen sow_weights": functools.partial(
                program, by_sow, Encoder, {}, {"sow_weights": True}
            ),
            "NNX capture, attention only": by_nnx_capture,
        },
        equal=("list in attention_fn", "Linen sow_weights"),
        sizes=SIZES,
        small=("tiny", "small"),
        count=tokens,
        unit="layer tokens",
    ),
    Case(
        name="capture.tap nobody reads",
        build=functools.partial(program, by_return, Encoder, {}, {"mark": tapped}),
        rivals={"no tap": functools.partial(program, by_return, Encoder, {}, {})},
        equal=("no tap",),
        sizes=SIZES,
        small=("tiny", "small"),
        count=tokens,
        unit="layer tokens",
    ),
]
