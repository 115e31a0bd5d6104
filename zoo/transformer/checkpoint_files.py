"""Files of a checkpoint in Hugging Face's format: JSON, and safetensors in one file or in shards.

A model in shards has an index that says which file holds which tensor; ``weight_map`` of it is read
and written, and one folder holds one of the two forms.

Source: https://github.com/huggingface/safetensors.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo._files import replace_file
from zoo.extras import require

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


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


def write_tensors(
    directory: pathlib.Path, tensors: Mapping[str, np.ndarray], *, shard_bytes: int
) -> None:
    """Writes one file, or shards of at most this size (but for larger tensors) and their index.

    Every file is replaced as a whole; what the other form left in the folder is removed at last.
    """
    save = require("safetensors.numpy", "data").save
    shards: list[dict[str, np.ndarray]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = np.asarray(tensor, order="C")  # a view is written as it lies in memory
        room -= tensor.nbytes
    before = {path.name for path in directory.glob("model*.safetensors*")}
    count, places = len(shards), dict[str, str]()
    for number, shard in enumerate(shards):
        file = SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
        replace_file(directory / file, save(shard, metadata={"format": "pt"}))
        places |= dict.fromkeys(shard, file)
    written = set(places.values())
    if count > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        replace_file(directory / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
        written |= {INDEX}
    old = [name for name in before - written if name in (SINGLE, INDEX) or _SHARD.fullmatch(name)]
    for name in sorted(old):
        (directory / name).unlink()


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
