"""Files of a BERT in Hugging Face's format: ``config.json``, and safetensors in one file or shards.

A key of the config that changes the mathematics is applied or refused by its name:

    applied    the sizes, dropout of hidden states, epsilon, initial scale (``FIELDS``); hidden_act;
               is_decoder (the causal mask); zoo_mask, which is ours
    refused    what ``FIXED`` has another value for; an untied decoder
    passed     what is no part of the forward pass (``PASSED``); attention_probs_dropout_prob, since
               fused kernels cannot drop attention weights
    warned of  all others

Source: https://github.com/huggingface/transformers, ``BertConfig`` and ``PretrainedConfig``.
"""

import json
import pathlib
import warnings
from typing import Any

import numpy as np

from zoo._checks import choice, count, number
from zoo.extras import require
from zoo.transformer.attention import PATTERNS
from zoo.transformer.config import TransformerConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Theirs -> ours; of several names for one function the first is written.
ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
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
# The values of BertConfig for numbers that Google's and old files leave out.
DEFAULTS = {"hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "initializer_range": 0.02}
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute",),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, []),
    "quantization_config": (),
    "auto_map": (),
    "pooler_type": ("first_token_transform",),
}
PASSED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _name_or_path architectures attention_probs_dropout_prob attn_implementation bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size decoder_start_token_id directionality diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing hidden_act id2label is_decoder label2id length_penalty max_length
    min_length name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_past output_scores
    pad_token_id pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head prefix problem_type remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache zoo_mask
    """.split()  # noqa: SIM905
)
_LARGEST = 2**31 - 1


def read_config(directory: pathlib.Path) -> tuple[dict[str, Any], bool]:
    """What ``config.json`` says, as arguments of a TransformerConfig; and whether heads are tied.

    Raises:
        ValueError: if it is no BERT, or a variant that is not supported; the key is named.
        OSError: if the file is missing.
    """
    path = directory / "config.json"
    stored = {key: value for key, value in read_json(path).items() if value is not None}
    try:
        for key, values in FIXED.items():
            if key in stored and stored[key] not in values:
                wanted = f"be {' or '.join(map(repr, values))}" if values else "be absent"
                raise ValueError(f"{key} must {wanted}, got {stored[key]!r:.80}")
        missing = sorted(set(FIELDS.values()) - set(DEFAULTS) - set(stored))
        if missing:
            raise ValueError(f"it lacks {missing}; expected the config of a BERT")
        if stored.get("embedding_size", stored["hidden_size"]) != stored["hidden_size"]:
            raise ValueError("embedding_size must be hidden_size")
        options: dict[str, Any] = {}
        for ours, theirs in FIELDS.items():
            if theirs in DEFAULTS:
                options[ours] = number(theirs, stored.get(theirs, DEFAULTS[theirs]))
            else:
                options[ours] = count(theirs, stored[theirs], at_most=_LARGEST)
        activation, mask = stored.get("hidden_act", "gelu"), _mask(stored)
        choice("hidden_act", activation, tuple(ACTIVATIONS))
        tied = stored.get("tie_word_embeddings", True)
        choice("tie_word_embeddings", tied, (True, False))
        options |= {"activation": ACTIVATIONS[activation], "mask": mask}
        TransformerConfig(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    unknown = stored.keys() - PASSED - FIXED.keys() - set(FIELDS.values()) - {"embedding_size"}
    if unknown:
        warnings.warn(
            f"{path}: nothing is known of {sorted(unknown)}; if one of them changes what the model "
            "computes, the numbers will be others",
            stacklevel=3,
        )
    return options, tied


def write_config(config: TransformerConfig) -> str:
    """The text of ``config.json``; only this library knows the prefix mask."""
    stored = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    kinds = {"mlm": "BertLMHeadModel" if config.mask == "causal" else "BertForMaskedLM"}
    stored |= {
        "architectures": [kinds.get(config.head, "BertModel")],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": next(n for n, ours in ACTIVATIONS.items() if ours == config.activation),
        "is_decoder": config.mask == "causal",
        "model_type": "bert",
        "zoo_mask": config.mask,
    }
    return json.dumps(stored, indent=2, sort_keys=True) + "\n"


def read_names(directory: pathlib.Path) -> set[str]:
    """The names of all tensors, without reading them."""
    return {name for path in _files(directory) for name in _open(path).keys()}  # noqa: SIM118


def read_tensors(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors by name.

    Raises:
        ValueError: if a file is damaged, or two shards hold one name.
        OSError: if a file is missing.
    """
    tensors: dict[str, np.ndarray] = {}
    damaged = require("safetensors", "data").SafetensorError
    for path in _files(directory):
        file = _open(path)
        for name in file.keys():  # noqa: SIM118
            if name in tensors:
                raise ValueError(f"{path} holds {name}, which another shard holds as well")
            try:
                tensors[name] = file.get_tensor(name)
            except (damaged, AttributeError, TypeError) as error:  # NumPy lacks some dtypes
                raise ValueError(f"{path}: {name} cannot be read: {error}") from error
        # A tensor of two names is stored once, its other names in the metadata.
        for name, stored in (file.metadata() or {}).items():
            if stored in tensors:
                tensors.setdefault(name, tensors[stored])
    return tensors


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if the file holds something else; it is named.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON in UTF-8: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _mask(stored: dict[str, Any]) -> str:
    """The mask of ``zoo_mask`` and ``is_decoder``, which must not contradict each other."""
    decoder = stored.get("is_decoder", stored.get("zoo_mask") == "causal")
    choice("is_decoder", decoder, (True, False))
    mask = stored.get("zoo_mask", "causal" if decoder else "bidirectional")
    choice("zoo_mask", mask, PATTERNS)
    if decoder != (mask == "causal"):
        raise ValueError(
            f"is_decoder={decoder} and zoo_mask={mask!r} contradict each other: remove one"
        )
    return mask


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The file of the weights, or all shards."""
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    index = directory / INDEX
    if not index.is_file():
        suffixes = {".bin", ".ckpt", ".h5", ".index", ".msgpack", ".safetensors"}
        found = sorted(p.name for p in directory.glob("*") if p.suffix in suffixes)[:5]
        raise FileNotFoundError(
            f"{directory / SINGLE} is missing, and so is {INDEX} of a model in shards; the folder "
            f"holds {found}. Convert PyTorch's files with transformers' save_pretrained; give the "
            "arrays of a TensorFlow checkpoint as a state dict"
        )
    places = read_json(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(pathlib.PurePath(name).name != name for name in names):
        raise ValueError(f"{index}: weight_map must give a file of this folder for every tensor")
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing, a shard that {INDEX} names")
    return [directory / name for name in names]


def _open(path: pathlib.Path) -> Any:
    safetensors = require("safetensors", "data")
    try:
        return safetensors.safe_open(path, "numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; fetch it again") from error
