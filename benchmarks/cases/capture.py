"""Cases of `zoo.capture`: hidden states and attention matrices of a small Transformer encoder.

All programs return the output and, per layer, what was read; they differ in how it gets out.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.capture import capture, tap
from zoo.capture.equations import Equation

from ..case import Case, Program

partial = functools.partial
Reader = Callable[[nn.Module], Callable[..., Any]]  # from a model to a function of variables and x


class Block(nn.Module):
    """Pre-norm attention and two dense layers; ``mark`` sees the result."""

    heads: int
    mark: Callable[[nn.Module, jax.Array], jax.Array] = lambda module, x: x
    sow_weights: bool = False
    attention_fn: Callable[..., jax.Array] = nn.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The next hidden state."""
        attention = nn.MultiHeadDotProductAttention(self.heads, attention_fn=self.attention_fn)
        x = x + attention(nn.LayerNorm()(x), sow_weights=self.sow_weights)
        x = x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))))
        return self.mark(self, x)


class Step(nn.Module):
    """A block as the body of a scan."""

    block: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        """The next hidden state, twice."""
        x = Block(**self.block)(x)
        return x, x


class Encoder(nn.Module):
    """Blocks one after the other, or rolled into one scan; returns their results if asked to."""

    layers: int
    block: dict[str, Any]
    scanned: bool = False
    returns_hidden: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """The output, with all hidden states if asked to."""
        hidden: Any = []
        if self.scanned:
            axes, rngs = {"params": 0, "intermediates": 0}, {"params": True}
            step = nn.scan(Step, variable_axes=axes, split_rngs=rngs, length=self.layers)
            x, hidden = step(self.block)(x, None)
        else:
            for index in range(self.layers):
                x = Block(**self.block, name=f"block_{index}")(x)
                hidden.append(x)
        return (x, hidden) if self.returns_hidden else x


def inputs(*, batch: int, tokens: int, units: int, **_: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (batch, tokens, units))


