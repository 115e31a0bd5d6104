"""Damaged configs, indices, safetensors and state dicts: documented errors only, in bounded time.

``ZOO_FUZZ`` is the number of inputs per parser.
"""

import copy
import dataclasses
import functools
import json
import os
import warnings

import numpy as np
import pytest
from flax import nnx

from tests.transformer.test_model import build
from zoo.transformer import TransformerConfig, load_bert
from zoo.transformer import checkpoint_files as files
from zoo.transformer.architectures import ARCHITECTURES, FIXED, read_config
from zoo.transformer.tensor_names import fill_parameters
from zoo.transformer.weights import save_bert, state_dict

COUNT = int(os.environ.get("ZOO_FUZZ", "300"))
TINY = TransformerConfig(
    vocab_size=5,
    features=2,
    num_layers=1,
    num_heads=1,
    feedforward_features=2,
    max_positions=3,
    pooler=True,
)
ODD = [None, True, False, 0, -1, 1, 2, 10**9, 2**40, 10**400, 0.5, 1e-400, float("nan")]
ODD += [float("inf"), "", "gelu", "causal", "\ud800", "x" * 99, [], [1], [[1], 2], {}, {"a": {}}]
ODD += ["gpt2", "roberta", "distilbert", "electra", "roformer"]
ODD += ["../model.safetensors", "model.safetensors", "config.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("bert")
    save_bert(path, build(TINY))
    return path


def pick(generator, values):
    return values[int(generator.integers(len(values)))]


def mutated(generator, data):
    """Bytes with some of them changed, cut out, doubled or put in."""
    data = bytearray(data)
    for _ in range(1 + int(generator.integers(4))):
        place = int(generator.integers(len(data) + 1))
        size = int(generator.integers(1, 9))
        kind = int(generator.integers(5))
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            del data[place : place + size]
        elif kind == 2:
            data[place:place] = generator.bytes(size)
        elif kind == 3:
            data[place:place] = data[place : place + size]
        else:
            data[place:] = b""
    return bytes(data)


def change(generator, tree):
    """A copy of a JSON object with a key removed, renamed, doubled, or given an odd value."""
    tree = copy.deepcopy(tree)
    for _ in range(1 + int(generator.integers(3))):
        key = pick(generator, sorted(tree) or ["x"])
        kind = int(generator.integers(4))
        if kind == 0:
            tree.pop(key, None)
        elif kind == 1:
            tree[key + pick(generator, ["", "_", "x"])] = tree.pop(key, None)
        elif kind == 2 and isinstance(tree.get(key), dict):
            tree[key] = change(generator, tree[key])
        else:
            tree[pick(generator, [key, *EXTRA])] = pick(generator, ODD)
    return tree


EXTRA = [*FIXED, "is_decoder", "zoo_mask", "tie_word_embeddings", "embedding_size"]
EXTRA += ["model_type", "pad_token_id", "n_inner", "n_head", "hidden_act", "activation"]


def attempt(read, *errors):
    """Runs it; any error but the documented ones, or one without a message, fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            read()
            message = "read"
        except errors as error:
            message = str(error)
    assert message


@pytest.mark.parametrize("structured", [True, False])
def test_configs(folder, structured):
    generator, path = np.random.default_rng(0), folder / "config.json"
    whole = path.read_bytes()
    for _ in range(COUNT):
        if structured:
            path.write_text(json.dumps(change(generator, json.loads(whole))))
        else:
            path.write_bytes(mutated(generator, whole))
        attempt(functools.partial(read_config, path), ValueError)
    path.write_bytes(whole)


@pytest.mark.parametrize("structured", [True, False])
def test_indices(folder, structured, tmp_path):
    generator = np.random.default_rng(1)
    names = sorted(files.read_names(folder))
    (tmp_path / "one.safetensors").write_bytes((folder / files.SINGLE).read_bytes())
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "one.safetensors")}
    whole = json.dumps(index).encode()
    for _ in range(COUNT):
        content = json.dumps(change(generator, index)).encode()
        content = content if structured else mutated(generator, whole)
        (tmp_path / files.INDEX).write_bytes(content)
        attempt(functools.partial(files.read_names, tmp_path), ValueError, OSError)


@pytest.mark.parametrize("structured", [True, False])
def test_weights(folder, structured, tmp_path):
    """The header (its length, then JSON) is changed as JSON or byte by byte."""
    generator, path = np.random.default_rng(2), tmp_path / files.SINGLE
    whole = (folder / files.SINGLE).read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    shapes = {name: value.shape for name, value in flat_shapes().items()}
    for _ in range(COUNT):
        if structured:
            changed = json.dumps(change(generator, header)).encode()
            path.write_bytes(len(changed).to_bytes(8, "little") + changed + whole[8 + size :])
        else:
            path.write_bytes(mutated(generator, whole))
        read = functools.partial(read_and_fill, tmp_path, shapes)
        attempt(read, ValueError)


def read_and_fill(directory, shapes):
    fill_parameters(
        shapes, TINY, ARCHITECTURES["bert"], files.read_tensors(directory), "the folder", 0
    )


@functools.cache
def flat_shapes():
    model = build(TINY)
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}


OTHERS = {
    "bert": {},
    "roberta": {},
    "gpt2": {
        "norm_position": "pre",
        "num_segments": 0,
        "mask": "causal",
        "head": "tied",
        "pooler": False,
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_state_dicts(name):
    """Names of Hugging Face, of TensorFlow and in between; shapes and dtypes of others."""
    generator = np.random.default_rng(3)
    kind, model = ARCHITECTURES[name], build(dataclasses.replace(TINY, **OTHERS[name]))
    tensors = state_dict(model, architecture=name)
    shapes = {
        "/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))
    }
    swaps = [(kind.prefix, ""), (".", "/"), ("weight", "kernel"), ("weight", "gamma"), ("0", "00")]
    swaps += [("LayerNorm", "layernorm"), ("cls.", ""), ("layer.0", "layer_0"), ("bias", "beta")]
    for _ in range(COUNT):
        changed = dict(tensors)
        for _ in range(1 + int(generator.integers(3))):
            name = pick(generator, sorted(changed))
            value = changed.pop(name) if generator.random() < 0.5 else changed[name]
            dtype = pick(generator, [np.float32, np.float16, np.int8, bool, object, "U3"])
            shape = pick(generator, [value.shape, value.shape[::-1], (), (0,), (2, 3)])
            renamed = name.replace(*pick(generator, swaps))
            changed[renamed] = np.zeros(shape).astype(dtype)
        fill = functools.partial(
            fill_parameters, shapes, model.config, kind, changed, "x", kind.first_position
        )
        attempt(fill, ValueError)
    with pytest.raises(ValueError, match="0 tensors, the model 1 layers"):
        load_bert({}, config=TINY)
