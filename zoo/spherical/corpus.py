"""A corpus of documents, one a line: its vocabulary, and its words as numbers on disk.

Nothing holds the text. One pass counts the words, a second writes the numbers of the kept ones to a
temporary file that is mapped into memory; training reads only that, so a text file that changes
later does no harm, and one that changes between the two passes is refused. A line may have any
length: it is read in pieces that are cut at white space.
"""

import collections
import gzip
import lzma
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

Corpus = str | os.PathLike[str] | Iterable[str]
Tokenizer = Callable[[str], list[str]]

_PIECE = 1 << 20  # bytes of text in one piece
_BLANKS = b" \t\r\v\f"
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_OTHERS = re.compile("[^a-z]+")


class JoseVocabulary(NamedTuple):
    """The words of a model, the most frequent first."""

    words: tuple[str, ...]  # V of them; the row of a word is its place here
    counts: np.ndarray  # int64 [V], occurrences in the corpus


class EncodedCorpus(NamedTuple):
    """Documents as numbers of words; rarer words are left out."""

    ids: np.ndarray  # int32 [N], words of all documents in a row
    starts: np.ndarray  # int64 [documents + 1], where each document begins and the last one ends

    @property
    def skipped(self) -> int:
        """How many documents have no word of the vocabulary: they are never trained on."""
        return int(np.sum(np.diff(self.starts) == 0))


def letters(text: str) -> list[str]:
    """Lower-cased words of the letters a-z; everything else parts them.

    Args:
        text: any text.

    Returns:
        Its words.

    >>> letters("Don't PANIC, 42!")
    ['don', 't', 'panic']
    """
    return _OTHERS.sub(" ", text.lower()).split()


def build_vocabulary(
    corpus: Corpus, *, min_count: int = 5, tokenizer: Tokenizer = str.split
) -> JoseVocabulary:
    """Counts the words of a corpus in one pass.

    Args:
        corpus: path of a UTF-8 file with a document a line (``.gz`` and ``.xz`` too), or an
            iterable of documents.
        min_count: rarer words are left out.
        tokenizer: text -> words; a document may come in several pieces.

    Returns:
        The words by falling count, equally frequent ones in alphabetical order.

    Raises:
        ValueError: if fewer than two words are left (a hinge needs a word and another one), or the
            text is not UTF-8.

    >>> build_vocabulary(["b a b", "a b c"], min_count=2).words
    ('b', 'a')
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    counts: collections.Counter[str] = collections.Counter()
    for text, _ in _pieces(corpus):
        counts.update(tokenizer(text))
    words = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w))
    if len(words) < 2:
        raise ValueError(
            f"the vocabulary must have at least 2 words, got {len(words)} of the "
            f"{len(counts)} in the corpus that occur at least min_count={min_count} times; "
            "lower min_count, or give more text"
        )
    return JoseVocabulary(tuple(words), np.array([counts[w] for w in words], np.int64))


def encode_corpus(
    corpus: Corpus, vocabulary: JoseVocabulary, *, tokenizer: Tokenizer = str.split
) -> EncodedCorpus:
    """Writes the numbers of a corpus's words to a temporary file and maps it.

    Args:
        corpus: as in :func:`build_vocabulary`.
        vocabulary: its words.
        tokenizer: as in :func:`build_vocabulary`.

    Returns:
        The documents, also those without any word of the vocabulary.

    Raises:
        ValueError: if the text is not UTF-8.

    >>> corpus = ["b a x b", "", "a"]
    >>> encoded = encode_corpus(corpus, build_vocabulary(["a b"], min_count=1))
    >>> encoded.ids.tolist(), encoded.starts.tolist(), encoded.skipped
    ([1, 0, 1, 0], [0, 3, 3, 4], 1)
    """
    number = {word: row for row, word in enumerate(vocabulary.words)}
    starts, total = [0], 0
    with tempfile.TemporaryFile() as file:  # mapped pages outlive the closed file
        for text, ends in _pieces(corpus):
            found = [number[word] for word in tokenizer(text) if word in number]
            file.write(np.array(found, np.int32).tobytes())
            total += len(found)
            if ends:
                starts.append(total)
        file.flush()
        ids = np.memmap(file, np.int32, "r", shape=(total,)) if total else np.zeros(0, np.int32)
    return EncodedCorpus(ids, np.array(starts, np.int64))


def fingerprint(corpus: Corpus) -> tuple[int, ...] | None:
    """What tells that a file was changed; None for other corpora."""
    if not isinstance(corpus, str | os.PathLike):
        return None
    status = os.stat(corpus)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _pieces(corpus: Corpus) -> Iterator[tuple[str, bool]]:
    """Texts, each with whether its document ends there."""
    if not isinstance(corpus, str | os.PathLike):
        if iter(corpus) is corpus:
            raise TypeError(
                "corpus must be a path or an iterable that can be read twice, got an iterator "
                f"({type(corpus).__name__}); give a list, or an object whose __iter__ starts anew"
            )
        for document in corpus:
            if not isinstance(document, str):
                raise TypeError(f"corpus must hold strings, got {type(document).__name__}")
            yield document, True
        return
    path, offset, rest = pathlib.Path(corpus), 0, b""
    with _OPENERS.get(path.suffix, open)(path, "rb") as file:
        while chunk := file.read(_PIECE):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield _decode(line, path, offset), True
                offset += len(line) + 1
            if len(rest) >= _PIECE and (cut := max(rest.rfind(b) for b in _BLANKS) + 1):
                yield _decode(rest[:cut], path, offset), False
                offset, rest = offset + cut, rest[cut:]
    if rest:  # the last line may lack its break
        yield _decode(rest, path, offset), True


def _decode(line: bytes, path: pathlib.Path, offset: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {offset + error.start} holds "
            f"{line[error.start : error.start + 1]!r} ({error.reason}); convert it to UTF-8"
        ) from error
