"""The attention matrix of models without annotations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from tests.capture.test_capture import assert_same
from zoo.capture import capture

B, T, D, HEADS = 2, 5, 8, 2


def is_attention(equation):
    """The quotient that ends a softmax over the keys."""
    return (
        equation.primitive.name == "div"
        and equation.shape[-2:] == (T, T)
        and "softmax" in equation.functions
    )


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = random(7, B, T, D)
MASK = np.broadcast_to((np.arange(T) < np.array([[5], [3]]))[:, None, None], (B, 1, T, T))


@functools.cache
def nnx_layer():
    return nnx.jit(lambda: nnx.MultiHeadAttention(HEADS, D, decode=False, rngs=nnx.Rngs(0)))()


def nnx_attention():
    layer = nnx_layer()
    return lambda x, mask: layer(x, mask=mask)


def linen_attention():
    layer = nn.MultiHeadDotProductAttention(HEADS)
    variables = quick_jit(layer.init)(jax.random.key(0), X)
    return lambda x, mask: layer.apply(variables, x, mask=mask)


def bert_attention():
    """A block as in Hugging Face's BERT: separate projections, additive mask, jitted, remat."""
    names = ("query", "key", "value", "output")
    weights = {name: random(i, D, D) / D**0.5 for i, name in enumerate(names)}

    @jax.jit
    @jax.checkpoint
    def block(weights, x, mask):
        def heads(name):
            return jnp.reshape(x @ weights[name], (B, T, HEADS, D // HEADS))

        scores = jnp.einsum("bthd,bshd->bhts", heads("query"), heads("key"))
        scores = scores / (D // HEADS) ** 0.5 + jnp.where(mask, 0.0, -1e9)
        probabilities = jax.nn.softmax(scores, axis=-1)
        context = jnp.einsum("bhts,bshd->bthd", probabilities, heads("value"))
        return jnp.reshape(context, (B, T, D)) @ weights["output"]

    return lambda x, mask: block(weights, x, mask)


MODELS = {"nnx": nnx_attention, "linen": linen_attention, "bert": bert_attention}


@pytest.mark.parametrize("name", MODELS)
def test_rows_sum_to_one_masked_columns_are_zero_and_the_output_stays(name):
    model = MODELS[name]()
    output, values = jax.jit(capture(model, where=is_attention))(X, MASK)
    assert_same(output, jax.jit(model)(X, MASK))
    (attention,) = values.values()
    attention = attention.reshape(B, HEADS, T, T)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-6)
    assert (attention[1, :, :, 3:] == 0).all()
    assert (attention[0] > 0).all()


def test_attention_times_values_is_the_output_of_the_layer():
    layer = nnx_layer()

    @quick_jit
    def both(x):
        output, values = capture(lambda x: layer(x, mask=MASK), where=is_attention)(x)
        (attention,) = values.values()
        attention = attention.reshape(B, HEADS, T, T)
        return output, layer.out(jnp.einsum("bhts,bshd->bthd", attention, layer.value(x)))

    np.testing.assert_allclose(*both(X), atol=1e-5)


def test_scopes_of_linen_name_the_layers_of_a_model():
    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = x + nn.MultiHeadDotProductAttention(HEADS)(x)
            return x

    variables = jax.eval_shape(Encoder().init, jax.random.key(0), X)
    _, values = jax.eval_shape(capture(Encoder().apply, where=is_attention), variables, X)
    layers = [f"Encoder/MultiHeadDotProductAttention_{i}/div" for i in range(2)]
    assert list(values) == layers


def test_functions_are_those_of_this_caller_though_a_jitted_one_was_traced_for_another():
    @jax.jit
    def shared(x):
        return jnp.exp(x)

    def first(x):
        return shared(x)

    def second(x):
        return shared(x)

    def model(x):
        return first(x) + second(2 * x)

    def made_in(name):
        return lambda e: (
            e.primitive.name == "exp" and any(f.endswith("<locals>." + name) for f in e.functions)
        )

    x = random(0, 3)
    first(x)
    for name, factor in (("first", 1), ("second", 2)):
        _, values = capture(model, where=made_in(name))(x)
        np.testing.assert_allclose(values["exp"], jnp.exp(factor * x), rtol=1e-6)
    assert list(capture(model, where=made_in("model"))(x)[1]) == ["exp#0", "exp#1"]


def test_what_a_predicate_sees():
    seen = {}

    def look(equation):
        seen[equation.primitive.name] = equation
        return equation.shape == (3,)

    def model(x):
        with jax.named_scope("outer"):
            y = jax.vmap(lambda x: jax.named_scope("inner")(jnp.tanh)(x))(x)
        return jax.jit(jnp.sum)(y), jax.debug.print("{}", 1)

    _, values = capture(model, where=look)(random(0, 3))
    assert list(values) == ["outer/inner/tanh"]
    tanh = seen["tanh"]
    assert tanh.scope == "outer/inner"
    assert len(tanh.outvars) == 1
    assert "tanh" in repr(tanh)
    assert any(
        name.endswith("test_what_a_predicate_sees.<locals>.model") for name in tanh.functions
    )
    assert seen["debug_print" if "debug_print" in seen else "debug_callback"].shape is None
    assert seen["reduce_sum"].shape == ()
