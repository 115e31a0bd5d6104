"""Checkpoints in and out: Hugging Face's files, and the names of Google's TensorFlow code.

BERT, RoBERTa, DistilBERT, ELECTRA, RoFormer and GPT-2, see ``zoo.transformer.architectures``. A
folder holds ``config.json`` and ``model.safetensors`` or its shards. TensorFlow checkpoints of BERT
are taken as plain arrays by name, however they were read (TensorFlow is not needed); bert4keras
loads and saves the same names. A kernel is stored as one matrix, [in, out] by TensorFlow and GPT-2
and [out, in] by the others; here heads have an axis of their own, and all layers are stacked.

Source: https://github.com/google-research/bert, https://github.com/huggingface/transformers.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from zoo._checks import choice, count
from zoo._files import replace_file
from zoo._paths import path_name
from zoo.transformer.architectures import (
    ARCHITECTURES,
    StoredConfig,
    read_config,
    unfit,
    write_config,
)
from zoo.transformer.checkpoint_files import read_names, read_tensors, write_tensors
from zoo.transformer.config import TransformerConfig
from zoo.transformer.layers import LayerNorm, MakeNorm
from zoo.transformer.model import Transformer
from zoo.transformer.tensor_names import (
    fill_parameters,
    is_backbone,
    matrix_shape,
    plain_name,
    their_name,
)


class LoadedTransformer(NamedTuple):
    """The result of :func:`load_transformer`."""

    model: Transformer
    config: TransformerConfig
    head: dict[str, np.ndarray]  # what the model has no place for, by its names as stored


def load_transformer(
    source: str | pathlib.Path | Mapping[str, ArrayLike],
    *,
    config: TransformerConfig | str | pathlib.Path | None = None,
    architecture: str | None = None,
    make_norm: MakeNorm = LayerNorm,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
) -> LoadedTransformer:
    """A Transformer with the weights of a BERT, RoBERTa, DistilBERT, ELECTRA, RoFormer or GPT-2.

    Args:
        source: a folder in Hugging Face's format (needs the extra ``data``: safetensors), or arrays
            by Hugging Face's names, those of BERT also by TensorFlow's.
        config: the model to fill, or the path of a ``config.json`` or ``bert_config.json``; None:
            that of the folder. A state dict needs one. Without a head or a pooler in the config,
            that of the weights is left out. Another ``max_positions`` or ``vocab_size`` is a
            mismatch: cut or extend the arrays before.
        architecture: a key of ``ARCHITECTURES``; None: what the folder's config or the names say.
        make_norm: see :class:`Transformer`. Further parameters of its norms keep their initial
            values.
        param_dtype: of the parameters.
        rngs: for initial values; default ``nnx.Rngs(0)``.

    Returns:
        The model, its config, and the tensors of heads that are not the model's, such as
        ``classifier.weight`` of a fine-tuned checkpoint.

    Raises:
        ValueError: if tensors of the backbone are missing, unknown, there twice, or of another
            shape or dtype; all are listed by name. If the logits are not tied but the config says
            that they are. If it is another architecture, or a variant that is not supported.
        OSError: if a file is missing.

    >>> config = TransformerConfig(vocab_size=7, features=4, num_layers=1, num_heads=2,
    ...                            feedforward_features=8, max_positions=5)
    >>> tensors = state_dict(Transformer(config, rngs=nnx.Rngs(1)))
    >>> tensors["classifier.weight"] = np.ones((3, 4))
    >>> loaded = load_transformer(tensors, config=config)
    >>> loaded.model(jnp.array([[1, 2, 3]])).shape, sorted(loaded.head)
    ((1, 3, 7), ['classifier.weight'])
    """
    file = pathlib.Path(config) if _is_path(config) else None
    if file is None and _is_path(source):
        own = _config_file(pathlib.Path(source))
        # With a config it tells the architecture, if it is there.
        file = own if config is None or (architecture is None and own.is_file()) else None
    stored = None if file is None else _read_config(file, architecture)
    tensors: Mapping[str, Any]
    if isinstance(source, Mapping):
        tensors, place = source, "the state dict"
    else:
        tensors, place = read_tensors(pathlib.Path(source)), str(source)
    if isinstance(config, TransformerConfig):
        full_config = config
    elif stored is not None:
        full_config = _with_heads(stored, tensors, place)
    else:
        raise ValueError("config must be given with a state dict: arrays do not tell the heads")
    name = architecture or (stored.architecture if stored else _guess(tensors))
    _check_fits(name, full_config)
    kind = ARCHITECTURES[name]

    def make(rngs: nnx.Rngs) -> Transformer:
        return Transformer(full_config, make_norm=make_norm, rngs=rngs)

    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    shapes = {name: leaf.shape for name, leaf in _by_name(nnx.state(abstract, nnx.Param)).items()}
    first = stored.first_position if stored else kind.first_position
    filled, head = fill_parameters(shapes, full_config, kind, tensors, place, first)
    # Nothing is drawn that would be overwritten.
    model = abstract if len(filled) == len(shapes) else make(rngs or nnx.Rngs(0))
    graph, state = nnx.split(model)

    def fill(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        return jnp.asarray(filled.get(path_name(path), leaf), param_dtype)

    model = nnx.merge(graph, jax.tree.map_with_path(fill, state))
    return LoadedTransformer(model, full_config, head)


def load_bert(
    directory_or_state_dict: str | pathlib.Path | Mapping[str, ArrayLike],
    *,
    config: TransformerConfig | None = None,
    make_norm: MakeNorm = LayerNorm,
    rngs: nnx.Rngs | None = None,
) -> tuple[Transformer, TransformerConfig]:
    """A Transformer with the weights of a BERT: :func:`load_transformer` without heads of others.

    Args:
        directory_or_state_dict: see :func:`load_transformer`.
        config: likewise.
        make_norm: likewise.
        rngs: likewise.

    Returns:
        The model and its config.

    Raises:
        ValueError: as there; if it is no BERT.

    >>> config = TransformerConfig(vocab_size=7, features=4, num_layers=1, num_heads=2,
    ...                            feedforward_features=8, max_positions=5)
    >>> tensors = state_dict(Transformer(config, rngs=nnx.Rngs(1)))
    >>> model, _ = load_bert(tensors, config=config)
    >>> model(jnp.array([[1, 2, 3]])).shape
    (1, 3, 7)
    """
    loaded = load_transformer(
        directory_or_state_dict,
        config=config,
        architecture="bert",
        make_norm=make_norm,
        rngs=rngs,
    )
    return loaded.model, loaded.config


def bert_config(directory: str | pathlib.Path) -> TransformerConfig:
    """The config of a Hugging Face BERT; head and pooler as far as the weights hold them.

    Args:
        directory: with ``config.json`` and ``model.safetensors``, or its shards and their index.

    Returns:
        The config. ``dataclasses.replace(config, mask="causal")`` makes a language model of it.

    Raises:
        ValueError: if it is another architecture, or a variant that is not supported; the key of
            the config is named.
        OSError: if a file is missing.
    """
    stored = _read_config(_config_file(pathlib.Path(directory)), "bert")
    return _with_heads(stored, read_names(pathlib.Path(directory)), str(directory))


def state_dict(model: Transformer, *, architecture: str | None = None) -> dict[str, np.ndarray]:
    """The weights as arrays by Hugging Face's names.

    Args:
        model: a Transformer with stacked layers.
        architecture: a key of ``ARCHITECTURES``; None: the first that the model can be.

    Returns:
        name -> array, in the dtype of the parameters.

    Raises:
        ValueError: if the model is none of this architecture, or an unstacked one.

    >>> config = TransformerConfig(vocab_size=7, features=4, num_layers=1, num_heads=2,
    ...                            feedforward_features=8, max_positions=5)
    >>> tensors = state_dict(Transformer(config, rngs=nnx.Rngs(0)))
    >>> tensors["bert.encoder.layer.0.intermediate.dense.weight"].shape
    (8, 4)
    """
    name = _check_fits(architecture, model.config)
    kind = ARCHITECTURES[name]
    if isinstance(model.layers, nnx.List):
        raise ValueError("model must have stacked layers: save the one before unstacked()")
    tensors: dict[str, np.ndarray] = {}
    unnamed = []
    for ours, variable in _by_name(nnx.state(model, nnx.Param)).items():
        theirs, value = their_name(ours, kind), np.asarray(variable[...])
        if theirs is None:
            unnamed.append(ours)
            continue
        if ours == "position_embedding":
            value = np.pad(value, ((kind.first_position, 0), (0, 0)))
        is_head = model.config.head == "none" or not is_backbone(theirs, kind)
        prefix = "" if is_head else kind.prefix
        for number, one in enumerate(value if ours.startswith("layers/") else value[None]):
            matrix = one.reshape(matrix_shape(ours, one.shape))
            stored = matrix.T if ours.endswith("_kernel") and kind.transposed else matrix
            tensors[prefix + theirs.format(number)] = np.ascontiguousarray(stored)
    if unnamed:
        raise ValueError(f"{name} has no names for the parameters {sorted(unnamed)}")
    if "output_bias" in kind.names and not model.config.tie_embeddings:
        bias = kind.names["output_embedding"].removesuffix("weight") + "bias"
        tensors[bias] = tensors[kind.names["output_bias"]]
    for query in [part for part in tensors if ".c_attn.query." in part]:
        parts = [tensors.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        tensors[query.replace(".query", "")] = np.concatenate(parts, axis=-1)
    return tensors


def save_transformer(
    directory: str | pathlib.Path,
    model: Transformer,
    *,
    architecture: str | None = None,
    head: Mapping[str, ArrayLike] | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes ``config.json`` and the weights in Hugging Face's format.

    A causal model is an ``is_decoder`` there; the prefix mask is known to this library alone. A
    RoBERTa is written with the padding id 1, after which its positions begin.

    Args:
        directory: created if absent.
        model: a Transformer with stacked layers.
        architecture: a key of ``ARCHITECTURES``; None: the first that the model can be, where a
            RoBERTa is a BERT.
        head: further tensors to store, such as those of :class:`LoadedTransformer`.
        shard_bytes: larger weights are written as shards of at most this size, with an index.

    Raises:
        ValueError: if the model is none of this architecture, or an unstacked one.
        ImportError: without the extra ``data`` (safetensors).
    """
    name = _check_fits(architecture, model.config)
    count("shard_bytes", shard_bytes, at_least=1)
    tensors = state_dict(model, architecture=name)
    tensors |= {other: np.asarray(tensor) for other, tensor in (head or {}).items()}
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, tensors, shard_bytes=shard_bytes)
    replace_file(directory / "config.json", write_config(model.config, name))


