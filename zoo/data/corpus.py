"""The vocabulary of a corpus, and the corpus as one stream of ids."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

import numpy as np

from zoo import _checks
from zoo.data.vocabulary import (
    BERT_SPECIAL,
    END,
    UNKNOWN,
    Split,
    Splitter,
    Vocabulary,
    split_text,
)
from zoo.extras import require

Texts = Iterable[str | Mapping[str, Any]]  # strings, or examples with a field "text"

_LINES_AT_ONCE = 4096
_BYTES = 256  # the alphabet of byte-level subwords


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
      alone; ``"whitespace"``: what is between blanks, as in text that is tokenised already; or a
      function text -> tokens. The most frequent come first, equally frequent ones in alphabetical
      order. ``<unk>`` in a text is the unknown token. A letter's marks belong to it, and how a
      text writes it makes no difference: all splits but ``"subwords"``, which keeps every byte,
      compose it first (NFC).
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

    texts = _texts(lines)
    if split in ("subwords", "wordpiece"):
        return _train(texts, split == "wordpiece", max_size, min_count, lowercase, special)
    if split == "bert_characters":
        tokens_of: Splitter = _normalizer(lowercase).normalize_str
    else:
        breaks = END in special
        tokens_of = functools.partial(split_text, split=split, lowercase=lowercase, breaks=breaks)
    counts = collections.Counter(itertools.chain.from_iterable(map(tokens_of, texts)))
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
    if split in ("characters", "bert_characters"):
        chosen.sort()
    tokens = (*special, *chosen)
    if split == "bert_characters":
        characters = Vocabulary(tokens, "characters", special=special)
        return _bert_characters(characters, _normalizer(lowercase))
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
        if vocabulary.breaks:  # many lines are split and looked up in one sweep
            pieces.append(vocabulary.encode("\n".join(chunk) + "\n"))
        else:
            pieces += vocabulary.encode_batch(chunk)
    ids = np.concatenate(pieces)
    if not len(ids):
        raise ValueError("lines are empty: there is nothing to encode")
    return ids


def _train(
    texts: Iterator[str],
    wordpiece: bool,
    max_size: int | None,
    min_count: int,
    lowercase: bool,
    special: tuple[str, ...],
) -> Vocabulary:
    """Subwords, trained by the library ``tokenizers``."""
    tokenizers = require("tokenizers", "data")
    pieces = (line for text in texts for line in text.split("\n") if line)
    if (first := next(pieces, None)) is None:
        raise ValueError("lines hold no character to train subwords on; is the text empty?")
    lines = itertools.chain([first], pieces)
    options = {
        "vocab_size": max_size,
        "min_frequency": min_count,
        "special_tokens": list(special),
        "show_progress": False,
    }
    if wordpiece:
        model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        model.normalizer = _normalizer(lowercase)
        model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        model.decoder = tokenizers.decoders.WordPiece()
        model.train_from_iterator(lines, tokenizers.trainers.WordPieceTrainer(**options))
        return Vocabulary.of_model(model.to_str())
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = byte_level(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=byte_level.alphabet(), **options)
    model.train_from_iterator((line.lower() for line in lines) if lowercase else lines, trainer)
    return dataclasses.replace(Vocabulary.of_model(model.to_str()), lowercase=lowercase)


def _bert_characters(characters: Vocabulary, normalizer: Any) -> Vocabulary:
    tokenizers = require("tokenizers", "data")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(characters.ids, "[UNK]"))
    model.normalizer = normalizer
    every = tokenizers.Regex(r"[\s\S]")
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split(every, behavior="isolated")
    model.decoder = tokenizers.decoders.Fuse()
    model.add_special_tokens(list(characters.special))
    return Vocabulary.of_model(model.to_str())


def _normalizer(lowercase: bool) -> Any:
    """BERT's, which takes accents away with capitals; where they stay, it composes them first."""
    normalizers = require("tokenizers", "data").normalizers
    bert = normalizers.BertNormalizer(lowercase=lowercase)
    return bert if lowercase else normalizers.Sequence([normalizers.NFC(), bert])


def _texts(lines: Texts) -> Iterator[str]:
    if isinstance(lines, str):
        raise TypeError("expected lines, got one string; use text.splitlines() or [text]")
    for line in lines:
        text: Any = line
        if not isinstance(line, str):
            text = line.get("text") if isinstance(line, Mapping) else None
        if not isinstance(text, str):
            found = sorted(line) if isinstance(line, Mapping) else type(line).__name__
            raise TypeError(
                f"expected strings or examples with a string field 'text', got {found}; "
                "pass for instance (example['review'] for example in source)"
            )
        yield text
