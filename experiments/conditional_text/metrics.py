"""What is measured of texts: diversity, copying, and which class a classifier finds in them.

    distinct-n   share of distinct n-grams among all n-grams
    self-BLEU    mean BLEU-4 of a text with all the others as references; lower is more diverse
    copied       share of 8-grams, and of complete texts, that occur in the training text

Source: Jiwei Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models",
2015, arXiv 1510.03055 (distinct-n); Yaoming Zhu et al., "Texygen", 2018, arXiv 1802.01886
(self-BLEU, with its smoothing: 0.1 instead of no match); Sida Wang, Christopher Manning, "Baselines
and Bigrams", 2012 (naive Bayes on pairs of words).
"""

import collections
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from zoo.extras import require

Text = Sequence[Hashable]  # tokens
SMOOTHING = 0.1
ORDER = 4


def ngrams(text: Text, n: int) -> Iterator[tuple]:
    """The n-grams of a text in their order."""
    return zip(*(text[i:] for i in range(n)), strict=False)


def distinct(texts: Sequence[Text], n: int) -> float:
    """Distinct-n in 0..1; NaN if there is no n-gram."""
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else math.nan


def self_bleu(texts: Sequence[Text]) -> float:
    """Mean BLEU-4 of each text with all others as references, in 0..1.

    Counts every text once; NLTK's ``sentence_bleu`` of each text, which it equals, counts N² times
    (a minute for 1,000 texts). The largest count of an n-gram in the other texts is the largest of
    all, or the second largest for the text that holds the largest.
    """
    bleu = require("nltk.translate.bleu_score", "data")
    logs = np.zeros(len(texts))
    for n in range(1, ORDER + 1):
        counts = [collections.Counter(ngrams(text, n)) for text in texts]
        every = collections.defaultdict(list)
        for own in counts:
            for gram, count in own.items():
                every[gram].append(count)
        top = {gram: sorted([0, *found])[-2:] for gram, found in every.items()}

        def in_others(gram: tuple, count: int, top: dict = top) -> int:
            second, first = top[gram]
            return second if count == first else first

        for i, own in enumerate(counts):
            matches = sum(min(count, in_others(gram, count)) for gram, count in own.items())
            logs[i] += math.log((matches or SMOOTHING) / max(sum(own.values()), 1)) / ORDER
    scores = []
    for i, log in enumerate(logs):
        size = len(texts[i])
        closest = bleu.closest_ref_length((*texts[:i], *texts[i + 1 :]), size)
        scores.append(math.exp(log) * bleu.brevity_penalty(closest, size))
    return float(np.mean(scores))


def copied(texts: Sequence[Text], training: Sequence[Text], n: int = 8) -> tuple[float, float]:
    """Shares of n-grams and of complete texts that occur in the training texts."""
    known = {gram for text in training for gram in ngrams(text, n)}
    found = [gram in known for text in texts for gram in ngrams(text, n)]
    complete = {tuple(text) for text in training}
    return (
        float(np.mean(found)) if found else math.nan,
        float(np.mean([tuple(text) in complete for text in texts])),
    )


def train_classifier(texts: Sequence[Text], labels: np.ndarray) -> Callable[..., np.ndarray]:
    """Naive Bayes on words and pairs of words, equal priors: ``(texts) -> labels``."""
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
    test = require("scipy.stats", "data").binomtest(int(np.sum(hits)), len(hits))
    low, high = test.proportion_ci(method="wilson")
    return float(low), float(high)


def bootstrap(statistic: Callable[..., Any], *columns: np.ndarray) -> tuple[float, float]:
    """95 % interval of ``statistic(*columns, axis=-1)`` over 2,000 draws of the rows."""
    if len(columns[0]) < 2:
        return math.nan, math.nan
    drawn = require("scipy.stats", "data").bootstrap(
        columns,
        statistic,
        paired=True,
        n_resamples=2000,
        batch=200,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = drawn.confidence_interval
    return float(low), float(high)


def perplexity(losses: np.ndarray, lengths: np.ndarray) -> float:
    """Perplexity exp(Σ loss / Σ length)."""
    return float(np.exp(losses.sum() / lengths.sum()))


def ratio(wrong: np.ndarray, right: np.ndarray, lengths: np.ndarray, axis: int = -1) -> Any:
    """Perplexity of wrong labels over that of right ones."""
    return np.exp((wrong.sum(axis) - right.sum(axis)) / lengths.sum(axis))


def label_perplexities(losses: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> dict:
    """Perplexity with the right label, with wrong ones and unconditionally; and classification.

    Args:
        losses: ``[N, K + 1]``, nats of a text given each class, and given the null label.
        labels: ``[N]``.
        lengths: ``[N]``, tokens.
    """
    by_class, unconditional = losses[:, :-1], losses[:, -1]
    right = by_class[np.arange(len(losses)), labels]
    wrong = (by_class.sum(axis=1) - right) / (by_class.shape[1] - 1)
    return {
        "right": perplexity(right, lengths),
        "wrong": perplexity(wrong, lengths),
        "wrong / right": float(ratio(wrong, right, lengths)),
        "wrong / right interval": bootstrap(ratio, wrong, right, lengths),
        "unconditional": perplexity(unconditional, lengths),
        "classified": float((by_class.argmin(axis=1) == labels).mean()),
    }