def save_bert(directory: str | pathlib.Path, model: Transformer) -> None:
    """Writes a BERT: :func:`save_transformer` with ``architecture="bert"``.

    Args:
        directory: created if absent.
        model: a post-LN Transformer with head ``"mlm"`` or ``"none"``.

    Raises:
        ValueError: if the model is no BERT, or an unstacked one.
        ImportError: without the extra ``data`` (safetensors).
    """
    save_transformer(directory, model, architecture="bert")


def _is_path(value: Any) -> TypeGuard[str | pathlib.Path]:
    return isinstance(value, str | pathlib.Path)


def _config_file(directory: pathlib.Path) -> pathlib.Path:
    """The config of a folder, Hugging Face's or else Google's."""
    paths = [directory / name for name in ("config.json", "bert_config.json")]
    return next((path for path in paths if path.is_file()), paths[0])


def _read_config(path: pathlib.Path, architecture: str | None) -> StoredConfig:
    stored = read_config(path)
    if architecture not in (None, stored.architecture):
        raise ValueError(
            f"{path}: model_type must be {architecture!r}, got {stored.architecture!r}"
        )
    return stored


def _guess(names: Mapping[str, Any]) -> str:
    """The architecture of a state dict by its names."""
    for name, kind in ARCHITECTURES.items():
        if any(theirs.startswith(kind.prefix + "embeddings.") for theirs in names):
            return name
    if any(theirs.endswith("wte.weight") for theirs in names):
        return "gpt2"
    return "distilbert" if any(".q_lin." in theirs for theirs in names) else "bert"


