"""From tensors as they are stored to arrays as the model has them, by names.

Hugging Face's names, those of Google's TensorFlow code, and old ones (``gamma``, ``beta``) of one
tensor have one plain name, which ``Architecture.names`` gives for every parameter. Joint tensors
are split, the rows of the position table before position 0 are cut off.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zoo.transformer.architectures import Architecture
from zoo.transformer.config import TransformerConfig

# No parameters: counters, constants, TensorFlow's optimiser state.
_IGNORED = re.compile(
    r"embeddings\.(position|token_type)_ids$|encoder\.embed_positions\.weight$"
    r"|h\.\d+\.attn\.(masked_)?bias$|global_step$|.*\.adam_[mv]$"
)


def is_backbone(plain: str, kind: Architecture) -> bool:
    """Whether a name, without the prefix, is one of the backbone (or of the pooler)."""
    heads = ("head", "head_norm", "output_embedding", "output_bias")
    roots = {theirs.split(".")[0] for ours, theirs in kind.names.items() if ours not in heads}
    return plain.split(".")[0] in roots


def their_name(ours: str, kind: Architecture) -> str | None:
    """Hugging Face's name of a parameter; None if the architecture does not have it."""
    parts = re.fullmatch(r"(.+)[_/](kernel|bias|scale)", ours)
    if ours in kind.names or parts is None:
        return kind.names.get(ours)
    stem, end = parts.groups()
    end = ".bias" if end == "bias" else ".weight"
    return kind.names[stem] + end if stem in kind.names else None


def plain_name(name: str, kind: Architecture) -> str:
    """The name of a tensor as in ``names``, from TensorFlow's, an old or a prefixed one."""
    if "/" in name:
        name = re.sub(r"/layer_(\d+)/", r"/layer/\1/", name).replace("/", ".")
        name = re.sub(r"_embeddings$", "_embeddings.weight", name.replace(".kernel", ".weight"))
        name = name.replace("predictions.output_bias", "predictions.bias")
    return name.removeprefix(kind.prefix).replace(".gamma", ".weight").replace(".beta", ".bias")


def matrix_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one layer's parameter as TensorFlow stores it: heads are no axis there."""
    if ours.endswith("attention/output_kernel"):
        return shape[0] * shape[1], shape[2]
    if ours.endswith("_kernel"):
        return shape[0], int(np.prod(shape[1:]))
    return shape if ours.endswith("_embedding") else (int(np.prod(shape)),)


class _Named(NamedTuple):
    """A tensor by its plain name."""

    name: str  # as stored
    value: Any


def _named(
    tensors: Mapping[str, Any], kind: Architecture, first: int
) -> tuple[dict[str, _Named], list[str]]:
    """Tensors by plain name, joint ones split, positions from 0 on; and names that are double."""
    named: dict[str, _Named] = {}
    twice = []
    for name, value in tensors.items():
        plain = plain_name(name, kind)
        if plain in named and not _IGNORED.match(plain):
            twice.append(f"{named[plain].name} and {name}")
        if plain == kind.names.get("position_embedding") and np.ndim(value):
            value = np.asarray(value)[first:]
        named[plain] = _Named(name, value)
    for plain in [plain for plain in named if ".attn.c_attn." in plain and not kind.transposed]:
        name, value = named.pop(plain)
        parts = np.array_split(np.asarray(value), 3, axis=-1) if np.ndim(value) else [value] * 3
        for part, columns in zip(("query", "key", "value"), parts, strict=True):
            named[plain.replace("c_attn.", f"c_attn.{part}.")] = _Named(name, columns)
    return named, twice


def fill_parameters(
    shapes: Mapping[str, tuple[int, ...]],
    config: TransformerConfig,
    kind: Architecture,
    tensors: Mapping[str, Any],
    place: str,
    first: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays of ``shapes``, from tensors by any of their names; and those of other heads."""
    if config.num_layers > len(tensors):
        raise ValueError(
            f"{place} has {len(tensors)} tensors, the model {config.num_layers} layers"
        )
    named, twice = _named(tensors, kind, first)
    decoder = kind.names["output_embedding"].removesuffix("weight")
    unused = {plain for plain in named if not _IGNORED.match(plain)}
    if "output_bias" in shapes and decoder + "bias" in named:
        own = named[decoder + "bias"]
        # Without ties, theirs is the decoder's bias that counts.
        bias = named.setdefault(kind.names["output_bias"], own) if config.tie_embeddings else own
        named[kind.names["output_bias"]] = bias
    if config.head != "none":
        if config.tie_embeddings:
            _check_is_tied(named, config, kind, place)
        unused -= {decoder + "weight", decoder + "bias"}
    filled, missing, mismatched = {}, [], []
    for ours, shape in shapes.items():
        theirs = their_name(ours, kind)
        if theirs is None:  # of a norm that the architecture does not have
            continue
        stacked = ours.startswith("layers/")
        one_shape = shape[1:] if stacked else shape
        parts = []
        for plain in [theirs.format(i) for i in range(shape[0])] if stacked else [theirs]:
            unused.discard(plain)
            if plain not in named:
                missing.append(plain)
                continue
            name, value = named[plain]
            transposed = ours.endswith("_kernel") and kind.transposed and "/" not in name
            value, expected = np.asarray(value), matrix_shape(ours, one_shape)
            expected = expected[::-1] if transposed else expected
            if not jnp.issubdtype(value.dtype, jnp.floating):
                mismatched.append(f"{name} of {value.dtype}, the model has floating numbers")
            elif value.shape == expected:
                parts.append((value.T if transposed else value).reshape(one_shape))
            else:
                mismatched.append(f"{name} {value.shape}, the model has {expected}")
        if len(parts) == (shape[0] if stacked else 1):
            filled[ours] = np.stack(parts) if stacked else parts[0]
    others = {plain for plain in unused if plain.startswith("pooler.")}
    others |= {plain for plain in unused if not is_backbone(plain, kind)}
    problems = {
        "missing": missing,
        "not known to the model": [named[plain].name for plain in unused - others],
        "of another shape or dtype": mismatched,
        "there twice": twice,
    }
    listed = [
        f"{title}: {', '.join(sorted(set(names)))}" for title, names in problems.items() if names
    ]
    if listed:
        raise ValueError(f"{place} does not fit the model. Tensors {'; '.join(listed)}")
    return filled, {named[plain].name: np.asarray(named[plain].value) for plain in sorted(others)}


def _check_is_tied(
    named: Mapping[str, _Named], config: TransformerConfig, kind: Architecture, place: str
) -> None:
    """Refuses logits from a table or with a bias of their own."""
    decoder = kind.names["output_embedding"].removesuffix("weight")
    pairs = {decoder + "weight": kind.names["token_embedding"]}
    if config.head == "mlm":
        pairs[decoder + "bias"] = kind.names["output_bias"]
    for one, other in pairs.items():
        ours, theirs = named.get(one), named.get(other)
        if ours is None or theirs is None or ours.name == theirs.name:
            continue
        if not np.array_equal(np.asarray(ours.value), np.asarray(theirs.value)):
            raise ValueError(
                f"{place}: {ours.name} differs from {theirs.name}, but the logits of this config "
                "are tied to the token embedding: tie_embeddings=False gives them a table of their "
                "own, head='none' takes the encoder alone"
            )
