"""How good captions are: BLEU against several references, and what would be cheap to reach."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.extras import require

Words = Sequence[str]
ORDERS = (1, 2, 3, 4)


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4 in percent over all captions, each with its references, unsmoothed."""
    # NLTK scores a missing order with a warning and almost 0; here it is 0 without one.
    if not any(map(len, captions)):
        return {f"BLEU-{n}": 0.0 for n in ORDERS}
    found = [order for order in ORDERS if _matches(captions, references, order)]
    weights = [tuple(np.full(order, 1 / order)) for order in found]
    module = require("nltk.translate.bleu_score", "test")
    values = module.corpus_bleu(references, captions, weights=weights) if found else []
    values = [values] if isinstance(values, float) else values
    scores = dict(zip(found, values, strict=True))
    return {f"BLEU-{order}": 100 * float(scores.get(order, 0.0)) for order in ORDERS}


def each_bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """A rough score of each caption, to sort them: BLEU-2 with one more match of every order."""
    module = require("nltk.translate.bleu_score", "test")
    smooth = module.SmoothingFunction().method2
    return np.array(
        [
            module.sentence_bleu(own, words, weights=(0.5, 0.5), smoothing_function=smooth)
            if len(words) > 1
            else 0.0
            for words, own in zip(captions, references, strict=True)
        ]
    )


def baselines(
    references: Sequence[Sequence[Words]],
    training: Sequence[Sequence[Words]],
    vectors: np.ndarray,
    training_vectors: np.ndarray,
) -> dict[str, dict[str, float]]:
    """BLEU without a model, and of people: their first caption against their other ones."""

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    nearest = np.argmax(unit(vectors) @ unit(training_vectors).T, axis=1)
    return {
        "people, against the others": bleu(
            [own[0] for own in references], [own[1:] for own in references]
        ),
        "a caption of the most similar picture": bleu(
            [training[i][0] for i in nearest], references
        ),
    }


def variety(captions: Sequence[Words], training: Sequence[Sequence[Words]]) -> dict[str, float]:
    """The share of captions that are different, and that are captions of the training set."""
    known = {tuple(words) for own in training for words in own}
    written = [tuple(words) for words in captions]
    return {
        "distinct": len(set(written)) / len(written),
        "copied": sum(words in known for words in written) / len(written),
    }


def _matches(captions: Any, references: Any, order: int) -> bool:
    """Whether any caption shares an n-gram of this order with one of its references."""

    def grams(words: Words) -> collections.Counter:
        return collections.Counter(
            tuple(words[i : i + order]) for i in range(len(words) - order + 1)
        )

    return any(
        grams(words) & grams(reference)
        for words, own in zip(captions, references, strict=True)
        for reference in own
    )
