"""Whose checkpoints are read and written: names of tensors, and keys of ``config.json``.

A key of the config that changes the mathematics is applied or refused by its name:

    applied    the sizes, dropout, epsilon, initial scale, activation, tied logits (``fields``);
               is_decoder (the causal mask); zoo_mask, which is ours
    refused    what ``FIXED`` has another value for
    passed     what is no part of the forward pass (``PASSED``)
    warned of  all others

What is absent has the value of the architecture's class in Hugging Face's library; in Google's
``bert_config.json``, that of Google's code.

Source: https://github.com/huggingface/transformers, the classes ``BertConfig``, ``RobertaConfig``,
``DistilBertConfig``, ``ElectraConfig``, ``RoFormerConfig`` and ``GPT2Config``;
https://github.com/google-research/bert.
"""

import json
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from zoo._checks import choice, count, number
from zoo.transformer.attention import PATTERNS
from zoo.transformer.checkpoint_files import read_json
from zoo.transformer.config import TransformerConfig, embedding_width

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
_LARGEST = 2**31 - 1


class Architecture(NamedTuple):
    """How Hugging Face stores one kind of model."""

    prefix: str  # of the backbone's tensors, where there is a head
    # Our name -> theirs without the prefix; {} is the number of the layer. A name that is not an
    # array itself holds kernel and bias, or scale and bias: theirs end in ".weight" and ".bias".
    names: Mapping[str, str]
    fields: Mapping[str, str]  # of the TransformerConfig -> key of config.json
    defaults: Mapping[str, Any]  # key -> value if it is absent; None: four times the features
    classes: tuple[str, str, str]  # without a head, with one, with one and a causal mask, if any
    options: Mapping[str, Any] = {}  # of the TransformerConfig, the same for all
    transposed: bool = True  # kernels are [out, in]
    first_position: int = 0  # row of position 0 in the table of positions
    head_activation: str | None = None  # None: that of the layers


