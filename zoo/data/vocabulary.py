r"""Text to integers and back: one frozen type over words, characters and trained subwords.

Special tokens have the first ids. ``<eos>``, where a vocabulary has it, is the end of a line: a
line break in a text *is* that token, in both directions, so the ids of a corpus are those of its
lines with their breaks. A vocabulary is saved as JSON and named by a short digest of its contents,
which is to be kept with a checkpoint: in another vocabulary the same ids mean other tokens.

The library ``tokenizers`` (extra ``data``) runs ``"subwords"``, ``"wordpiece"`` and
``"bert_characters"``. Words and characters are looked up in a dictionary instead, which is three to
five times as fast (the 40,000 lines of the plays: 0.13 s against 0.6 s).
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from zoo import _checks
from zoo._files import replace_file
from zoo.extras import require

UNKNOWN, END = "<unk>", "<eos>"
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Split = Literal["words", "whitespace", "characters", "subwords", "wordpiece", "bert_characters"]
Splitter = Callable[[str], Iterable[str]]  # text -> tokens

# The splits of the library tokenizers, by its name of their model.
MODELS: dict[str, Split] = {
    "BPE": "subwords",
    "WordPiece": "wordpiece",
    "WordLevel": "bert_characters",
}
_BYTE_ORDER_MARK = "\ufeff"


# A word keeps its inner apostrophes and hyphens; any other visible character is a token of its own.
_WORDS = re.compile(r"<unk>|<eos>|\w+(?:['’-]\w+)*|[^\w\s]")


@functools.cache
def _words_with_marks() -> re.Pattern[str]:
    """``_WORDS`` for more than ASCII: marks and joiners belong to the character before them.

    As in UAX 29, Unicode's segmentation of texts; the module re does not know marks, the vowel
    signs and accents that are no letters.
    """
    blocks = (range(0x300, 0x1F000), range(0xE0100, 0xE01F0))  # where there are marks
    marks = [c for c in map(chr, itertools.chain(*blocks)) if unicodedata.category(c)[0] == "M"]
    extending = "".join(c for c in (*marks, "\u200c", "\u200d") if not c.isalnum())
    extend = rf"(?![\0-\u02ff])[{extending}]+"  # what stands first is the fast check
    word = rf"\w+(?:{extend}\w*)*"
    return re.compile(rf"<unk>|<eos>|{word}(?:['’-]{word})*|[^\w\s](?:{extend})?")


def split_text(
    text: str, split: Split | Splitter, *, lowercase: bool, breaks: bool
) -> Iterable[str]:
    """The tokens of a text, by a split that has no model; ``breaks``: line breaks are ``<eos>``.

    Letters and their accents are joined to one character (NFC), however the text writes them.
    """
    text = text.lower() if lowercase else text
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.replace(_BYTE_ORDER_MARK, ""))
    if callable(split):
        return split(text)
    if split == "characters":
        return text
    text = text.replace("\n", f" {END} ") if breaks else text
    return (
        text.split()
        if split == "whitespace"
        else (_WORDS if text.isascii() else _words_with_marks()).findall(text)
    )


class _IdsOrUnknown(dict[str, int]):
    """A table whose missing entries are the unknown token; faster than ``get`` with a default."""

    unknown: Any

    def __missing__(self, token: str) -> int:
        return self.unknown


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    r"""V tokens by id, and how a text is split into them. Made by :func:`build_vocabulary`.

    Attributes:
        tokens: the token of every id.
        split: name of the split, see :func:`build_vocabulary`, or a function text -> tokens.
        lowercase: whether a text is lowered first.
        model: the tokenizer of the library ``tokenizers`` as JSON (the text of a
            ``tokenizer.json``) for the splits that have one, else empty.
        special: tokens that are no part of the text, such as ``<unk>``. Without an unknown token,
            encoding leaves out what the vocabulary does not hold.
        counts: int64 [V], occurrences in the text that it was built from, 0 for special tokens; or
            None. They decide no id: they are neither saved, nor compared, nor part of the digest.

    >>> vocabulary = Vocabulary(("<unk>", "<eos>", "be", "not", "or", "to"), "words")
    >>> vocabulary.encode("to see\nor not")
    array([5, 0, 1, 4, 3], dtype=int32)
    >>> vocabulary.decode([5, 2, 1, 4])
    'to be\nor'
    """

    tokens: tuple[str, ...]
    split: Split | Splitter
    lowercase: bool = False
    model: str = ""
    special: tuple[str, ...] = (UNKNOWN, END)
    counts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.split):
            _checks.choice("split", self.split, get_args(Split))
        for name in ("tokens", "special"):
            if any(not isinstance(token, str) for token in getattr(self, name)):
                raise TypeError(f"{name} must be strings, got {getattr(self, name)!r:.80}")
        if (self.split in MODELS.values()) != bool(self.model):
            raise ValueError(
                f"model must be given for {', '.join(MODELS.values())} and for no other split, got "
                f"split={self.split!r} {'with' if self.model else 'without'} a model"
            )
        if len(self.ids) != len(self.tokens):
            twice = [token for token, n in collections.Counter(self.tokens).items() if n > 1]
            raise ValueError(f"tokens must be distinct, got {twice[:5]} more than once")
        if missing := [token for token in self.special if token not in self.ids]:
            raise ValueError(f"tokens must hold the special tokens, {missing} are missing")
        if self.counts is not None:
            _checks.shapes(counts=(self.counts, str(len(self))))

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of every token."""
        return {token: number for number, token in enumerate(self.tokens)}

    @functools.cached_property
    def unknown(self) -> int | None:
        """Id of what the vocabulary does not hold: ``<unk>`` or ``[UNK]``; None without one."""
        return self._first_special(UNKNOWN, "[UNK]")

    @functools.cached_property
    def end(self) -> int | None:
        """Id of the end of a line or text: ``<eos>`` or ``[SEP]``; None without one."""
        return self._first_special(END, "[SEP]")

    @functools.cached_property
    def breaks(self) -> bool:
        """Whether a line break is a token, ``<eos>``."""
        return END in self.special

    @functools.cached_property
    def digest(self) -> str:
        """Size and hash of the contents, such as ``"10000-1f0c35a6b2d4"``."""
        content = json.dumps(self._contents(), sort_keys=True)
        return f"{len(self)}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def id_of(self, token: str) -> int:
        """The id of one token, or that of the unknown token; a KeyError if there is neither."""
        return self.ids[token] if self.unknown is None else self.ids.get(token, self.unknown)

    def ids_of(self, tokens: Iterable[str]) -> np.ndarray:
        """The ids of tokens, int32 [T]; without an unknown token, fewer than there are tokens."""
        if self.unknown is None:
            ids = self.ids
            return np.array([ids[token] for token in tokens if token in ids], np.int32)
        return np.fromiter(map(self._table.__getitem__, tokens), np.int32)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [T]: a line break becomes ``<eos>``, nothing else is added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The ids of each text; a model encodes them on all cores."""
        if not self.model:
            options = {"lowercase": self.lowercase, "breaks": self.breaks}
            return [self.ids_of(split_text(text, self.split, **options)) for text in texts]
        texts = (text.lower() if self.lowercase else text for text in texts)
        lines = [text.split("\n") if self.breaks else [text] for text in texts]
        encoded = iter(
            self._tokenizer.encode_batch_fast(
                list(itertools.chain.from_iterable(lines)), add_special_tokens=False
            )
        )
        joined = ([n for _ in own for n in (self.end, *next(encoded).ids)] for own in lines)
        return [np.array(ids[1:], np.int32) for ids in joined]

    def encode_with_word_starts(
        self, texts: Iterable[str]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The ids of each text, and bool [T]: where a word begins, for whole-word masking.

        Only ``"wordpiece"`` has words of several tokens; under another split each token is one.
        """
        if self.split != "wordpiece":
            ids = self.encode_batch(texts)
            return ids, [np.ones(len(one), bool) for one in ids]
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        starts = [np.diff(np.array(one.word_ids, np.int64), prepend=-1) != 0 for one in encoded]
        return [np.array(one.ids, np.int32) for one in encoded], starts

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids [T]: ``<eos>`` becomes a line break, words are set apart by blanks.

        BERT's special tokens are left out.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        numbers = np.asarray(ids).ravel().tolist()
        if outside := [n for n in numbers if not 0 <= n < len(self)]:
            raise ValueError(f"ids must be in 0..{len(self) - 1}, got {outside[0]}")
        lines: list[list[int]] = [[]]
        for number in numbers:
            if self.breaks and number == self.end:
                lines.append([])
            else:
                lines[-1].append(number)
        if self.model:
            decode = functools.partial(self._tokenizer.decode, skip_special_tokens=not self.breaks)
            return "\n".join(map(decode, lines))
        blank = "" if self.split == "characters" else " "
        return "\n".join(blank.join(self.tokens[number] for number in line) for line in lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, completely or not at all; a TypeError if the split is a function."""
        replace_file(path, json.dumps(self._contents(), ensure_ascii=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what :meth:`save` wrote, or a ``tokenizer.json`` of the library ``tokenizers``.

        Raises:
            ValueError: the file is neither.
            OSError: the file is missing or cannot be read.
        """
        data = pathlib.Path(path).read_bytes()
        try:
            text = data.decode()
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError("it holds no JSON object")
            if "added_tokens" in content:
                return cls.of_model(text)
            for name in ("tokens", "special") & content.keys():
                if not isinstance(content[name], list):
                    raise ValueError(f"{name} is no list")
                content[name] = tuple(content[name])
            vocabulary = cls(**content)
            if vocabulary.model and cls.of_model(vocabulary.model).tokens != vocabulary.tokens:
                raise ValueError("its tokens are not those of its model")
            return vocabulary
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a vocabulary written by Vocabulary.save nor a tokenizer.json of "
                f"the library tokenizers ({error}); copy it again, or build it again"
            ) from error

    @classmethod
    def of_model(cls, text: str) -> "Vocabulary":
        """The vocabulary of the text of a ``tokenizer.json``; a ValueError if it is none."""
        model = _tokenizer_of(text)
        content = json.loads(text)
        kind = content["model"].get("type")
        _checks.choice("the model's type", kind, tuple(MODELS))
        tokens = tuple(model.id_to_token(number) for number in range(model.get_vocab_size()))
        if None in tokens:
            raise ValueError(f"no token has the id {tokens.index(None)}: ids must be 0..V-1")
        unknown, known = content["model"].get("unk_token"), content["model"]["vocab"]
        if unknown is not None and unknown not in known:  # the library notices when it needs it
            raise ValueError(f"its model has no unknown token {unknown!r}")
        special = tuple(token["content"] for token in content["added_tokens"] if token["special"])
        return cls(tokens, MODELS[kind], model=text, special=special)

    def _contents(self) -> dict[str, Any]:
        if callable(self.split):
            raise TypeError(f"a split by a function cannot be saved or hashed, got {self.split}")
        names = ["tokens", "split", "lowercase", "model"]
        # Files and digests were made without special tokens before others could be chosen.
        names += [] if self.special == (UNKNOWN, END) else ["special"]
        return {name: getattr(self, name) for name in names}

    def _first_special(self, *names: str) -> int | None:
        return next((self.ids[name] for name in names if name in self.special), None)

    @functools.cached_property
    def _table(self) -> dict[str, int]:
        table = _IdsOrUnknown(self.ids)
        table.unknown = self.unknown
        if self.breaks:
            table["\n"] = self.ids[END]
        return table

    @functools.cached_property
    def _tokenizer(self) -> Any:
        model = _tokenizer_of(self.model)
        model.encode_special_tokens = True  # "[MASK]" written in a text is six characters of text
        return model


def _tokenizer_of(text: str) -> Any:
    """The tokenizer of a ``tokenizer.json``; a ValueError if it is none."""
    tokenizers = require("tokenizers", "data")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"it is no model of the library tokenizers: {error}") from error


def check_vocabulary(expected_digest: str, vocabulary: Vocabulary) -> None:
    """A ValueError unless the vocabulary is the one that a checkpoint was trained with.

    Args:
        expected_digest: ``digest`` of the vocabulary of the checkpoint.
        vocabulary: the one at hand.
    """
    if vocabulary.digest != expected_digest:
        size, _, code = expected_digest.partition("-")
        own_size, _, own_code = vocabulary.digest.partition("-")
        raise ValueError(
            f"vocabulary mismatch: the checkpoint was trained with {size} tokens (hash {code}), "
            f"got {own_size} tokens (hash {own_code}), whose ids mean other tokens; load the "
            "vocabulary that was saved with the checkpoint, or start in a new folder"
        )
