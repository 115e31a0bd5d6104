"""The builders by their former names, for callers that have not moved yet."""

from zoo.data.vocabulary import Texts, Vocabulary, build_vocabulary, encode_lines

__all__ = ["encode_lines"]
build_word_vocabulary = build_vocabulary


def build_character_vocabulary(lines: Texts) -> Vocabulary:
    """As ``build_vocabulary(lines, split="characters")``."""
    return build_vocabulary(lines, split="characters")


def train_subword_vocabulary(lines: Texts, *, size: int) -> Vocabulary:
    """As ``build_vocabulary(lines, split="subwords", max_size=size)``."""
    return build_vocabulary(lines, split="subwords", max_size=size)
