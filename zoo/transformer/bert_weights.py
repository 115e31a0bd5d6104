"""BERT checkpoints in and out: Hugging Face files, and the names of Google's TensorFlow code.

A Hugging Face folder holds ``config.json`` and ``model.safetensors`` or its shards; what its config
says is applied or refused, see ``zoo.transformer.bert_files``. TensorFlow checkpoints are taken as
plain arrays by name, however they were read (TensorFlow is not needed); bert4keras loads
and saves the same names. Both store a kernel as one matrix, [in, out] in TensorFlow and [out, in]
in Hugging Face's format; here heads have an axis of their own, and all layers are stacked.

Source: https://github.com/google-research/bert, https://github.com/huggingface/transformers.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from zoo._files import replace_file
from zoo._paths import path_name
from zoo.extras import require
from zoo.transformer import bert_files
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
DECODER = "cls.predictions.decoder."  # tied to the token embedding and to the bias above
# Not parameters, of another task's head, or TensorFlow's optimiser state.
_IGNORED = re.compile(
    r"embeddings\.(position|token_type)_ids$|cls\.(seq_relationship|squad)\.|classifier\."
    r"|qa_outputs\.|output_(weights|bias)$|global_step$|.*\.adam_[mv]$"
)
_OPTIONAL = ("cls.predictions.", "pooler.")  # a model without head or pooler leaves them out


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
    directory = pathlib.Path(directory)
    options, tied = bert_files.read_config(directory)
    names = set(map(_plain_name, bert_files.read_names(directory)))
    head: Any = "mlm" if names & {"cls.predictions.bias", DECODER + "bias"} else "none"
    if head == "mlm" and not tied and DECODER + "weight" not in names:
        raise ValueError(
            f"{directory}/config.json says tie_word_embeddings=false, but there is no "
            f"{DECODER}weight; give load_bert a config with head='none' for the encoder alone"
        )
    return TransformerConfig(**options, head=head, pooler="pooler.dense.weight" in names)


def load_bert(
    directory_or_state_dict: str | pathlib.Path | Mapping[str, ArrayLike],
    *,
    config: TransformerConfig | None = None,
    make_norm: MakeNorm = LayerNorm,
    rngs: nnx.Rngs | None = None,
) -> tuple[Transformer, TransformerConfig]:
    """A Transformer with the weights of a BERT.

    Without a head or a pooler in the config, that of the weights is left out; heads of other tasks
    (next sentence, classification, answers) always are.

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
        ValueError: if tensors are missing, unknown, there twice, or of another shape or dtype; all
            are listed by name. If the decoder of the head is not tied to the token embedding.

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
        tensors = bert_files.read_tensors(pathlib.Path(place))
    _check_is_bert(config)

    def make(rngs: nnx.Rngs) -> Transformer:
        return Transformer(config, make_norm=make_norm, rngs=rngs)

    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    shapes = {name: leaf.shape for name, leaf in _by_name(nnx.state(abstract, nnx.Param)).items()}
    filled = _fill(shapes, config.num_layers, tensors, place)
    # Nothing is drawn that would be overwritten.
    model = abstract if len(filled) == len(shapes) else make(rngs or nnx.Rngs(0))
    graph, state = nnx.split(model)

    def fill(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        return jnp.asarray(filled.get(path_name(path), leaf), leaf.dtype)

    return nnx.merge(graph, jax.tree.map_with_path(fill, state)), config


def bert_state_dict(model: Transformer) -> dict[str, np.ndarray]:
    """The weights as arrays by Hugging Face's names (of ``BertForMaskedLM``, or ``BertModel``).

    Args:
        model: a post-LN Transformer with head ``"mlm"`` or ``"none"``.

    Returns:
        name -> float32 array.

    Raises:
        ValueError: if the model is no BERT, or an unstacked one.

    >>> config = TransformerConfig(vocab_size=7, features=4, num_layers=1, num_heads=2,
    ...                            feedforward_features=8, max_positions=5)
    >>> tensors = bert_state_dict(Transformer(config, rngs=nnx.Rngs(0)))
    >>> tensors["bert.encoder.layer.0.intermediate.dense.weight"].shape
    (8, 4)
    """
    _check_is_bert(model.config)
    if isinstance(model.layers, nnx.List):
        raise ValueError("model must have stacked layers: save the one before unstacked()")
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

    A causal model is an ``is_decoder`` there; the prefix mask is known to this library alone.

    Args:
        directory: created if absent.
        model: a post-LN Transformer with head ``"mlm"`` or ``"none"``.

    Raises:
        ValueError: if the model is no BERT, or an unstacked one.
        ImportError: without the extra ``data`` (safetensors).
    """
    save = require("safetensors.numpy", "data").save
    tensors = bert_state_dict(model)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / bert_files.SINGLE, save(tensors, metadata={"format": "pt"}))
    replace_file(directory / "config.json", bert_files.write_config(model.config))


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
    if num_layers > len(tensors):
        raise ValueError(f"{place} has {len(tensors)} tensors, the model {num_layers} layers")
    named: dict[str, str] = {}
    twice = []
    for name in tensors:
        plain = _plain_name(name)
        if plain in named and not _IGNORED.match(plain):
            twice.append(f"{named[plain]} and {name}")
        named[plain] = name
    if DECODER + "bias" in named:
        named.setdefault("cls.predictions.bias", named[DECODER + "bias"])
    if "output_bias" in shapes:
        _check_is_tied(tensors, named, place)
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
            if not jnp.issubdtype(value.dtype, jnp.floating):
                mismatched.append(f"{name} of {value.dtype}, the model has floating numbers")
            elif value.shape == expected:
                parts.append((value.T if transposed else value).reshape(one_shape))
            else:
                mismatched.append(f"{name} {value.shape}, the model has {expected}")
        if len(parts) == (num_layers if stacked else 1):
            filled[ours] = np.stack(parts) if stacked else parts[0]
    extra = [named[plain] for plain in unused if not plain.startswith(_OPTIONAL)]
    problems = {
        "missing": missing,
        "not known to the model": extra,
        "of another shape or dtype": mismatched,
        "there twice": twice,
    }
    listed = [f"{title}: {', '.join(sorted(names))}" for title, names in problems.items() if names]
    if listed:
        raise ValueError(f"{place} does not fit the model. Tensors {'; '.join(listed)}")
    return filled


def _check_is_tied(tensors: Mapping[str, Any], named: Mapping[str, str], place: str) -> None:
    """Refuses a head whose decoder is not the token embedding, or has another bias."""
    tied = {"weight": NAMES["token_embedding"], "bias": NAMES["output_bias"]}
    for kind, other in tied.items():
        ours, theirs = named.get(DECODER + kind), named.get(other)
        if ours is None or theirs is None or ours == theirs:
            continue
        if not np.array_equal(np.asarray(tensors[ours]), np.asarray(tensors[theirs])):
            raise ValueError(
                f"{place}: {ours} differs from {theirs}, but the head of this model is tied to the "
                "token embedding; a config with head='none' takes the encoder alone"
            )
