"""BERT checkpoints in and out: Hugging Face files, and the names of Google's TensorFlow code.

A Hugging Face folder holds ``config.json`` and ``model.safetensors``. TensorFlow checkpoints are
taken as plain arrays by name, however they were read (TensorFlow is not needed); bert4keras loads
and saves the same names. The table of names is ``NAMES``. Both hold a kernel of [in, out] features,
Hugging Face transposed; here heads have an axis of their own, and all layers are stacked.

Source: https://github.com/google-research/bert, https://github.com/huggingface/transformers.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from zoo.extras import require
from zoo.transformer.config import TransformerConfig
from zoo.transformer.layers import LayerNorm, MakeNorm
from zoo.transformer.model import Transformer

# Parameter, Hugging Face's name without "bert.", TensorFlow's name; {} is the number of the layer.
NAMES = (
    ("token_embedding", "embeddings.word_embeddings.weight", "bert/embeddings/word_embeddings"),
    (
        "segment_embedding",
        "embeddings.token_type_embeddings.weight",
        "bert/embeddings/token_type_embeddings",
    ),
    (
        "position_embedding",
        "embeddings.position_embeddings.weight",
        "bert/embeddings/position_embeddings",
    ),
    ("embedding_norm", "embeddings.LayerNorm", "bert/embeddings/LayerNorm"),
    (
        "layers/attention/query",
        "encoder.layer.{}.attention.self.query",
        "bert/encoder/layer_{}/attention/self/query",
    ),
    (
        "layers/attention/key",
        "encoder.layer.{}.attention.self.key",
        "bert/encoder/layer_{}/attention/self/key",
    ),
    (
        "layers/attention/value",
        "encoder.layer.{}.attention.self.value",
        "bert/encoder/layer_{}/attention/self/value",
    ),
    (
        "layers/attention/output",
        "encoder.layer.{}.attention.output.dense",
        "bert/encoder/layer_{}/attention/output/dense",
    ),
    (
        "layers/attention_norm",
        "encoder.layer.{}.attention.output.LayerNorm",
        "bert/encoder/layer_{}/attention/output/LayerNorm",
    ),
    (
        "layers/feedforward/expand",
        "encoder.layer.{}.intermediate.dense",
        "bert/encoder/layer_{}/intermediate/dense",
    ),
    (
        "layers/feedforward/contract",
        "encoder.layer.{}.output.dense",
        "bert/encoder/layer_{}/output/dense",
    ),
    (
        "layers/feedforward_norm",
        "encoder.layer.{}.output.LayerNorm",
        "bert/encoder/layer_{}/output/LayerNorm",
    ),
    ("pooler", "pooler.dense", "bert/pooler/dense"),
    ("head", "cls.predictions.transform.dense", "cls/predictions/transform/dense"),
    ("head_norm", "cls.predictions.transform.LayerNorm", "cls/predictions/transform/LayerNorm"),
    ("output_bias", "cls.predictions.bias", "cls/predictions/output_bias"),
)
# Kernel and bias, or scale and bias, of the names above that are not an array themselves.
_ENDINGS = {
    "kernel": ("_kernel", ".weight", "/kernel"),
    "bias": ("_bias", ".bias", "/bias"),
    "scale": ("/scale", ".weight", "/gamma"),
    "shift": ("/bias", ".bias", "/beta"),
}
# Not parameters, or tied to one, or of the task of next sentences, which this model does not have.
_IGNORED = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
    "cls/seq_relationship/output_weights",
    "cls/seq_relationship/output_bias",
    "global_step",
)
_ACTIVATIONS: dict[str, Any] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
_FIELDS = {
    "vocab_size": "vocab_size",
    "features": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feedforward_features": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "epsilon": "layer_norm_eps",
    "initial_scale": "initializer_range",
}


def bert_config(directory: str | pathlib.Path) -> TransformerConfig:
    """The config of a Hugging Face BERT; head and pooler as far as the weights hold them.

    Args:
        directory: with ``config.json`` and ``model.safetensors``.

    Returns:
        The config. ``dataclasses.replace(config, mask="causal")`` makes a language model of it.

    Raises:
        ValueError: if it is another architecture, or a variant that is not supported.
        OSError: if a file is missing.
    """
    directory = pathlib.Path(directory)
    stored = json.loads((directory / "config.json").read_text("utf-8"))
    kind = stored.get("model_type", "bert")
    position = stored.get("position_embedding_type", "absolute")
    activation = stored.get("hidden_act", "gelu")
    if kind != "bert" or position != "absolute" or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{directory}/config.json: expected model_type 'bert' with absolute positions and an "
            f"activation of {tuple(_ACTIVATIONS)}, got {kind!r}, {position!r}, {activation!r}"
        )
    missing = sorted(set(_FIELDS.values()) - set(stored))
    if missing:
        raise ValueError(f"{directory}/config.json lacks {missing}; is it a BERT's?")
    path = _weights(directory)
    with require("safetensors", "data").safe_open(path, "numpy") as file:
        names = set(map(_plain_name, file.keys()))
    fields = {ours: stored[theirs] for ours, theirs in _FIELDS.items()}
    return TransformerConfig(
        **fields,
        activation=_ACTIVATIONS[activation],
        mask=stored.get("zoo_mask", "bidirectional"),
        head="mlm" if "cls.predictions.bias" in names else "none",
        pooler="pooler.dense.weight" in names,
    )


def load_bert(
    directory_or_state_dict: str | pathlib.Path | Mapping[str, ArrayLike],
    *,
    config: TransformerConfig | None = None,
    make_norm: MakeNorm = LayerNorm,
    rngs: nnx.Rngs | None = None,
) -> tuple[Transformer, TransformerConfig]:
    """A Transformer with the weights of a BERT.

    Head and pooler that the config does not have are left out, and so is the next-sentence head.

    Args:
        directory_or_state_dict: a folder in Hugging Face's format (needs the extra ``data``:
            safetensors), or arrays by Hugging Face's or by TensorFlow's names.
        config: the model to fill; None: what the folder's ``config.json`` says. A state dict needs
            one. A longer ``max_positions`` or another vocabulary is a mismatch: cut or extend the
            arrays before.
        make_norm: see :class:`Transformer`. What its norms have beyond scale and bias keeps the
            values it starts with.
        rngs: for these values; default ``nnx.Rngs(0)``.

    Returns:
        The model and its config.

    Raises:
        ValueError: if tensors are missing, unknown, or of another shape; all are listed by name.

    >>> config = TransformerConfig(vocab_size=7, features=4, num_layers=1, num_heads=2,
    ...                            feedforward_features=8, max_positions=5)
    >>> tensors = bert_state_dict(Transformer(config, rngs=nnx.Rngs(1)))
    >>> model, _ = load_bert(tensors, config=config)
    >>> model(jnp.array([[1, 2, 3]])).shape
    (1, 3, 7)
    """
    if isinstance(directory_or_state_dict, Mapping):
        if config is None:
            raise ValueError("config must be given with a state dict: arrays do not tell the heads")
        tensors: Mapping[str, Any] = directory_or_state_dict
        place = "the state dict"
    else:
        directory = pathlib.Path(directory_or_state_dict)
        config = bert_config(directory) if config is None else config
        file = _weights(directory)
        tensors = require("safetensors.numpy", "data").load_file(file)
        place = str(directory)
    _check_is_bert(config)
    model = Transformer(config, make_norm=make_norm, rngs=rngs or nnx.Rngs(0))
    state = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    shapes = {"/".join(map(str, path)): variable.shape for path, variable in state.items()}
    filled = _fill(shapes, config.num_layers, tensors, place)
    for path, variable in state.items():
        name = "/".join(map(str, path))
        if name in filled:
            state[path] = variable.replace(jnp.asarray(filled[name], variable.dtype))
    nnx.update(model, nnx.from_flat_state(state))
    return model, config


def bert_state_dict(model: Transformer) -> dict[str, np.ndarray]:
    """The weights as arrays by Hugging Face's names (of ``BertForMaskedLM``, or ``BertModel``).

    Args:
        model: a post-LN Transformer with head ``"mlm"`` or ``"none"``.

    Returns:
        name -> float32 array.

    Raises:
        ValueError: if the model is no BERT.

    >>> config = TransformerConfig(vocab_size=7, features=4, num_layers=1, num_heads=2,
    ...                            feedforward_features=8, max_positions=5)
    >>> tensors = bert_state_dict(Transformer(config, rngs=nnx.Rngs(0)))
    >>> tensors["bert.encoder.layer.0.intermediate.dense.weight"].shape
    (8, 4)
    """
    _check_is_bert(model.config)
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    parameters = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in state}
    tensors = {}
    for ours, theirs, _ in _table(parameters):
        value = parameters.pop(ours)
        prefix = "" if model.config.head == "none" or theirs.startswith("cls.") else "bert."
        layers = value if ours.startswith("layers/") else value[None]
        for number, one in enumerate(layers):
            if ours.endswith("_kernel"):
                rows = model.config.features
                matrix = one.reshape(-1, rows) if ours.endswith("output_kernel") else one
                one = matrix.reshape(len(matrix), -1).T
            elif not ours.endswith("_embedding"):
                one = one.reshape(-1)
            tensors[prefix + theirs.format(number)] = np.ascontiguousarray(one, np.float32)
    if parameters:
        raise ValueError(f"BERT has no names for the parameters {sorted(parameters)}")
    return tensors


def save_bert(directory: str | pathlib.Path, model: Transformer) -> None:
    """Writes ``config.json`` and ``model.safetensors`` in Hugging Face's format.

    Args:
        directory: created if absent.
        model: a post-LN Transformer with head ``"mlm"`` or ``"none"``.

    Raises:
        ValueError: if the model is no BERT.
        ImportError: without the extra ``data`` (safetensors).
    """
    save_file = require("safetensors.numpy", "data").save_file
    tensors = bert_state_dict(model)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    stored = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    stored |= {
        "architectures": ["BertForMaskedLM" if config.head == "mlm" else "BertModel"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": activations[config.activation],
        "model_type": "bert",
        "zoo_mask": config.mask,
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")


def _weights(directory: pathlib.Path) -> pathlib.Path:
    path = directory / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: a checkpoint in Hugging Face's format holds model.safetensors "
            "(convert pytorch_model.bin with transformers' save_pretrained)"
        )
    return path


def _check_is_bert(config: TransformerConfig) -> None:
    if config.norm_position != "post" or config.head == "tied" or not config.num_segments:
        raise ValueError(
            "config must be a BERT: norm_position='post', head 'mlm' or 'none' and segments, got "
            f"{config.norm_position!r}, {config.head!r} and num_segments={config.num_segments}"
        )


def _table(parameters: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The rows of ``NAMES`` for these parameters, one an array."""
    rows = []
    for names in NAMES:
        if names[0] in parameters:
            rows.append(names)
            continue
        for endings in _ENDINGS.values():
            ours, *theirs = (name + ending for name, ending in zip(names, endings, strict=True))
            if ours in parameters:
                rows.append((ours, theirs[0], theirs[1]))
    return rows


