"""From a text to a vocabulary and shards of packed rows; an interrupted preparation continues.

    DIRECTORY/config.json                          settings
    DIRECTORY/text.json                            fingerprint of the text
    DIRECTORY/tokenizer.json                       vocabulary of the training split
    DIRECTORY/train-00000-of-00004.array_record    rows; beside each a .json: counts and SHA-256
    DIRECTORY/manifest.json                        everything above, written last

Each shard is a range of the examples, written by any process from nothing but the text and the
vocabulary. A shard that is there and complete is not written again.

    python -m experiments.pretraining.corpus --preset small --workdir runs/pretraining
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from zoo._files import replace_file
from zoo.data import Vocabulary, build_vocabulary, open_source
from zoo.data.sources import fingerprint_of
from zoo.data.vocabulary import check_vocabulary
from zoo.training import open_workdir
from zoo.transformer import pack_sentences

from ..command_line import local_path
from . import records
from .config import Config, DataConfig

PAD, UNKNOWN, CLS, SEP, MASK = range(5)  # the order of BERT's special tokens
SPLITS = ("train", "valid", "test")
# Fields that a prepared corpus may be used with changed.
ELSEWHERE = ("directory", "separate_documents", "shards", "workers", "corrupt")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|<br />|\n")


class Shard(NamedTuple):
    """A range of the examples of one split, for one file."""

    data: DataConfig
    directory: pathlib.Path
    split: str
    number: int
    count: int
    vocabulary: str  # its digest

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.split}-{self.number:05d}-of-{self.count:05d}.array_record"


def prepare(data: DataConfig, directory: pathlib.Path) -> dict[str, Any]:
    """Makes what is missing of a corpus and returns its manifest.

    Every process of a run calls this; process 0 prepares while the others wait.

    Raises:
        ValueError: if the folder holds a corpus of other settings, or the text is empty.
    """
    if not (directory / records.MANIFEST).exists():
        open_source(data.uri, split="train")  # a text that is not there leaves no folder
    open_workdir(directory, data, ignore=ELSEWHERE, lock=False)
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("corpus")
    manifest = _complete(data, directory)
    if jax.process_index() == 0 < jax.process_count() - 1:
        multihost_utils.sync_global_devices("corpus")
    return manifest


def _complete(data: DataConfig, directory: pathlib.Path) -> dict[str, Any]:
    path = directory / records.MANIFEST
    manifest = _read(path)
    shards = manifest.get("shards") if manifest else None
    complete = bool(shards) and all((directory / shard["file"]).exists() for shard in shards)
    check_text(data.uri, directory, complete)
    if complete:
        # Needed after the training: what is wrong with it is found out before.
        check_vocabulary(manifest["vocabulary"], load_vocabulary(directory))
        return manifest
    vocabulary = make_vocabulary(data, directory)
    shards = [
        Shard(data, directory, split, number, count, vocabulary.digest)
        for split, count in zip(SPLITS, (data.shards, 1, 1), strict=True)
        for number in range(count)
    ]
    done: list[dict[str, Any]] = []
    for entry in write_shards(shards, data.workers):
        done.append(entry)
        written = f"{entry['rows']:,} rows, {entry['tokens']:,} tokens"
        print(f"{entry['file']}: {written} ({len(done)}/{len(shards)} files)")
    manifest = {
        "length": data.length,
        "vocab_size": len(vocabulary),
        "vocabulary": vocabulary.digest,
        "shards": done,
        "rows": {s: sum(e["rows"] for e in done if e["split"] == s) for s in SPLITS},
        "tokens": {s: sum(e["tokens"] for e in done if e["split"] == s) for s in SPLITS},
    }
    replace_file(path, json.dumps(manifest, indent=1))
    return manifest


def check_text(uri: str, directory: pathlib.Path, complete: bool) -> None:
    """A ValueError if a corpus was prepared of another text than the one at its URI.

    Of a complete corpus the text may have been deleted, and earlier versions did not name it.
    """
    path = directory / "text.json"
    there = _read(path)
    if there is None and complete:
        return
    try:
        here = fingerprint_of(uri)
    except OSError:
        if complete:
            return
        raise
    if there is None:
        replace_file(path, json.dumps({"uri": uri, "fingerprint": here}))
    elif there.get("fingerprint") != here:
        raise ValueError(
            f"{directory} was prepared of another text: {uri} has changed since; give another "
            "data.directory (or workdir), or delete the prepared corpus"
        )


def _read(path: pathlib.Path) -> Any:
    """The object in a file of JSON; None if there is none or it is damaged, and made again."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def load_vocabulary(directory: pathlib.Path) -> Vocabulary:
    """The vocabulary of a prepared corpus or of a BERT in Hugging Face's format."""
    return Vocabulary.load(directory / "tokenizer.json")


