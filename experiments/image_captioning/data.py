"""Pictures with captions: Flickr8k, and digits whose captions are made of templates."""

import io
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from zoo._files import replace_file
from zoo.data import Vocabulary, open_source
from zoo.data.arrays import read_npz
from zoo.data.fingerprint import fingerprint
from zoo.data.images import image_arrays
from zoo.data.sources import fingerprint_of
from zoo.extras import require

from ..command_line import local_path
from ..efficientnet import load_efficientnet, make_encoder
from ..running import is_main_process
from .config import DataConfig

SPLITS = ("train", "valid", "test")
ARCHIVE, CAPTIONS = "flickr8k_64px_jpeg.npz", "Flickr8k.token.txt.gz"
_WORDS = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEMPLATES = (
    "a {weight} {digit} on a dark ground",
    "the number {digit} in {weight} strokes",
    "somebody wrote a {digit}",
    "this {weight} digit is a {digit}",
    "a handwritten {digit}",
)


class Captioned(NamedTuple):
    """N pictures of a split."""

    images: np.ndarray  # [N, H, W, 1 or 3], bytes or numbers in 0..1
    captions: list[list[list[str]]]  # words by picture and caption


def words_of(caption: str) -> list[str]:
    """Lowercase words without punctuation, as captions are scored."""
    return _WORDS.findall(caption.lower())


def read(uri: str) -> dict[str, Captioned]:
    """The three splits of a set."""
    if uri == "builtin:digits":
        return {split: _digits(split) for split in SPLITS}
    if not uri.startswith("file:"):
        raise ValueError(f"data.uri must be builtin:digits or file:FOLDER, got {uri!r}")
    return _flickr8k(local_path(uri))


def _digits(split: str) -> Captioned:
    images, labels = image_arrays(open_source("builtin:digits", split=split))
    ink = images.mean(axis=(1, 2, 3))
    weights = np.where(ink > 0.32, "bold", np.where(ink < 0.29, "thin", "plain"))
    captions = [
        [words_of(t.format(weight=weight, digit=_DIGITS[label])) for t in _TEMPLATES]
        for weight, label in zip(weights, labels, strict=True)
    ]
    return Captioned(images, captions)


def _flickr8k(folder: pathlib.Path) -> dict[str, Captioned]:
    by_name: dict[str, list[list[str]]] = {}
    for number, line in enumerate(open_source(f"file:{folder / CAPTIONS}"), start=1):
        name, tab, caption = line["text"].partition("\t")
        if not tab:
            raise ValueError(f"{folder / CAPTIONS}, line {number}: expected NAME#k TAB caption")
        by_name.setdefault(name.partition("#")[0], []).append(words_of(caption))
    archive = read_npz(folder / ARCHIVE, ("jpeg", "offsets", "names", "split"))
    data, offsets, names, splits = archive.values()
    pictures = require("PIL.Image", "data")
    images = []
    for name, start, stop in zip(names, offsets[:-1], offsets[1:], strict=True):
        try:
            picture = pictures.open(io.BytesIO(data[start:stop].tobytes())).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            text = f"{folder / ARCHIVE}: {name.decode()} is no picture ({error})"
            raise ValueError(text) from error
        images.append(np.asarray(picture))
    if missing := {name.decode() for name in names} - by_name.keys():
        raise ValueError(f"{folder / CAPTIONS} has no caption of {min(missing)}")
    captions = [by_name[name.decode()] for name in names]
    found = {}
    for number, split in enumerate(SPLITS):
        own = np.flatnonzero(splits == number)
        found[split] = Captioned(np.stack(images)[own], [captions[i] for i in own])
    return found


class Vectors(NamedTuple):
    """Image vectors of every split, scaled by mean and deviation over the training pictures."""

    scaled: dict[str, np.ndarray]  # [N, E]
    mean: np.ndarray  # [E]
    deviation: np.ndarray  # [E]


def vectors_of(
    data: DataConfig, sets: dict[str, Captioned], store: pathlib.Path | None = None
) -> Vectors:
    """The pixels, or the features of the encoder, which are kept in the file ``store``."""
    if data.encoder:
        raw = _features(data, sets, store)
    else:
        raw = {split: part.images.reshape(len(part.images), -1) for split, part in sets.items()}
    mean, deviation = raw["train"].mean(axis=0), raw["train"].std(axis=0) + 1e-2
    scaled = {split: ((x - mean) / deviation).astype(np.float32) for split, x in raw.items()}
    return Vectors(scaled, mean, deviation)


def _features(
    data: DataConfig, sets: dict[str, Captioned], store: pathlib.Path | None
) -> dict[str, np.ndarray]:
    pictures = {split: part.images for split, part in sets.items()}
    made_of = fingerprint((pictures, fingerprint_of(data.encoder)))
    if store is not None and store.exists():
        try:
            archive = read_npz(store)
            kept = {split: archive[split] for split in sets}
            if str(archive["made_of"]) == made_of:
                return kept
        except (KeyError, ValueError):
            pass  # damaged: they are computed again
    if (channels := sets["train"].images.shape[-1]) != 3:
        raise ValueError(
            f"data.encoder needs pictures in colour, those of {data.uri} have {channels} channel"
        )
    model, encode = load_efficientnet(local_path(data.encoder)), make_encoder(data.image_size)
    found = {split: encode(model, part.images) for split, part in sets.items()}
    if store is not None and is_main_process():
        file = io.BytesIO()
        np.savez(file, made_of=np.array(made_of), **found)
        replace_file(store, file.getvalue())
    return found


def examples(
    images: np.ndarray, captioned: Captioned, vocabulary: Vocabulary, max_words: int
) -> list[dict[str, Any]]:
    """One example per caption: image or vector, inputs and targets [T], and how many count.

    A caption begins and ends with the end token; one that is too long is cut and has no end.
    """
    found = []
    for image, captions in zip(images, captioned.captions, strict=True):
        for words in captions:
            ids = vocabulary.encode(" ".join(words))[:max_words]
            row = np.full(max_words + 2, vocabulary.end, np.int32)
            row[1 : len(ids) + 1] = ids
            length = min(len(words), max_words) + (len(words) <= max_words)
            parts = {"inputs": row[:-1], "targets": row[1:], "length": np.int32(length)}
            found.append({"image": image} | parts)
    return found


def digits_named(captions: list[list[str]], references: list[list[list[str]]]) -> float:
    """The share of captions that name the digit of their references, and no other."""
    pairs = zip(captions, references, strict=True)
    digits = set(_DIGITS)
    return float(np.mean([digits & {*words} == digits & {*own[0]} for words, own in pairs]))