def _plain_name(name: str) -> str:
    """Without prefix, and with the endings of today."""
    if "/" in name:
        return name
    name = name.removeprefix("bert.")
    return name.replace(".gamma", ".weight").replace(".beta", ".bias")


def _fill(
    shapes: Mapping[str, tuple[int, ...]],
    num_layers: int,
    tensors: Mapping[str, Any],
    place: str,
) -> dict[str, np.ndarray]:
    """Arrays of ``shapes``, from tensors by either family of names."""
    named = {_plain_name(name): (name, tensor) for name, tensor in tensors.items()}
    tensorflow = any("/" in name for name in named)
    optional = ("cls.predictions.", "pooler.", "cls/predictions/", "bert/pooler/")
    unused = {
        plain: name
        for plain, (name, _) in named.items()
        # TensorFlow stores the optimiser's moments beside the weights.
        if plain not in _IGNORED and not plain.endswith(("/adam_m", "/adam_v"))
    }
    filled, missing, mismatched = {}, [], []
    for ours, theirs_torch, theirs_tensorflow in _table(shapes):
        theirs = theirs_tensorflow if tensorflow else theirs_torch
        stacked = ours.startswith("layers/")
        shape = shapes[ours][1:] if stacked else shapes[ours]
        parts = []
        for name in [theirs.format(i) for i in range(num_layers)] if stacked else [theirs]:
            unused.pop(name, None)
            if name not in named:
                missing.append(name)
                continue
            value = np.asarray(named[name][1])
            expected = _flat_shape(ours, shape)
            if ours.endswith("_kernel") and not tensorflow:
                expected = expected[::-1]
            if value.shape != expected:
                mismatched.append(f"{named[name][0]} {value.shape}, the model has {expected}")
                continue
            if ours.endswith("_kernel") and not tensorflow:
                value = value.T
            parts.append(value.reshape(shape))
        if len(parts) == (num_layers if stacked else 1):
            filled[ours] = np.stack(parts) if stacked else parts[0]
    extra = [name for plain, name in unused.items() if not plain.startswith(optional)]
    problems = [
        f"{title}: {', '.join(sorted(names))}"
        for title, names in (
            ("missing", missing),
            ("not known to the model", extra),
            ("of another shape", mismatched),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{place} does not fit the model. Tensors {'; '.join(problems)}")
    return filled


def _flat_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How BERT stores an array of ours: a kernel as a matrix, a bias as a vector."""
    if ours.endswith("attention/output_kernel"):
        return shape[0] * shape[1], shape[2]
    if ours.endswith("_kernel"):
        return shape[0], int(np.prod(shape[1:]))
    return shape if ours.endswith("_embedding") else (int(np.prod(shape)),)
