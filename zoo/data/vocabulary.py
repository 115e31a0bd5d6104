r"""Text to integers and back: one frozen type over words, characters and trained subwords.

Special tokens have the first ids. ``<eos>``, where a vocabulary has it, is the end of a line: a
line break in a text *is* that token, in both directions, so the ids of a corpus are those of its
lines with their breaks. A vocabulary is saved as JSON and named by a short digest of its contents,
which belongs beside a checkpoint: under another vocabulary the same ids mean other tokens.

The library ``tokenizers`` (extra ``data``) trains and runs ``"subwords"``, ``"wordpiece"`` and
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
from collections.abc import Callable, Iterable, Iterator, Mapping
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
Texts = Iterable[str | Mapping[str, Any]]  # strings, or examples with a field "text"

# A word keeps its inner apostrophes and hyphens; any other visible character is a token of its own.
_WORDS = re.compile(r"<unk>|<eos>|\w+(?:['’-]\w+)*|[^\w\s]")
# The splits that the library tokenizers makes, by its name of their model.
_MODELS: dict[str, Split] = {
    "BPE": "subwords",
    "WordPiece": "wordpiece",
    "WordLevel": "bert_characters",
}
_LINES_AT_ONCE = 4096
_BYTES = 256  # the alphabet of byte-level subwords


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
        if (self.split in _MODELS.values()) != bool(self.model):
            raise ValueError(
                f"split={self.split!r} {'with' if self.model else 'without'} a model: give one for "
                f"{', '.join(_MODELS.values())} and for no other split"
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
    def digest(self) -> str:
        """Size and hash of the contents, such as ``"10000-1f0c35a6b2d4"``."""
        content = json.dumps(self._contents(), sort_keys=True)
        return f"{len(self)}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def id_of(self, token: str) -> int:
        """The id of one token, or that of the unknown token.

        Raises:
            KeyError: the vocabulary has neither.
        """
        return self.ids[token] if self.unknown is None else self.ids.get(token, self.unknown)

    def ids_of(self, tokens: Iterable[str]) -> np.ndarray:
        """The ids of tokens, int32 [T]; without an unknown token, fewer than there are tokens."""
        if self.unknown is None:
            ids = self.ids
            return np.array([ids[token] for token in tokens if token in ids], np.int32)
        numbers = map(self._table.get, tokens, itertools.repeat(self.unknown))
        return np.fromiter(numbers, np.int32)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [T]: a line break becomes ``<eos>``, nothing else is added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The ids of each text; a model encodes them on all cores."""
        if not self.model:
            return [self.ids_of(self._split(text)) for text in texts]
        texts = [text.lower() if self.lowercase else text for text in texts]
        if not self._breaks:
            return [np.array(one.ids, np.int32) for one in self._encodings(texts)]
        parts = [text.split("\n") for text in texts]
        encoded = iter(self._encodings(list(itertools.chain.from_iterable(parts))))
        joined = ([n for _ in own for n in (self.end, *next(encoded).ids)] for own in parts)
        return [np.array(numbers[1:], np.int32) for numbers in joined]

    def encode_with_word_starts(
        self, texts: Iterable[str]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The ids of each text, and bool [T]: where a word begins, for masking of whole words.

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
        if not self._breaks:
            return self._decode_line(numbers)
        lines: list[list[int]] = [[]]
        for number in numbers:
            if number == self.end:
                lines.append([])
            else:
                lines[-1].append(number)
        return "\n".join(map(self._decode_line, lines))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as JSON, completely or not at all.

        Raises:
            TypeError: the split is a function, which no file can hold.
        """
        replace_file(path, json.dumps(self._contents(), ensure_ascii=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what :meth:`save` wrote, or a ``tokenizer.json`` of the library ``tokenizers``.

        Raises:
            ValueError: the file is neither.
            OSError: the file is missing or cannot be read.
        """
        text = pathlib.Path(path).read_text("utf-8")
        try:
            content = json.loads(text)
            if "added_tokens" in content:
                return _of_model(text)
            lists = {name: tuple(content[name]) for name in ("tokens", "special") & content.keys()}
            return cls(**content | lists)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a vocabulary written by Vocabulary.save ({error}); build it again"
            ) from error

    def _contents(self) -> dict[str, Any]:
        if callable(self.split):
            raise TypeError(f"a split by a function cannot be saved or hashed, got {self.split}")
        names = ["tokens", "split", "lowercase", "model"]
        # As files and digests had it before special tokens could be chosen.
        names += [] if self.special == (UNKNOWN, END) else ["special"]
        return {name: getattr(self, name) for name in names}

    def _first_special(self, *names: str) -> int | None:
        return next((self.ids[name] for name in names if name in self.special), None)

    @functools.cached_property
    def _breaks(self) -> bool:
        """Whether a line break is a token."""
        return END in self.special

    @functools.cached_property
    def _table(self) -> dict[str, int]:
        return self.ids | ({"\n": self.ids[END]} if self._breaks else {})

    @functools.cached_property
    def _split(self) -> Splitter:
        return _splitter(self.split, self.lowercase, self._breaks)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        model = require("tokenizers", "data").Tokenizer.from_str(self.model)
        model.encode_special_tokens = True  # "[MASK]" written in a text is six characters of text
        return model

    def _encodings(self, texts: list[str]) -> list[Any]:
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    def _decode_line(self, ids: list[int]) -> str:
        if self.model:
            return self._tokenizer.decode(ids, skip_special_tokens=not self._breaks)
        blank = "" if self.split == "characters" else " "
        return blank.join(self.tokens[number] for number in ids)


