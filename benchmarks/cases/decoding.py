"""Cases of `zoo.decoding`: greedy generation with a key/value cache, the prompt included.

Prompts of unequal length are padded on the left.

Float32, the weights of one BERT with a causal mask, drawn wide enough that no two logits are nearly
equal: all programs must write the same tokens.
"""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from zoo.decoding import prefill, sample
from zoo.transformer import Transformer, TransformerConfig

from ..case import Case, Floor, Program, torch_programs

TINY = {"prompt": 4, "new": 6, "vocabulary": 500, "units": 64, "depth": 2, "heads": 2}
MINI_LM = {"prompt": 16, "new": 64, "vocabulary": 30522, "units": 384, "depth": 6, "heads": 12}
BERT_BASE = {"prompt": 16, "new": 32, "vocabulary": 30522, "units": 768, "depth": 12, "heads": 12}


@functools.lru_cache(maxsize=1)
def bert(
    *, time: int, vocabulary: int, units: int, depth: int, heads: int, **options: Any
) -> Transformer:
    """A Transformer without dropout."""
    config = TransformerConfig(
        vocab_size=vocabulary,
        features=units,
        num_layers=depth,
        num_heads=heads,
        feedforward_features=4 * units,
        max_positions=time,
        dropout=0.0,
        **options,
    )
    return Transformer(config, rngs=nnx.Rngs(0))


def inputs(*, batch: int, prompt: int, new: int, **size: int) -> tuple[Transformer, np.ndarray]:
    """The model and the prompts."""
    ids = np.random.default_rng(0).integers(size["vocabulary"], size=(batch, prompt))
    model = bert(time=prompt + new, **size, mask="causal", initial_scale=0.1)
    return model, ids.astype(np.int32)


def greedy(*, new: int, **size: int) -> Program:
    def generate(model: Transformer, prompt: jax.Array) -> jax.Array:
        read = prefill(model, prompt, max_length=new)
        key, options = jax.random.key(0), {"max_length": new, "temperature": 0}
        return sample(key, read.step_fn, read.state, start=read.start, **options).tokens

    return generate, inputs(new=new, **size)


def hugging_face(**size: int) -> Program:
    return torch_programs().bert_greedy(*inputs(**size), new_tokens=size["new"])


def unequal_inputs(**size: int) -> tuple[Transformer, np.ndarray, np.ndarray]:
    """Prompts of 1, 2, … tokens."""
    model, prompt = inputs(**size)
    lengths = 1 + np.arange(len(prompt))[:, None] % prompt.shape[1]
    mask = np.arange(prompt.shape[1]) >= prompt.shape[1] - lengths
    return model, np.where(mask, prompt, 0), mask


def unequal(*, new: int, **size: int) -> Program:
    def generate(model: Transformer, prompt: jax.Array, mask: jax.Array) -> jax.Array:
        read = prefill(model, prompt, max_length=new, mask=mask)
        key, options = jax.random.key(0), {"max_length": new, "temperature": 0}
        return sample(key, read.step_fn, read.state, start=read.start, **options).tokens

    return generate, unequal_inputs(new=new, **size)


def hugging_face_unequal(**size: int) -> Program:
    return torch_programs().bert_greedy(*unequal_inputs(**size), new_tokens=size["new"])


def floor(*, batch: int, prompt: int, new: int, vocabulary: int, **size: int) -> Floor:
    """Matrix products for every token; the parameters are read once, then once per token."""
    units, depth = size["units"], size["depth"]
    length = prompt + new
    layers, head = 12 * units**2 * depth, units * (units + vocabulary)
    pairs = 4 * units * depth * length**2 // 2
    operations = batch * (2 * (length - 1) * layers + pairs + 2 * new * head)
    return Floor(operations, 4 * (new + (prompt > 1)) * layers + 4 * new * head)


CASES = [
    Case(
        name="decoding.sample, greedy",
        sizes={
            "tiny": {"batch": 2, **TINY},
            "MiniLM, batch 1": {"batch": 1, **MINI_LM},
            "MiniLM, batch 64": {"batch": 64, **MINI_LM},
            "BERT-base, batch 1": {"batch": 1, **BERT_BASE},
            "BERT-base, batch 64": {"batch": 64, **BERT_BASE},
        },
        small=("tiny",),
        build=greedy,
        rivals={"Hugging Face": hugging_face},
        equal=("Hugging Face",),
        count=lambda batch, new, **_: batch * new,
        unit="tokens",
        floor=floor,
    ),
    Case(
        name="decoding.sample, greedy, unequal prompts",
        sizes={"tiny": {"batch": 2, **TINY}, "MiniLM, batch 64": {"batch": 64, **MINI_LM}},
        small=("tiny",),
        build=unequal,
        rivals={"Hugging Face": hugging_face_unequal},
        equal=("Hugging Face",),
        count=lambda batch, new, **_: batch * new,
        unit="tokens",
    ),
]
