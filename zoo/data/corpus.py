"""Vocabularies of a corpus, and the corpus as one stream of ids."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from zoo.data.vocabulary import END, UNKNOWN, Vocabulary, split_text
from zoo.extras import require

Texts = Iterable[str | Mapping[str, Any]]  # strings, or examples with a field "text"

_LINES_AT_ONCE = 4096
_BYTES = 256  # the alphabet of byte-level subwords


def build_word_vocabulary(
    lines: Texts,
    *,
    max_size: int | None = None,
    min_count: int = 1,
    lowercase: bool = False,
    split: Literal["words", "whitespace"] = "words",
) -> Vocabulary:
    """The words of a text, the most frequent first, equally frequent ones in alphabetical order.

    Args:
        lines: strings, or the examples of a source with a field ``"text"``.
        max_size: largest number of tokens, ``<unk>`` and ``<eos>`` included; None: no limit.
        min_count: rarer words are left out.
        lowercase: whether texts are lowered first.
        split: ``"words"`` takes words with their inner apostrophes and hyphens, and every other
            visible character alone; ``"whitespace"`` takes what stands between blanks, as in text
            that is tokenised already. In both, ``<unk>`` in a text is the unknown token.

    Returns:
        The vocabulary.

    Raises:
        ValueError: there are no words, or an option is out of its range.

    >>> build_word_vocabulary(["Don't stop!"], lowercase=True).tokens[2:]
    ('!', "don't", 'stop')
    """
    if split not in ("words", "whitespace"):
        raise ValueError(f"split must be 'words' or 'whitespace', got {split!r}")
    if max_size is not None and max_size < 3:
        raise ValueError(f"max_size must be at least 3 (<unk>, <eos> and a word), got {max_size}")
    counts: collections.Counter[str] = collections.Counter()
    for text in _texts(lines):
        counts.update(split_text(text, split, lowercase))
    words = [word for word in counts if counts[word] >= min_count and word not in (UNKNOWN, END)]
    if not words:
        raise ValueError(
            f"lines hold no word that occurs at least min_count={min_count} times; "
            "is the text empty?"
        )
    words.sort(key=lambda word: (-counts[word], word))
    room = None if max_size is None else max_size - 2
    return Vocabulary((UNKNOWN, END, *words[:room]), split, lowercase)


def build_character_vocabulary(lines: Texts) -> Vocabulary:
    r"""The characters of a text in the order of their code points.

    Args:
        lines: strings, or the examples of a source with a field ``"text"``.

    Returns:
        The vocabulary; the end token is the line break.

    Raises:
        ValueError: there are no characters.

    >>> build_character_vocabulary(["abba"]).encode("ab\ncab")
    array([2, 3, 1, 0, 2, 3], dtype=int32)
    """
    characters = set().union(*_texts(lines)) - {"\n"}
    if not characters:
        raise ValueError("lines hold no character; is the text empty?")
    return Vocabulary((UNKNOWN, END, *sorted(characters)), "characters")


def train_subword_vocabulary(lines: Texts, *, size: int) -> Vocabulary:
    """Byte-level byte-pair encoding, trained on a text: no character is ever unknown.

    Needs the extra ``data`` (tokenizers).

    Args:
        lines: strings, or the examples of a source with a field ``"text"``.
        size: number of tokens, the 256 bytes, ``<unk>`` and ``<eos>`` included; a short text, which
            has fewer pairs to merge, gives fewer.

    Returns:
        The vocabulary.

    Raises:
        ValueError: the size is less than 258, or there is no text.

    >>> vocabulary = train_subword_vocabulary(["low lower lowest"] * 9, size=260)
    >>> vocabulary.decode(vocabulary.encode("slowly ☃"))
    'slowly ☃'
    """
    if size < _BYTES + 2:
        raise ValueError(f"size must be at least {_BYTES + 2} (bytes, <unk>, <eos>), got {size}")
    tokenizers = require("tokenizers", "data")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = byte_level(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[UNKNOWN, END],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    texts = [line for text in _texts(lines) for line in text.split("\n")]
    if not any(texts):
        raise ValueError("lines hold no character to train subwords on; is the text empty?")
    model.train_from_iterator(texts, trainer)
    tokens = tuple(model.id_to_token(number) for number in range(model.get_vocab_size()))
    return Vocabulary(tokens, "subwords", model=model.to_str())


def encode_lines(source_or_lines: Texts, vocabulary: Vocabulary) -> np.ndarray:
    """A corpus as one stream of ids, with the end token after every line.

    Args:
        source_or_lines: strings, or the examples of a source with a field ``"text"``.
        vocabulary: V tokens.

    Returns:
        int32 [N].

    Raises:
        ValueError: there are no lines.

    >>> encode_lines(["a b", "", "b"], build_word_vocabulary(["a b"]))
    array([2, 3, 1, 1, 3, 1], dtype=int32)
    """
    pieces = [vocabulary.encode(text) for text in _texts(source_or_lines)]
    if not pieces:
        raise ValueError("source_or_lines is empty: there is no line to encode")
    return np.concatenate(pieces)


def _texts(lines: Texts) -> Iterator[str]:
    """Texts with their breaks, many at once: a piece is split and looked up in one sweep."""
    if isinstance(lines, str):
        raise TypeError("expected lines, got one string; use text.splitlines() or [text]")
    strings = (line if isinstance(line, str) else _text_of(line) for line in lines)
    while piece := list(itertools.islice(strings, _LINES_AT_ONCE)):
        yield "\n".join(piece) + "\n"


def _text_of(example: Mapping[str, Any]) -> str:
    if not isinstance(example, Mapping) or not isinstance(example.get("text"), str):
        fields = sorted(example) if isinstance(example, Mapping) else type(example).__name__
        raise TypeError(
            f"expected strings or examples with a string field 'text', got {fields}; "
            "pass for instance (example['review'] for example in source)"
        )
    return example["text"]