def build_vocabulary(
    lines: Texts,
    *,
    split: Split | Splitter = "words",
    max_size: int | None = None,
    min_count: int = 1,
    lowercase: bool = False,
    special: tuple[str, ...] | None = None,
) -> Vocabulary:
    """The vocabulary of a text.

    - ``"words"``: words with their inner apostrophes and hyphens, and every other visible character
      alone; ``"whitespace"``: what stands between blanks, as in text that is tokenised already; or
      a function text -> tokens. The most frequent come first, equally frequent ones in alphabetical
      order. ``<unk>`` in a text is the unknown token.
    - ``"characters"``: in the order of their code points.
    - ``"subwords"``: byte-level byte-pair encoding (Sennrich et al. 2016): nothing is unknown.
    - ``"wordpiece"``: BERT's subwords, after BERT's normalisation (no control characters; with
      ``lowercase`` no accents either); ``"bert_characters"``: single characters after the same.

    Args:
        lines: strings, or the examples of a source with a field ``"text"``.
        split: how a text becomes tokens.
        max_size: largest number of tokens, the special ones included; None: no limit, which the
            trained splits (``"subwords"``, ``"wordpiece"``) refuse.
        min_count: rarer tokens are left out, rarer pairs not merged.
        lowercase: whether texts are lowered first.
        special: tokens that get the first ids. None: BERT's five for BERT's splits, which need
            ``[UNK]``, else ``<unk>`` and ``<eos>``. Without an unknown token, ``()``, what the
            vocabulary does not hold is left out of a text.

    Returns:
        The vocabulary; it has ``counts`` if no model was trained.

    Raises:
        ValueError: there is no text, or an option is out of its range.

    >>> build_vocabulary(["Don't stop!"], lowercase=True).tokens
    ('<unk>', '<eos>', '!', "don't", 'stop')
    >>> build_vocabulary(["b a b"], split="whitespace", special=()).counts
    array([2, 1])
    >>> subwords = build_vocabulary(["low lower lowest"] * 9, split="subwords", max_size=260)
    >>> subwords.decode(subwords.encode("slowly ☃"))
    'slowly ☃'
    """
    if not callable(split):
        _checks.choice("split", split, get_args(Split))
    bert = split in ("wordpiece", "bert_characters")
    special = special if special is not None else BERT_SPECIAL if bert else (UNKNOWN, END)
    if bert and "[UNK]" not in special:
        raise ValueError(f"special must hold '[UNK]' for split={split!r}, got {special}")
    _checks.count("min_count", min_count, at_least=1)
    smallest = len(special) + (_BYTES if split == "subwords" else 1)
    if max_size is not None or split in ("subwords", "wordpiece"):
        _checks.count("max_size", max_size, at_least=smallest)
    if split in _MODELS.values():
        return _train(lines, split, max_size, min_count, lowercase, special)
    tokens_of = _splitter(split, lowercase, END in special)
    counts = collections.Counter(itertools.chain.from_iterable(map(tokens_of, _texts(lines))))
    for token in (*special, "\n"):
        counts.pop(token, None)
    chosen = [token for token in counts if counts[token] >= min_count]
    if not chosen:
        raise ValueError(
            f"lines hold no token that occurs at least min_count={min_count} times; "
            "is the text empty?"
        )
    chosen.sort(key=lambda token: (-counts[token], token))
    chosen = chosen[: None if max_size is None else max_size - len(special)]
    if split == "characters":
        chosen.sort()
    tokens = (*special, *chosen)
    frequencies = np.array([counts[token] for token in tokens], np.int64)
    return Vocabulary(tokens, split, lowercase, special=special, counts=frequencies)


