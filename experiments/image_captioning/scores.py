"""BLEU of captions against several references, of baselines, and how varied captions are."""

import warnings
from collections.abc import Sequence

import numpy as np

from zoo.extras import require

Words = Sequence[str]
ORDERS = (1, 2, 3, 4)


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4 in percent over all captions, each with its references, unsmoothed."""
    module = require("nltk.translate.bleu_score", "data")
    weights = [(1 / order,) * order for order in ORDERS]
    with warnings.catch_warnings():  # an order without a match gives almost 0, rounded to 0
        warnings.filterwarnings("ignore", message="(?s).*counts of .* overlaps")
        values = module.corpus_bleu(references, captions, weights=weights)
    return {f"BLEU-{n}": round(100 * v, 6) for n, v in zip(ORDERS, values, strict=True)}


def each_bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """A rough score of each caption, to sort them: BLEU-2 with one more match of every order."""
    module = require("nltk.translate.bleu_score", "data")
    options = {"weights": (0.5, 0.5), "smoothing_function": module.SmoothingFunction().method2}
    pairs = zip(captions, references, strict=True)
    return np.array(
        [module.sentence_bleu(own, words, **options) if words[1:] else 0.0 for words, own in pairs]
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
    people = bleu([own[0] for own in references], [own[1:] for own in references])
    similar = bleu([training[i][0] for i in nearest], references)
    return {"people, against the others": people, "a caption of the most similar picture": similar}


def variety(captions: Sequence[Words], training: Sequence[Sequence[Words]]) -> dict[str, float]:
    """Shares of captions that are distinct, and that occur in the training set."""
    known = {tuple(words) for own in training for words in own}
    written = [tuple(words) for words in captions]
    return {
        "distinct": len(set(written)) / len(written),
        "copied": sum(words in known for words in written) / len(written),
    }
