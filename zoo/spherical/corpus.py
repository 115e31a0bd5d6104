"""A corpus of documents, one per line: its vocabulary, and its words as numbers on disk.

The text is never held in memory. One pass counts the words, a second writes the numbers of the kept
ones to a temporary file that is mapped into memory; training reads only that, so a text file may
change later, and one that changes between the two passes is refused. A line may have any length: it
is read in pieces that are cut at white space.
"""

import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from zoo.data import Vocabulary, build_vocabulary
from zoo.spherical.files import open_bytes

Corpus = str | os.PathLike[str] | Iterable[str]
Tokenizer = Callable[[str], Iterable[str]]

_PIECE = 1 << 20  # bytes of text in one piece
_BLANKS = b" \t\r\v\f"
_BYTE_ORDER_MARK = "\ufeff"
_NOT_LETTERS = re.compile("[^a-z]+")


class EncodedCorpus(NamedTuple):
    """Documents as numbers of words; words that are not in the vocabulary are left out."""

    ids: np.ndarray  # int32 [N], words of all documents, one after the other
    starts: np.ndarray  # int64 [documents + 1], where each document begins and the last one ends

    @property
    def skipped(self) -> int:
        """How many documents have no word of the vocabulary: they are never trained on."""
        return int(np.sum(np.diff(self.starts) == 0))


def letters(text: str) -> list[str]:
    """Lower-cased words of the letters a-z; everything else separates them.

    Args:
        text: any text.

    Returns:
        Its words.

    >>> letters("Don't PANIC, 42!")
    ['don', 't', 'panic']
    """
    return _NOT_LETTERS.sub(" ", text.lower()).split()


def read_corpus(
    corpus: Corpus, *, min_count: int = 5, tokenizer: Tokenizer = str.split
) -> tuple[Vocabulary, EncodedCorpus]:
    """Counts the words of a corpus, then encodes it.

    Args:
        corpus: path of a UTF-8 file with a document per line (``.gz``, ``.xz`` and ``.bz2`` too),
            or an iterable of documents that can be read twice.
        min_count: rarer words are left out.
        tokenizer: text -> words; a long document comes in several pieces.

    Returns:
        The vocabulary, by falling count, equally frequent words in alphabetical order, without
        special tokens; and the documents.

    Raises:
        ValueError: if fewer than two words are left (a hinge needs a word and another one), the
            text is not UTF-8, or the file changes while it is read.
        TypeError: if the corpus is an iterator or holds something other than strings, or the
            tokenizer gives a string instead of words.

    >>> vocabulary, encoded = read_corpus(["b a b", "", "a b c"], min_count=2)
    >>> vocabulary.tokens, encoded.ids.tolist(), encoded.starts.tolist()
    (('b', 'a'), [0, 1, 0, 1, 0], [0, 3, 3, 5])
    """
    before = _fingerprint(corpus)
    texts = (text for text, _ in _pieces(corpus))
    # A split with a name can be saved.
    split: Any = "whitespace" if tokenizer is str.split else tokenizer
    vocabulary = build_vocabulary(texts, split=split, min_count=min_count, special=())
    if len(vocabulary) < 2:
        raise ValueError(
            f"the vocabulary must have at least 2 words, got 1 that occurs at least {min_count=} "
            "times; lower min_count, or give more text"
        )
    encoded = encode_corpus(corpus, vocabulary, tokenizer=tokenizer)
    counted = int(np.asarray(vocabulary.counts).sum())
    if _fingerprint(corpus) != before or len(encoded.ids) != counted:
        raise ValueError(
            f"the corpus {corpus if before else ''} changed while it was read: {counted} words of "
            f"the vocabulary in the first pass, {len(encoded.ids)} in the second; train on a copy "
            "that nobody writes to"
        )
    return vocabulary, encoded


def encode_corpus(
    corpus: Corpus, vocabulary: Vocabulary, *, tokenizer: Tokenizer = str.split
) -> EncodedCorpus:
    """Writes the numbers of a corpus's words to a temporary file and maps it.

    Args:
        corpus: as in :func:`read_corpus`.
        vocabulary: its words.
        tokenizer: as in :func:`read_corpus`.

    Returns:
        The documents, also those without any word of the vocabulary.

    Raises:
        ValueError: if the text is not UTF-8.
        TypeError: as in :func:`read_corpus`.

    >>> vocabulary = Vocabulary(("a", "b"), "whitespace", special=())
    >>> encoded = encode_corpus(["b a x b", "", "a"], vocabulary)
    >>> encoded.ids.tolist(), encoded.starts.tolist(), encoded.skipped
    ([1, 0, 1, 0], [0, 3, 3, 4], 1)
    """
    starts, total = [0], 0
    with tempfile.TemporaryFile() as file:  # mapped pages outlive the closed file
        for text, ends in _pieces(corpus):
            words = tokenizer(text)
            if isinstance(words, str):  # its letters would be the words
                raise TypeError(f"tokenizer must give words, got the string {words!r:.80}")
            found = vocabulary.ids_of(words)
            file.write(found.tobytes())
            total += len(found)
            if ends:
                starts.append(total)
        file.flush()
        ids = np.memmap(file, np.int32, "r", shape=(total,)) if total else np.zeros(0, np.int32)
    return EncodedCorpus(ids, np.array(starts, np.int64))


def _fingerprint(corpus: Corpus) -> tuple[int, ...] | None:
    """What shows that a file was changed; None for other corpora."""
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
    with open_bytes(path) as file:
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
        # A mark at the start, also of files that were joined, is no part of the first word.
        return line.decode().removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {offset + error.start} holds "
            f"{line[error.start : error.start + 1]!r} ({error.reason}); convert it to UTF-8"
        ) from error