def encode_lines(lines: Texts, vocabulary: Vocabulary) -> np.ndarray:
    """A corpus as one stream of ids, with ``<eos>`` after every line if the vocabulary has it.

    Args:
        lines: strings, or the examples of a source with a field ``"text"``.
        vocabulary: V tokens.

    Returns:
        int32 [N].

    Raises:
        ValueError: there is nothing to encode.

    >>> encode_lines(["a b", "", "b"], build_vocabulary(["a b"]))
    array([2, 3, 1, 1, 3, 1], dtype=int32)
    """
    texts, pieces = _texts(lines), [np.zeros(0, np.int32)]
    while chunk := list(itertools.islice(texts, _LINES_AT_ONCE)):
        if vocabulary._breaks:  # many lines are split and looked up in one sweep
            pieces.append(vocabulary.encode("\n".join(chunk) + "\n"))
        else:
            pieces += vocabulary.encode_batch(chunk)
    ids = np.concatenate(pieces)
    if not len(ids):
        raise ValueError("lines are empty: there is nothing to encode")
    return ids


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


def _splitter(split: Split | Splitter, lowercase: bool, breaks: bool) -> Splitter:
    """The function text -> tokens of a split without a model; it can go to worker processes."""
    return functools.partial(_split_text, split=split, lowercase=lowercase, breaks=breaks)


def _split_text(
    text: str, *, split: Split | Splitter, lowercase: bool, breaks: bool
) -> Iterable[str]:
    text = text.lower() if lowercase else text
    if callable(split):
        return split(text)
    if split == "characters":
        return text
    text = text.replace("\n", f" {END} ") if breaks else text
    return text.split() if split == "whitespace" else _WORDS.findall(text)


def _train(
    lines: Texts,
    split: Split | Splitter,
    max_size: int | None,
    min_count: int,
    lowercase: bool,
    special: tuple[str, ...],
) -> Vocabulary:
    """A vocabulary whose tokenizer is made by the library ``tokenizers``."""
    tokenizers = require("tokenizers", "data")
    pieces = (line for text in _texts(lines) for line in text.split("\n"))
    texts = (line.lower() if lowercase and split == "subwords" else line for line in pieces if line)
    if (first := next(texts, None)) is None:
        raise ValueError("lines hold no character to build tokens from; is the text empty?")
    sentences = itertools.chain([first], texts)
    options = {
        "vocab_size": max_size,
        "min_frequency": min_count,
        "special_tokens": list(special),
        "show_progress": False,
    }
    if split == "subwords":
        byte_level = tokenizers.pre_tokenizers.ByteLevel
        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = byte_level(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=byte_level.alphabet(), **options)
        model.train_from_iterator(sentences, trainer)
        return dataclasses.replace(_of_model(model.to_str()), lowercase=lowercase)
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    if split == "wordpiece":
        model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        model.decoder = tokenizers.decoders.WordPiece()
        model.normalizer = normalizer
        model.train_from_iterator(sentences, tokenizers.trainers.WordPieceTrainer(**options))
    else:
        normal = map(normalizer.normalize_str, sentences)
        characters = build_vocabulary(
            normal, split="characters", max_size=max_size, min_count=min_count, special=special
        )
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel(characters.ids, "[UNK]"))
        every = tokenizers.Regex(r"[\s\S]")
        model.pre_tokenizer = tokenizers.pre_tokenizers.Split(every, behavior="isolated")
        model.decoder = tokenizers.decoders.Fuse()
        model.normalizer = normalizer
        model.add_special_tokens(list(special))
    return _of_model(model.to_str())


def _of_model(text: str) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json``."""
    content = json.loads(text)
    model = require("tokenizers", "data").Tokenizer.from_str(text)
    tokens = tuple(model.id_to_token(number) for number in range(model.get_vocab_size()))
    special = tuple(token["content"] for token in content["added_tokens"] if token["special"])
    return Vocabulary(tokens, _MODELS[content["model"]["type"]], model=text, special=special)


def _texts(lines: Texts) -> Iterator[str]:
    if isinstance(lines, str):
        raise TypeError("expected lines, got one string; use text.splitlines() or [text]")
    for line in lines:
        if isinstance(line, str):
            yield line
        elif isinstance(line, Mapping) and isinstance(line.get("text"), str):
            yield line["text"]
        else:
            fields = sorted(line) if isinstance(line, Mapping) else type(line).__name__
            raise TypeError(
                f"expected strings or examples with a string field 'text', got {fields}; "
                "pass for instance (example['review'] for example in source)"
            )