def _with_heads(stored: StoredConfig, tensors: Any, place: str) -> TransformerConfig:
    """The config with the head and the pooler that the tensors hold."""
    kind = ARCHITECTURES[stored.architecture]
    names = {plain_name(name, kind) for name in tensors}
    decoder = kind.names["output_embedding"]
    options = dict(stored.options)
    if "head" not in options:
        biases = {kind.names["output_bias"], decoder.removesuffix("weight") + "bias"}
        options["head"] = "mlm" if names & biases else "none"
    if options["head"] == "none":
        options["tie_embeddings"] = True
    elif not options["tie_embeddings"] and decoder not in names:
        raise ValueError(
            f"{place}: its config says tie_word_embeddings=false, but there is no {decoder}; "
            "config with head='none' takes the encoder alone"
        )
    pooler = "pooler" in kind.names and kind.names["pooler"] + ".weight" in names
    return TransformerConfig(**options, pooler=pooler)


def _check_fits(architecture: str | None, config: TransformerConfig) -> str:
    """The architecture, or the first that the model can be; refuses what it cannot be."""
    if architecture is None:
        fits = [name for name in ARCHITECTURES if not unfit(name, config)]
        if not fits:
            reasons = "; ".join(f"{name}: {unfit(name, config)}" for name in ARCHITECTURES)
            raise ValueError(f"config must be of a known architecture, got {reasons}")
        return fits[0]
    choice("architecture", architecture, tuple(ARCHITECTURES))
    reason = unfit(architecture, config)
    if reason:
        raise ValueError(f"config must be of architecture {architecture!r}, got {reason}")
    return architecture


def _by_name(state: Any) -> dict[str, Any]:
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
