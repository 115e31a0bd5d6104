"""From a text to a vocabulary and shards of packed rows; stopped in any way, it goes on.

    DIRECTORY/tokenizer.json                       trained on the training split
    DIRECTORY/train-00000-of-00004.array_record    rows; beside each a .json: counts and SHA-256
    DIRECTORY/manifest.json                        everything above, written last

Each shard is a range of the examples, made by a process of its own from nothing but the text and
the vocabulary, so that a shard that is there and whole need not be made again.

    python -m experiments.pretraining.corpus --preset small --workdir runs/pretraining
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments.pretraining import records
from experiments.pretraining.config import Config, DataConfig
from zoo.data import open_source
from zoo.extras import require
from zoo.transformer import pack_sentences

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
SPLITS = ("train", "valid", "test")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|<br />|\n")


class Shard(NamedTuple):
    """A range of the examples of one split, to be written to one file."""

    data: DataConfig
    directory: pathlib.Path
    split: str
    number: int
    count: int
    vocabulary: str  # digest of the tokenizer

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.split}-{self.number:05d}-of-{self.count:05d}.array_record"


def prepare(data: DataConfig, directory: pathlib.Path, *, say: bool = True) -> dict[str, Any]:
    """Makes what is missing of a corpus, and gives its manifest.

    Raises:
        ValueError: if the folder holds a corpus of other settings, or the text is empty.
    """
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        name: getattr(data, name) for name in ("uri", "tokens", "vocab_size", "lowercase", "length")
    }
    _check_settings(directory, settings)
    path = directory / records.MANIFEST
    if path.exists():
        manifest = json.loads(path.read_text())
        if all((directory / shard["file"]).exists() for shard in manifest["shards"]):
            return manifest
    vocabulary = _tokenizer(data, directory)
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()
    shards = [
        Shard(data, directory, split, number, count, digest)
        for split, count in zip(SPLITS, (data.shards, 1, 1), strict=True)
        for number in range(count)
    ]
    begin, done = time.perf_counter(), []
    for entry in _made(shards, data.workers):
        done.append(entry)
        if say:
            rate = sum(e["tokens"] for e in done) / (time.perf_counter() - begin)
            print(
                f"{entry['file']}: {entry['rows']:,} rows, {entry['tokens']:,} tokens "
                f"({len(done)}/{len(shards)} files, {rate:,.0f} tokens/s)"
            )
    model = require("tokenizers", "data").Tokenizer.from_str(vocabulary)
    manifest = {
        "settings": settings,
        "length": data.length,
        "vocab_size": model.get_vocab_size(),
        "vocabulary_sha256": digest,
        "shards": done,
        "rows": {s: sum(e["rows"] for e in done if e["split"] == s) for s in SPLITS},
        "tokens": {s: sum(e["tokens"] for e in done if e["split"] == s) for s in SPLITS},
    }
    _write(path, json.dumps(manifest, indent=1))
    return manifest


def load_tokenizer(directory: pathlib.Path) -> Any:
    """The vocabulary of a prepared corpus."""
    model = require("tokenizers", "data").Tokenizer.from_file(str(directory / "tokenizer.json"))
    model.encode_special_tokens = True  # "[MASK]" written in a text is six characters of text
    return model


def documents(source: Any, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """(number of the document, sentence) of a range of examples.

    A source of lines alone has one sentence an example and blank lines between documents; any other
    has one document an example.
    """
    document = 0
    for index in range(start, stop):
        example = source[index]
        if set(example) == {"text"}:
            if not example["text"].strip():
                document += 1
            else:
                yield document, example["text"]
        else:
            document += 1
            for sentence in _SENTENCE_END.split(example["text"]):
                if sentence.strip():
                    yield document, sentence.strip()


def write_shard(shard: Shard) -> dict[str, Any]:
    """Writes one shard unless it is there and whole; gives its entry of the manifest."""
    path = shard.directory / shard.file
    entry_path = path.with_suffix(".json")
    if entry_path.exists() and path.exists():
        entry = json.loads(entry_path.read_text())
        if entry["vocabulary"] == shard.vocabulary and entry["sha256"] == _sha256(path):
            return entry
    source = open_source(shard.data.uri, split=shard.split)
    start, stop = (len(source) * n // shard.count for n in (shard.number, shard.number + 1))
    pairs = list(documents(source, start, stop))
    numbers = [number for number, _ in pairs]
    encoded = load_tokenizer(shard.directory).encode_batch(
        [sentence for _, sentence in pairs], add_special_tokens=False
    )
    rows = pack_sentences(
        [np.asarray(one.ids, np.int32) for one in encoded],
        length=shard.data.length,
        word_starts=[_word_starts(one.word_ids) for one in encoded],
        documents=numbers,
        cls_id=CLS,
        sep_id=SEP,
        pad_id=PAD,
    )
    records.write(path, rows)
    entry = {
        "file": shard.file,
        "split": shard.split,
        "rows": len(rows.ids),
        "tokens": int(np.sum(rows.ids >= len(SPECIAL))) + int(np.sum(rows.ids == UNKNOWN)),
        "unknown": int(np.sum(rows.ids == UNKNOWN)),
        "documents": len(set(numbers)),
        "sha256": _sha256(path),
        "vocabulary": shard.vocabulary,
    }
    _write(entry_path, json.dumps(entry))
    return entry


def _made(shards: list[Shard], workers: int) -> Iterator[dict[str, Any]]:
    """The entries of the shards in order, as they are written."""
    if not workers:
        yield from map(write_shard, shards)
        return
    # Workers must not take the accelerator from whoever prepares the corpus.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(write_shard, shards)


def _tokenizer(data: DataConfig, directory: pathlib.Path) -> str:
    """The vocabulary as JSON; trained once."""
    path = directory / "tokenizer.json"
    if path.exists():
        return path.read_text("utf-8")
    tokenizers = require("tokenizers", "data")
    source = open_source(data.uri, split="train")
    sentences = (sentence for _, sentence in documents(source, 0, len(source)))
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=data.lowercase)
    if data.tokens == "wordpiece":
        model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        model.normalizer = normalizer
        model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        model.decoder = tokenizers.decoders.WordPiece()
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=data.vocab_size, special_tokens=list(SPECIAL), show_progress=False
        )
        model.train_from_iterator(sentences, trainer)
    else:
        characters = sorted({c for s in sentences for c in normalizer.normalize_str(s)})
        ids = {token: number for number, token in enumerate([*SPECIAL, *characters])}
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
        model.normalizer = normalizer
        every = tokenizers.Regex(r"[\s\S]")
        model.pre_tokenizer = tokenizers.pre_tokenizers.Split(every, behavior="isolated")
        model.decoder = tokenizers.decoders.Fuse()
        model.add_special_tokens(list(SPECIAL))
    text = model.to_str()
    _write(path, text)
    return text


def _word_starts(word_ids: list[int | None]) -> np.ndarray:
    numbers = np.array([-1 if n is None else n for n in word_ids], np.int64)
    return np.diff(numbers, prepend=-2) != 0


def _check_settings(directory: pathlib.Path, settings: dict[str, Any]) -> None:
    path = directory / "settings.json"
    if not path.exists():
        _write(path, json.dumps(settings))
        return
    found = json.loads(path.read_text())
    if found != settings:
        raise ValueError(
            f"{directory} holds a corpus prepared with {found}, asked for is {settings}: give "
            "another data.directory, or delete it"
        )


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: pathlib.Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(path)


def directory_of(config: Config) -> pathlib.Path:
    """Where the corpus of a run lies."""
    return pathlib.Path(config.data.directory or pathlib.Path(config.workdir) / "corpus")


def _prepare_only(config: Config) -> None:
    manifest = prepare(config.data, directory_of(config))
    print(f"{directory_of(config)}: {manifest['rows']} rows, {manifest['tokens']} tokens")


if __name__ == "__main__":
    from experiments import command_line
    from experiments.pretraining.config import PRESETS

    command_line.main(_prepare_only, PRESETS, __doc__)