def make_vocabulary(data: DataConfig, directory: pathlib.Path) -> Vocabulary:
    """The vocabulary of the training split, trained once."""
    path = directory / "tokenizer.json"
    if not path.exists():
        source = open_source(data.uri, split="train")
        wordpiece = data.tokens == "wordpiece"
        vocabulary = build_vocabulary(
            (sentence for _, sentence in documents(source, 0, len(source))),
            split="wordpiece" if wordpiece else "bert_characters",
            max_size=data.vocab_size if wordpiece else None,
            lowercase=data.lowercase,
        )
        replace_file(path, vocabulary.model)
    return load_vocabulary(directory)


def documents(source: Any, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """(number of the document, sentence) of a range of examples.

    A source of lines has one sentence per example and blank lines between documents; any other has
    one document per example.
    """
    document = 0
    for index in range(start, stop):
        example = source[index]
        text = example.get("text")
        if not isinstance(text, str):
            raise ValueError(
                f"data.uri must give examples with a field text, got {', '.join(example)} from "
                f"{source.uri}; ?columns=… behind the path of a table names its columns"
            )
        is_line = set(example) == {"text"}
        document += not is_line or not text.strip()
        for sentence in [text] if is_line else map(str.strip, _SENTENCE_END.split(text)):
            if sentence.strip():
                yield document, sentence


def write_shards(shards: list[Shard], workers: int) -> Iterable[dict[str, Any]]:
    """Yields the entries of the shards in order, as they are written."""
    if not workers:
        yield from map(write_shard, shards)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(write_shard, shards)


def write_shard(shard: Shard) -> dict[str, Any]:
    """Writes one shard unless it is complete; returns its entry of the manifest."""
    path = shard.directory / shard.file
    entry_path = path.with_suffix(".json")
    entry = _read(entry_path) if path.exists() else None
    if entry and (entry.get("vocabulary"), entry.get("sha256")) == (
        shard.vocabulary,
        _sha256(path),
    ):
        return entry
    source = open_source(shard.data.uri, split=shard.split)
    start, stop = (len(source) * n // shard.count for n in (shard.number, shard.number + 1))
    pairs = list(documents(source, start, stop))
    numbers = [number for number, _ in pairs]
    sentences = [sentence for _, sentence in pairs]
    ids, word_starts = load_vocabulary(shard.directory).encode_with_word_starts(sentences)
    special = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD}
    rows = pack_sentences(
        ids, length=shard.data.length, word_starts=word_starts, documents=numbers, **special
    )
    records.write(path, rows)
    entry = {
        "file": shard.file,
        "split": shard.split,
        "rows": len(rows.ids),
        "tokens": int(np.sum((rows.ids == UNKNOWN) | (rows.ids > MASK))),
        "unknown": int(np.sum(rows.ids == UNKNOWN)),
        "documents": len(set(numbers)),
        "sha256": _sha256(path),
        "vocabulary": shard.vocabulary,
    }
    replace_file(entry_path, json.dumps(entry))
    return entry


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_of(config: Config) -> pathlib.Path:
    """Where the corpus of a run lies."""
    given = config.data.directory
    return local_path(given) if given else pathlib.Path(config.workdir) / "corpus"


def prepare_only(config: Config) -> None:
    """Prepares the corpus of a run."""
    manifest = prepare(config.data, directory_of(config))
    print(f"{directory_of(config)}: {manifest['rows']} rows, {manifest['tokens']} tokens")


if __name__ == "__main__":
    from .. import command_line
    from . import corpus
    from .config import PRESETS

    command_line.main(corpus.prepare_only, PRESETS, __doc__)