_EMBEDDINGS = {
    "token_embedding": "embeddings.word_embeddings.weight",
    "segment_embedding": "embeddings.token_type_embeddings.weight",
    "position_embedding": "embeddings.position_embeddings.weight",
    "embedding_norm": "embeddings.LayerNorm",
}
_LAYERS = {
    "layers/attention/query": "encoder.layer.{}.attention.self.query",
    "layers/attention/key": "encoder.layer.{}.attention.self.key",
    "layers/attention/value": "encoder.layer.{}.attention.self.value",
    "layers/attention/output": "encoder.layer.{}.attention.output.dense",
    "layers/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/feedforward/expand": "encoder.layer.{}.intermediate.dense",
    "layers/feedforward/contract": "encoder.layer.{}.output.dense",
    "layers/feedforward_norm": "encoder.layer.{}.output.LayerNorm",
}
_BERT_HEAD = {
    "head": "cls.predictions.transform.dense",
    "head_norm": "cls.predictions.transform.LayerNorm",
    "output_embedding": "cls.predictions.decoder.weight",
    "output_bias": "cls.predictions.bias",
}
_FIELDS = {
    "vocab_size": "vocab_size",
    "features": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feedforward_features": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "epsilon": "layer_norm_eps",
    "initial_scale": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
}
_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
ARCHITECTURES = {
    "bert": Architecture(
        prefix="bert.",
        names=_EMBEDDINGS | _LAYERS | {"pooler": "pooler.dense"} | _BERT_HEAD,
        fields=_FIELDS,
        defaults=_DEFAULTS,
        classes=("BertModel", "BertForMaskedLM", "BertLMHeadModel"),
    ),
    "roberta": Architecture(
        prefix="roberta.",
        names=_EMBEDDINGS
        | _LAYERS
        | {
            "pooler": "pooler.dense",
            "head": "lm_head.dense",
            "head_norm": "lm_head.layer_norm",
            "output_embedding": "lm_head.decoder.weight",
            "output_bias": "lm_head.bias",
        },
        fields=_FIELDS,
        defaults=_DEFAULTS | {"vocab_size": 50265},
        classes=("RobertaModel", "RobertaForMaskedLM", "RobertaForCausalLM"),
        first_position=2,  # after that of padding, whose id is 1
        head_activation="gelu",
    ),
    "distilbert": Architecture(
        prefix="distilbert.",
        names={
            **{ours: name for ours, name in _EMBEDDINGS.items() if ours != "segment_embedding"},
            "layers/attention/query": "transformer.layer.{}.attention.q_lin",
            "layers/attention/key": "transformer.layer.{}.attention.k_lin",
            "layers/attention/value": "transformer.layer.{}.attention.v_lin",
            "layers/attention/output": "transformer.layer.{}.attention.out_lin",
            "layers/attention_norm": "transformer.layer.{}.sa_layer_norm",
            "layers/feedforward/expand": "transformer.layer.{}.ffn.lin1",
            "layers/feedforward/contract": "transformer.layer.{}.ffn.lin2",
            "layers/feedforward_norm": "transformer.layer.{}.output_layer_norm",
            "head": "vocab_transform",
            "head_norm": "vocab_layer_norm",
            "output_embedding": "vocab_projector.weight",
            "output_bias": "vocab_projector.bias",
        },
        fields={
            "vocab_size": "vocab_size",
            "features": "dim",
            "num_layers": "n_layers",
            "num_heads": "n_heads",
            "feedforward_features": "hidden_dim",
            "max_positions": "max_position_embeddings",
            "activation": "activation",
            "dropout": "dropout",
            "attention_dropout": "attention_dropout",
            "initial_scale": "initializer_range",
            "tie_embeddings": "tie_word_embeddings",
        },
        defaults={
            "vocab_size": 30522,
            "dim": 768,
            "n_layers": 6,
            "n_heads": 12,
            "hidden_dim": 3072,
            "max_position_embeddings": 512,
            "activation": "gelu",
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
        },
        classes=("DistilBertModel", "DistilBertForMaskedLM", ""),
        options={"num_segments": 0, "epsilon": 1e-12},
    ),
    "electra": Architecture(
        prefix="electra.",
        names=_EMBEDDINGS
        | _LAYERS
        | {
            "embedding": "embeddings_project",
            "head": "generator_predictions.dense",
            "head_norm": "generator_predictions.LayerNorm",
            "output_embedding": "generator_lm_head.weight",
            "output_bias": "generator_lm_head.bias",
        },
        fields=_FIELDS | {"embedding_features": "embedding_size"},
        defaults=_DEFAULTS
        | {
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        classes=("ElectraModel", "ElectraForMaskedLM", "ElectraForCausalLM"),
        head_activation="gelu",
    ),
    "roformer": Architecture(
        prefix="roformer.",
        names={ours: name for ours, name in _EMBEDDINGS.items() if ours != "position_embedding"}
        | _LAYERS
        | {"embedding": "embeddings_project"}
        | _BERT_HEAD,
        fields=_FIELDS | {"embedding_features": "embedding_size"},
        defaults=_DEFAULTS
        | {"vocab_size": 50000, "embedding_size": None, "max_position_embeddings": 1536},
        classes=("RoFormerModel", "RoFormerForMaskedLM", "RoFormerForCausalLM"),
        options={"positions": "rotary"},
    ),
    "gpt2": Architecture(
        prefix="transformer.",
        names={
            "token_embedding": "wte.weight",
            "position_embedding": "wpe.weight",
            "layers/attention_norm": "h.{}.ln_1",
            # Stored as one matrix, ``c_attn``, which is split as it is read.
            "layers/attention/query": "h.{}.attn.c_attn.query",
            "layers/attention/key": "h.{}.attn.c_attn.key",
            "layers/attention/value": "h.{}.attn.c_attn.value",
            "layers/attention/output": "h.{}.attn.c_proj",
            "layers/feedforward_norm": "h.{}.ln_2",
            "layers/feedforward/expand": "h.{}.mlp.c_fc",
            "layers/feedforward/contract": "h.{}.mlp.c_proj",
            "final_norm": "ln_f",
            "output_embedding": "lm_head.weight",
        },
        fields={
            "vocab_size": "vocab_size",
            "features": "n_embd",
            "num_layers": "n_layer",
            "num_heads": "n_head",
            "feedforward_features": "n_inner",
            "max_positions": "n_positions",
            "activation": "activation_function",
            "dropout": "resid_pdrop",
            "attention_dropout": "attn_pdrop",
            "epsilon": "layer_norm_epsilon",
            "initial_scale": "initializer_range",
            "tie_embeddings": "tie_word_embeddings",
        },
        defaults={
            "vocab_size": 50257,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": None,
            "n_positions": 1024,
            "activation_function": "gelu_new",
            "resid_pdrop": 0.1,
            "attn_pdrop": 0.1,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
        },
        classes=("GPT2Model", "GPT2LMHeadModel", "GPT2LMHeadModel"),
        options={"norm_position": "pre", "num_segments": 0, "mask": "causal", "head": "tied"},
        transposed=False,
    ),
}
# Of the same mathematics and names.
ALIASES = {"xlm-roberta": "roberta", "camembert": "roberta"}
FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, []),
    "quantization_config": (),
    "auto_map": (),
    "pooler_type": ("first_token_transform",),
    "rotary_value": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
