r"""Text to integers and back: words, characters or trained subwords, in one frozen type.

Two tokens come first in every vocabulary: ``<unk>`` for what it does not hold and ``<eos>``, the
end of a line. A line break in a text *is* the end token, in both directions, so a corpus is the
encoding of its lines with their breaks. A vocabulary is saved as JSON and named by a short digest
of its whole contents, which a checkpoint keeps: the same ids under another vocabulary are other
words.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from zoo.extras import require

UNKNOWN, END = "<unk>", "<eos>"
_UNKNOWN_ID, _END_ID = 0, 1
# A word keeps its inner apostrophes and hyphens; any other visible character is a token of its own.
_WORDS = re.compile(r"<unk>|<eos>|\w+(?:['’-]\w+)*|[^\w\s]")

Split = Literal["words", "whitespace", "characters", "subwords"]


def split_text(text: str, split: Split, lowercase: bool) -> Iterable[str]:
    """The tokens of a text, its line breaks among them, for every split but ``"subwords"``."""
    text = text.lower() if lowercase else text
    if split == "characters":
        return text
    if split == "whitespace":
        return text.replace("\n", f" {END} ").split()
    return _WORDS.findall(text.replace("\n", END))


class _IdsOrUnknown(dict[str, int]):
    """A table whose missing entries are the unknown token."""

    def __missing__(self, token: str) -> int:
        return _UNKNOWN_ID


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    r"""Tokens by id, and how a text is split into them.

    Made by :func:`zoo.data.build_word_vocabulary`, :func:`zoo.data.build_character_vocabulary` and
    :func:`zoo.data.train_subword_vocabulary`.

    Attributes:
        tokens: the token of every id; ``<unk>`` is 0 and ``<eos>`` is 1.
        split: ``"words"``, ``"whitespace"``, ``"characters"`` or ``"subwords"``.
        lowercase: whether a text is lowered first.
        model: the trained model of ``"subwords"`` as JSON, else empty.

    >>> vocabulary = Vocabulary(("<unk>", "<eos>", "be", "not", "or", "to"), "words")
    >>> vocabulary.encode("to see\nor not")
    array([5, 0, 1, 4, 3], dtype=int32)
    >>> vocabulary.decode([5, 2, 1, 4])
    'to be\nor'
    """

    tokens: tuple[str, ...]
    split: Split
    lowercase: bool = False
    model: str = ""

    def __post_init__(self) -> None:
        if self.tokens[:2] != (UNKNOWN, END):
            raise ValueError(f"tokens must begin with {UNKNOWN}, {END}; got {self.tokens[:2]}")
        if len(set(self.tokens)) != len(self.tokens):
            twice = [token for token, n in collections.Counter(self.tokens).items() if n > 1]
            raise ValueError(f"tokens must be distinct, got {twice[:5]} more than once")
        if self.split not in get_args(Split) or (self.split == "subwords") != bool(self.model):
            raise ValueError(
                f"split must be one of {get_args(Split)}, with a model for 'subwords' alone; got "
                f"{self.split!r} {'with' if self.model else 'without'} a model"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def unknown(self) -> int:
        """Id of what the vocabulary does not hold."""
        return _UNKNOWN_ID

    @property
    def end(self) -> int:
        """Id of the end of a line."""
        return _END_ID

    @functools.cached_property
    def digest(self) -> str:
        """Size and hash of all contents, such as ``"10000-1f0c35a6b2d4"``."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{len(self)}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        ids = _IdsOrUnknown({token: number for number, token in enumerate(self.tokens)})
        if self.split == "characters":
            ids["\n"] = _END_ID
        return ids

    @functools.cached_property
    def _model(self) -> Any:
        model = require("tokenizers", "data").Tokenizer.from_str(self.model)
        model.encode_special_tokens = True  # "<eos>" written in a text is four characters of text
        return model

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [T]: a line break becomes the end token, no other is added."""
        if self.split == "subwords":
            lines = self._model.encode_batch_fast(text.split("\n"))
            ids = [number for line in lines for number in (_END_ID, *line.ids)][1:]
            return np.array(ids, np.int32)
        tokens = split_text(text, self.split, self.lowercase)
        return np.fromiter(map(self._ids.__getitem__, tokens), np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids [T]: the end token becomes a line break, words are set apart by blanks.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        numbers = np.asarray(ids).ravel().tolist()
        lines: list[list[int]] = [[]]
        for number in numbers:
            if not 0 <= number < len(self):
                raise ValueError(f"ids must be in 0..{len(self) - 1}, got {number}")
            if number == _END_ID:
                lines.append([])
            else:
                lines[-1].append(number)
        if self.split == "subwords":
            return "\n".join(self._model.decode(line, skip_special_tokens=False) for line in lines)
        blank = "" if self.split == "characters" else " "
        return "\n".join(blank.join(self.tokens[number] for number in line) for line in lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as JSON, whole or not at all."""
        path = pathlib.Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(dataclasses.asdict(self), ensure_ascii=False), "utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: the file is not a vocabulary.
            OSError: the file is missing or cannot be read.
        """
        text = pathlib.Path(path).read_text("utf-8")
        try:
            content = json.loads(text)
            return cls(**content | {"tokens": tuple(content["tokens"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a vocabulary written by Vocabulary.save ({error}); build it again"
            ) from error


def check_vocabulary(expected_digest: str, vocabulary: Vocabulary) -> None:
    """Refuses a vocabulary other than the one that a checkpoint was trained with.

    Args:
        expected_digest: ``digest`` of the vocabulary of the checkpoint.
        vocabulary: the one at hand.

    Raises:
        ValueError: they differ; the message has both sizes and hashes.
    """
    if vocabulary.digest != expected_digest:
        size, _, code = expected_digest.partition("-")
        own_size, _, own_code = vocabulary.digest.partition("-")
        raise ValueError(
            f"vocabulary mismatch: the checkpoint was trained with {size} tokens (hash {code}), "
            f"got {own_size} tokens (hash {own_code}), whose ids mean other tokens; load the "
            "vocabulary that was saved with the checkpoint, or start in a new folder"
        )
