"""What is measured of texts: how various they are, what they copy, and of which class they look.

    distinct-n   share of different n-grams among all n-grams
    self-BLEU    mean BLEU-4 of a text against all the others, so less is more various
    copied       share of 8-grams that stand in the training text, and of texts that do as a whole

Source: Jiwei Li et al., «A Diversity-Promoting Objective Function for Neural Conversation Models»,
2015, arXiv 1510.03055 (distinct-n); Yaoming Zhu et al., «Texygen», 2018, arXiv 1802.01886
(self-BLEU, with its smoothing: 0.1 instead of no match); Kishore Papineni et al., «BLEU», 2002;
Sida Wang, Christopher Manning, «Baselines and Bigrams», 2012 (naive Bayes on pairs of words).
"""

import collections
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from zoo.extras import require

Text = Sequence[Hashable]  # tokens
COPIED = 8
SMOOTHING = 0.1


def ngrams(text: Text, n: int) -> Iterator[tuple]:
    """The n-grams of a text in their order."""
    return zip(*(text[i:] for i in range(n)), strict=False)


def distinct(texts: Sequence[Text], n: int) -> float:
    """Distinct-n in 0..1; NaN if there is no n-gram."""
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else math.nan


def self_bleu(texts: Sequence[Text], order: int = 4) -> float:
    """Mean BLEU of each text with all others as references, in 0..1.

    The largest count of an n-gram in any other text is that in any text, or the second largest for
    the text that holds the largest: one pass instead of N² comparisons.
    """
    lengths = np.sort([len(text) for text in texts])
    logs = np.zeros(len(texts))
    for n in range(1, order + 1):
        counts = [collections.Counter(ngrams(text, n)) for text in texts]
        best: dict[tuple, tuple[int, int]] = {}  # the two largest counts
        for own in counts:
            for gram, count in own.items():
                first, second = best.get(gram, (0, 0))
                best[gram] = (max(first, count), max(second, min(first, count)))
        for i, own in enumerate(counts):
            matches = sum(
                min(c, best[g][1] if best[g][0] == c else best[g][0]) for g, c in own.items()
            )
            total = max(sum(own.values()), 1)
            logs[i] += math.log((matches or SMOOTHING) / total) / order
    scores = []
    for text, log in zip(texts, logs, strict=True):
        others = np.delete(lengths, np.searchsorted(lengths, len(text)))
        closest = others[np.argmin(np.abs(others - len(text)))]
        brevity = min(0.0, 1 - closest / max(len(text), 1))
        scores.append(math.exp(log + brevity))
    return float(np.mean(scores))


def copied(texts: Sequence[Text], training: Sequence[Text], n: int = COPIED) -> tuple[float, float]:
    """Shares of n-grams and of whole texts that the training texts hold."""
    known = {gram for text in training for gram in ngrams(text, n)}
    found = [gram in known for text in texts for gram in ngrams(text, n)]
    whole = {tuple(text) for text in training}
    return (
        float(np.mean(found)) if found else math.nan,
        float(np.mean([tuple(text) in whole for text in texts])),
    )


def train_classifier(texts: Sequence[Text], labels: np.ndarray) -> Callable[..., np.ndarray]:
    """Naive Bayes on words and pairs of words, all classes alike: ``(texts) -> labels``."""
    extraction = require("sklearn.feature_extraction.text", "data")
    bayes = require("sklearn.naive_bayes", "data")
    pipeline = require("sklearn.pipeline", "data")

    def features(text: Text) -> list[tuple]:
        return [*ngrams(text, 1), *ngrams(text, 2)]

    model = pipeline.make_pipeline(
        extraction.CountVectorizer(analyzer=features, binary=True),
        bayes.MultinomialNB(fit_prior=False),
    ).fit(texts, labels)
    return model.predict


def share_interval(hits: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    n, share, z = len(hits), float(np.mean(hits)), 1.96
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return centre - reach, centre + reach


def bootstrap(
    statistic: Callable[..., Any], *columns: np.ndarray, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a statistic of weighted rows: ``statistic(weights, *columns)``.

    A draw of N rows with replacement is a multinomial count of each.
    """
    rows = len(columns[0])
    weights = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=draws)
    values = [statistic(weight, *columns) for weight in weights]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def perplexity(weights: np.ndarray, losses: np.ndarray, lengths: np.ndarray) -> float:
    """Perplexity exp(Σ loss / Σ length) of weighted rows."""
    return float(np.exp(weights @ losses / (weights @ lengths)))


def label_perplexities(losses: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> dict:
    """Perplexity with the right label and with wrong ones, and the labels that the model finds.

    Args:
        losses: ``[N, K + 1]``, nats of a text given each class, and untold.
        labels: ``[N]``.
        lengths: ``[N]``, tokens.
    """
    rows, classes = np.arange(len(losses)), losses.shape[1] - 1
    right = losses[rows, labels]
    wrong = (losses[:, :-1].sum(axis=1) - right) / (classes - 1)
    ones = np.ones(len(losses))

    def ratio(weights: np.ndarray, right: np.ndarray, wrong: np.ndarray, lengths: Any) -> float:
        return perplexity(weights, wrong, lengths) / perplexity(weights, right, lengths)

    found = losses[:, :-1].argmin(axis=1) == labels
    return {
        "right": perplexity(ones, right, lengths),
        "right interval": bootstrap(perplexity, right, lengths),
        "wrong": perplexity(ones, wrong, lengths),
        "wrong interval": bootstrap(perplexity, wrong, lengths),
        "wrong / right": ratio(ones, right, wrong, lengths),
        "wrong / right interval": bootstrap(ratio, right, wrong, lengths),
        "untold": perplexity(ones, losses[:, -1], lengths),
        "classified": float(found.mean()),
    }