def program(
    reader: Reader,
    block: dict[str, Any] | None = None,
    *,
    gradient: bool = False,
    scanned: bool = False,
    returns_hidden: bool = False,
    **size: int,
) -> Program:
    """What the reader makes of an encoder of such blocks, or the gradient of its squares too."""
    x, heads = inputs(**size), {"heads": size["heads"]}
    plain = Encoder(size["layers"], heads, scanned)
    generator = np.random.default_rng(1)  # initialisers would have to be compiled
    scale = size["units"] ** -0.5
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(scale=scale, size=leaf.shape), leaf.dtype),
        jax.eval_shape(plain.init, jax.random.key(1), x),
    )
    read = reader(Encoder(size["layers"], heads | (block or {}), scanned, returns_hidden))
    if not gradient:
        return read, (variables, x)

    def loss(variables: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        output, values = read(variables, x)
        return jnp.sum(output**2), values

    return jax.value_and_grad(loss, has_aux=True), (variables, x)


def by_capture(**options: Any) -> Reader:
    return lambda model: capture(model.apply, **options)


def by_return(model: nn.Module) -> Callable[..., Any]:
    return model.apply


def by_linen(**options: Any) -> Reader:
    return lambda model: partial(model.apply, **{"mutable": ["intermediates"], **options})


def not_read(model: nn.Module) -> Callable[..., Any]:
    return lambda *arguments: (model.apply(*arguments), [])


def by_list(**size: int) -> Program:
    """The trick with ``attention_fn`` and a list outside of it."""
    kept: list[jax.Array] = []

    def reader(model: nn.Module) -> Callable[..., Any]:
        def run(variables: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            kept.clear()
            return model.apply(variables, x), list(kept)

        return run

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, **_: Any) -> jax.Array:
        kept.append(nn.dot_product_attention_weights(query, key))
        return jnp.einsum("...hqk,...khd->...qhd", kept[-1], value)

    return program(reader, {"attention_fn": attend}, **size)


class AttentionStack(nnx.Module):
    """Attention layers of NNX, which may sow their weights; no dense layers."""

    def __init__(self, layers: int, units: int, heads: int, sows: bool = False):
        rngs, self.sows = nnx.Rngs(0), sows
        self.layers = nnx.List(
            [nnx.MultiHeadAttention(heads, units, decode=False, rngs=rngs) for _ in range(layers)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """The output of the last layer."""
        for layer in self.layers:
            x = x + layer(x, sow_weights=self.sows)
        return x


def by_nnx_capture(**size: int) -> Program:
    model = AttentionStack(size["layers"], size["units"], size["heads"], sows=True)
    structure, state = nnx.split(model)

    def run(state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return nnx.capture(nnx.merge(structure, state), nnx.Intermediate)(x)

    return run, (state, inputs(**size))


def by_path(read: Callable[..., Any], **size: int) -> Program:
    """What every layer of an NNX model returns; ``read(model, x) -> (output, values)``."""
    model = AttentionStack(size["layers"], size["units"], size["heads"])
    structure, state = nnx.split(model)

    def run(state: Any, x: jax.Array) -> tuple[jax.Array, list[Any]]:
        output, values = read(nnx.merge(structure, state), x)
        return output, jax.tree.leaves(values)

    return run, (state, inputs(**size))


def layers_by_path(model: Any, x: jax.Array) -> Any:
    return capture(model, paths="layers.*")(x)


def layers_by_nnx(model: Any, x: jax.Array) -> Any:
    output, values = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(x)
    return output, [values["layers"][i]["__call__"] for i in range(len(model.layers))]


def layers_by_hand(model: Any, x: jax.Array) -> Any:
    values = []
    for layer in model.layers:
        values.append(layer(x))
        x = x + values[-1]
    return x, values


def gradients_by_path(model: Any, x: jax.Array) -> Any:
    run = capture(lambda model, x: jnp.sum(model(x) ** 2), paths="layers.*", gradients=True)
    loss, *values = run(model, x)
    return loss, values


def gradients_by_hand(model: Any, x: jax.Array) -> Any:
    def loss(shifts: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        values, y = [], x
        for layer, shift in zip(model.layers, shifts, strict=True):
            values.append(layer(y) + shift)
            y = y + values[-1]
        return jnp.sum(y**2), values

    shifts = [jnp.zeros_like(x) for _ in model.layers]
    (value, values), gradients = jax.value_and_grad(loss, has_aux=True)(shifts)
    return value, [values, gradients]


def tapped(_: nn.Module, x: jax.Array) -> jax.Array:
    return tap(x, "hidden")


def sown(module: nn.Module, x: jax.Array) -> jax.Array:
    module.sow("intermediates", "hidden", x)
    return x


def is_attention(equation: Equation) -> bool:
    """The quotient that ends a softmax."""
    return equation.primitive.name == "div" and "softmax" in equation.functions


def case(name: str, ours: Any, rivals: dict[str, Any], unequal: tuple[str, ...] = ()) -> Case:
    return Case(
        name=f"capture.{name}",
        build=ours,
        rivals=rivals,
        equal=tuple(rival for rival in rivals if rival not in unequal),
        sizes={
            "tiny": {"layers": 2, "batch": 1, "tokens": 8, "units": 8, "heads": 2},
            "small": {"layers": 4, "batch": 8, "tokens": 64, "units": 64, "heads": 4},
            "wide": {"layers": 8, "batch": 8, "tokens": 256, "units": 512, "heads": 8},
        },
        small=("tiny", "small"),
        count=lambda layers, batch, tokens, **_: layers * batch * tokens,
        unit="layer tokens",
    )


def hidden_case(name: str, **options: bool) -> Case:
    build = partial(partial, program, **options)
    rivals = {
        "returned by hand": build(by_return, returns_hidden=True),
        "Linen sow": build(by_linen(), {"mark": sown}),
        "not read": build(not_read),
    }
    if "scanned" not in options:
        blocks = by_linen(capture_intermediates=lambda module, _: isinstance(module, Block))
        rivals["Linen capture_intermediates"] = build(blocks)
    ours = build(by_capture(names="hidden"), {"mark": tapped})
    return case(f"hidden states{name}", ours, rivals, unequal=("not read",))


CASES = [
    hidden_case(""),
    hidden_case(" gradient", gradient=True),
    hidden_case(" in a scan", scanned=True),
    case(
        "attention",
        partial(program, by_capture(where=is_attention)),
        {
            "list in attention_fn": by_list,
            "Linen sow_weights": partial(program, by_linen(), {"sow_weights": True}),
            "NNX capture, attention only": by_nnx_capture,
        },
        unequal=("NNX capture, attention only",),
    ),
    case(
        "modules by path",
        partial(by_path, layers_by_path),
        {
            "returned by hand": partial(by_path, layers_by_hand),
            "NNX capture, all methods": partial(by_path, layers_by_nnx),
        },
    ),
    case(
        "gradients of modules",
        partial(by_path, gradients_by_path),
        {"by hand": partial(by_path, gradients_by_hand)},
    ),
    case(
        "tap nobody reads",
        partial(program, by_return, {"mark": tapped}),
        {"no tap": partial(program, by_return)},
    ),
]
