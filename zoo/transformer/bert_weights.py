"""BERT checkpoints in and out: Hugging Face files, and the names of Google's TensorFlow code.

A Hugging Face folder holds ``config.json`` and ``model.safetensors``. TensorFlow checkpoints are
taken as plain arrays by name, however they were read (TensorFlow is not needed); bert4keras loads
and saves the same names. Both store a kernel as one matrix, [in, out] in TensorFlow and [out, in]
in Hugging Face's format; here heads have an axis of their own, and all layers are stacked.

Source: https://github.com/google-research/bert, https://github.com/huggingface/transformers.
"""

import json
import pathlib
import re
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

# Our name -> Hugging Face's without "bert."; {} is the number of the layer. A name that is not an
# array itself holds kernel and bias, or scale and bias: theirs end in ".weight" and ".bias".
NAMES = {
    "token_embedding": "embeddings.word_embeddings.weight",
    "segment_embedding": "embeddings.token_type_embeddings.weight",
    "position_embedding": "embeddings.position_embeddings.weight",
    "embedding_norm": "embeddings.LayerNorm",
    "layers/attention/query": "encoder.layer.{}.attention.self.query",
    "layers/attention/key": "encoder.layer.{}.attention.self.key",
    "layers/attention/value": "encoder.layer.{}.attention.self.value",
    "layers/attention/output": "encoder.layer.{}.attention.output.dense",
    "layers/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/feedforward/expand": "encoder.layer.{}.intermediate.dense",
    "layers/feedforward/contract": "encoder.layer.{}.output.dense",
    "layers/feedforward_norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
    "head": "cls.predictions.transform.dense",
    "head_norm": "cls.predictions.transform.LayerNorm",
    "output_bias": "cls.predictions.bias",
}
# Not parameters, or tied to one, of the next-sentence task, or TensorFlow's optimiser state.
_IGNORED = re.compile(
    r"embeddings\.(position|token_type)_ids$|cls\.predictions\.decoder\.|cls\.seq_relationship\."
    r"|global_step$|.*\.adam_[mv]$"
)
_OPTIONAL = ("cls.predictions.", "pooler.")  # a model without head or pooler leaves them out
_ACTIVATIONS: dict[str, Any] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
FIELDS = {
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
    missing = sorted(set(FIELDS.values()) - set(stored))
    if missing:
        raise ValueError(f"{directory}/config.json lacks {missing}; expected that of a BERT")
    with require("safetensors", "data").safe_open(_weights(directory), "numpy") as file:
        names = set(map(_plain_name, file.keys()))
    return TransformerConfig(
        **{ours: stored[theirs] for ours, theirs in FIELDS.items()},
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

    Without a head or a pooler in the config, that of the weights is left out; the next-sentence
    head always is.

    Args:
        directory_or_state_dict: a folder in Hugging Face's format (needs the extra ``data``:
            safetensors), or arrays by Hugging Face's or by TensorFlow's names.
        config: the model to fill; None: what the folder's ``config.json`` says. A state dict needs
            one. Another ``max_positions`` or ``vocab_size`` is a mismatch: cut or extend the arrays
            before.
        make_norm: see :class:`Transformer`. Further parameters of its norms keep their initial
            values.
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
        place = str(directory_or_state_dict)
        config = bert_config(place) if config is None else config
        tensors = require("safetensors.numpy", "data").load_file(_weights(pathlib.Path(place)))
    _check_is_bert(config)
    model = Transformer(config, make_norm=make_norm, rngs=rngs or nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    variables = _by_name(state)
    shapes = {name: variable.shape for name, variable in variables.items()}
    for name, value in _fill(shapes, config.num_layers, tensors, place).items():
        variables[name][...] = jnp.asarray(value, variables[name].dtype)
    nnx.update(model, state)
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
    tensors, unnamed = {}, []
    for ours, variable in _by_name(nnx.state(model, nnx.Param)).items():
        theirs, value = _their_name(ours), np.asarray(variable[...], np.float32)
        if theirs is None:
            unnamed.append(ours)
            continue
        prefix = "" if model.config.head == "none" or theirs.startswith("cls.") else "bert."
        for number, one in enumerate(value if ours.startswith("layers/") else value[None]):
            matrix = one.reshape(_matrix_shape(ours, one.shape))
            stored = matrix.T if ours.endswith("_kernel") else matrix
            tensors[prefix + theirs.format(number)] = np.ascontiguousarray(stored)
    if unnamed:
        raise ValueError(f"BERT has no names for the parameters {sorted(unnamed)}")
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
    stored = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
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


def _by_name(state: Any) -> dict[str, Any]:
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def _their_name(ours: str) -> str | None:
    """Hugging Face's name of a parameter, by ``NAMES``; None if BERT does not have it."""
    parts = re.fullmatch(r"(.+)[_/](kernel|bias|scale)", ours)
    if ours in NAMES or parts is None:
        return NAMES.get(ours)
    stem, kind = parts.groups()
    return NAMES[stem] + (".bias" if kind == "bias" else ".weight") if stem in NAMES else None


def _plain_name(name: str) -> str:
    """The name of a tensor as in ``NAMES``, from TensorFlow's, an old or a prefixed one."""
    if "/" in name:
        name = re.sub(r"/layer_(\d+)/", r"/layer/\1/", name).replace("/", ".")
        name = re.sub(r"_embeddings$", "_embeddings.weight", name.replace(".kernel", ".weight"))
        name = name.replace("predictions.output_bias", "predictions.bias")
    return name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias")


def _matrix_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one layer's parameter as TensorFlow stores it: heads are no axis there."""
    if ours.endswith("attention/output_kernel"):
        return shape[0] * shape[1], shape[2]
    if ours.endswith("_kernel"):
        return shape[0], int(np.prod(shape[1:]))
    return shape if ours.endswith("_embedding") else (int(np.prod(shape)),)


def _fill(
    shapes: Mapping[str, tuple[int, ...]], num_layers: int, tensors: Mapping[str, Any], place: str
) -> dict[str, np.ndarray]:
    """Arrays of ``shapes``, from tensors by any of their names."""
    named = {_plain_name(name): name for name in tensors}
    unused = {plain for plain in named if not _IGNORED.match(plain)}
    filled, missing, mismatched = {}, [], []
    for ours, shape in shapes.items():
        theirs = _their_name(ours)
        if theirs is None:  # of a norm that BERT does not have
            continue
        stacked = ours.startswith("layers/")
        one_shape = shape[1:] if stacked else shape
        parts = []
        for plain in [theirs.format(i) for i in range(num_layers)] if stacked else [theirs]:
            unused.discard(plain)
            if plain not in named:
                missing.append(plain)
                continue
            name = named[plain]
            transposed = ours.endswith("_kernel") and "/" not in name
            value, expected = np.asarray(tensors[name]), _matrix_shape(ours, one_shape)
            expected = expected[::-1] if transposed else expected
            if value.shape == expected:
                parts.append((value.T if transposed else value).reshape(one_shape))
            else:
                mismatched.append(f"{name} {value.shape}, the model has {expected}")
        if len(parts) == (num_layers if stacked else 1):
            filled[ours] = np.stack(parts) if stacked else parts[0]
    extra = [named[plain] for plain in unused if not plain.startswith(_OPTIONAL)]
    problems = {"missing": missing, "not known to the model": extra, "of another shape": mismatched}
    listed = [f"{title}: {', '.join(sorted(names))}" for title, names in problems.items() if names]
    if listed:
        raise ValueError(f"{place} does not fit the model. Tensors {'; '.join(listed)}")
    return filled