PASSED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _name_or_path architectures attn_implementation bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size decoder_start_token_id directionality diversity_penalty
    do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label is_decoder label2id length_penalty max_length
    min_length model_type n_ctx name_or_path no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_past
    output_scores pad_token_id pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head prefix problem_type qa_dropout remove_invalid_values
    reorder_and_upcast_attn repetition_penalty return_dict return_dict_in_generate sep_token_id
    seq_classif_dropout sinusoidal_pos_embds summary_activation summary_first_dropout
    summary_last_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache zoo_mask
    """.split()  # noqa: SIM905
)


class StoredConfig(NamedTuple):
    """What a config file says."""

    architecture: str
    options: dict[str, Any]  # of the TransformerConfig; neither head nor pooler stand there
    first_position: int


def read_config(path: pathlib.Path) -> StoredConfig:
    """Reads ``config.json``, or Google's ``bert_config.json``.

    Raises:
        ValueError: if it is another architecture, or a variant that is not supported; the key is
            named.
        OSError: if the file is missing.
    """
    stored = {key: value for key, value in read_json(path).items() if value is not None}
    try:
        kind = stored.get("model_type", "bert")
        choice("model_type", kind, (*ARCHITECTURES, *ALIASES))
        kind = ALIASES.get(kind, kind)
        found = StoredConfig(kind, *_options(ARCHITECTURES[kind], stored, path.name))
        TransformerConfig(**found.options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    known = {*PASSED, *FIXED, *ARCHITECTURES[kind].fields.values()}
    unknown = stored.keys() - known - {"embedding_size"}
    if unknown:
        warnings.warn(
            f"{path}: nothing is known of {sorted(unknown)}; if one of them changes what the model "
            "computes, the numbers will be others",
            stacklevel=3,
        )
    return found


def _options(architecture: Architecture, stored: dict[str, Any], name: str) -> tuple[Any, int]:
    """The options of a TransformerConfig, and the row of position 0."""
    for key, values in FIXED.items():
        if key in stored and stored[key] not in values:
            wanted = f"be {' or '.join(map(repr, values))}" if values else "be absent"
            raise ValueError(f"{key} must {wanted}, got {stored[key]!r:.80}")
    defaults = dict(architecture.defaults)
    if name == "bert_config.json":
        defaults["type_vocab_size"] = 16
    options: dict[str, Any] = {}
    for ours, theirs in architecture.fields.items():
        value = stored.get(theirs, defaults[theirs])
        if ours == "activation":
            choice(theirs, value, tuple(ACTIVATIONS))
            options[ours] = ACTIVATIONS[value]
        elif ours == "tie_embeddings":
            choice(theirs, value, (True, False))
            options[ours] = value
        elif ours in ("dropout", "attention_dropout", "epsilon", "initial_scale"):
            options[ours] = number(theirs, value)
        elif value is None:
            options[ours] = options["features"] * (4 if ours == "feedforward_features" else 1)
        else:
            options[ours] = count(theirs, value, at_most=_LARGEST)
    width = options.pop("embedding_features", stored.get("embedding_size", options["features"]))
    if width != options["features"]:
        if "embedding_features" not in architecture.fields:
            raise ValueError(f"embedding_size must be hidden_size, got {width!r:.80}")
        options["embedding_features"] = width
    first = 0
    if architecture.first_position:
        first = 1 + count("pad_token_id", stored.get("pad_token_id", 1), at_most=_LARGEST - 1)
        options["max_positions"] -= first
    return {**options, **architecture.options, "mask": _mask(architecture, stored)}, first


def _mask(architecture: Architecture, stored: dict[str, Any]) -> str:
    """The mask of ``zoo_mask`` and ``is_decoder``, which must not contradict each other."""
    always = architecture.options.get("mask")
    decoder = stored.get("is_decoder", stored.get("zoo_mask", always) == "causal")
    decoder = True if always == "causal" and "zoo_mask" not in stored else decoder
    choice("is_decoder", decoder, (True, False))
    mask = stored.get("zoo_mask", "causal" if decoder else "bidirectional")
    choice("zoo_mask", mask, PATTERNS)
    if decoder != (mask == "causal"):
        raise ValueError(
            f"is_decoder={decoder} and zoo_mask={mask!r} contradict each other: remove one"
        )
    return mask


def write_config(config: TransformerConfig, name: str) -> str:
    """The text of ``config.json``; only this library knows the prefix mask."""
    architecture = ARCHITECTURES[name]
    stored = {theirs: getattr(config, ours) for ours, theirs in architecture.fields.items()}
    theirs = architecture.fields["activation"]
    stored[theirs] = next(n for n, ours in ACTIVATIONS.items() if ours == config.activation)
    if "embedding_features" in architecture.fields:
        stored["embedding_size"] = embedding_width(config)
    if name == "gpt2":
        stored["embd_pdrop"] = config.dropout
    else:
        stored["is_decoder"] = config.mask == "causal"
    if architecture.first_position:
        stored["max_position_embeddings"] += architecture.first_position
        stored["pad_token_id"] = architecture.first_position - 1
    kind = 0 if config.head == "none" else 2 if config.mask == "causal" else 1
    stored |= {
        "architectures": [architecture.classes[kind]],
        "model_type": name,
        "zoo_mask": config.mask,
    }
    return json.dumps(stored, indent=2, sort_keys=True) + "\n"


def unfit(name: str, config: TransformerConfig) -> str:
    """What keeps a model from being of this architecture; empty if nothing does."""
    architecture = ARCHITECTURES[name]
    wanted: dict[str, Any] = {"norm_position": ("post",), "positions": ("learned",)}
    wanted["head"] = ("mlm",)
    wanted |= {key: (value,) for key, value in architecture.options.items() if key != "mask"}
    wanted["head"] += ("none",)
    if "pooler" not in architecture.names:
        wanted["pooler"] = (False,)
    if architecture.options.get("mask"):
        wanted["mask"] = ("causal", "prefix")
    elif not architecture.classes[2]:
        wanted["mask"] = ("bidirectional", "prefix")
    parts = [
        f"{key}={getattr(config, key)!r} instead of {' or '.join(map(repr, values))}"
        for key, values in wanted.items()
        if getattr(config, key) not in values
    ]
    if "num_segments" in architecture.fields and not config.num_segments:
        parts.append("num_segments=0")
    if "embedding_features" not in architecture.fields:
        width = embedding_width(config)
        parts += [f"embedding_features={width}"] if width != config.features else []
    fixed = architecture.head_activation
    if fixed and config.head == "mlm" and config.activation != fixed:
        parts.append(f"activation={config.activation!r}, but its head has {fixed!r}")
    if config.positions == "rotary" and config.rotary_base != 10_000:
        parts.append(f"rotary_base={config.rotary_base}")
    return ", ".join(parts)
