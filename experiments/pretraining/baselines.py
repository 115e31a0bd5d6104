"""Entropies that a model must beat: of single tokens, and of tokens given the one before.

    unigram   -log p(x_t)
    bigram    -log p(x_t | x_{t-1}),  p = (count(x_{t-1} x_t) + α p(x_t)) / (count(x_{t-1}) + α)

in nats per token, on held-out rows. α is the best of ``ALPHAS`` on the same held-out rows, which
favours the baseline.
"""

from collections.abc import Sequence

import numpy as np

ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def entropies(
    train: np.ndarray, held_out: np.ndarray, *, vocab_size: int, special: Sequence[int] = ()
) -> dict[str, float]:
    """Cross-entropies in nats of held-out rows ``[M, T]`` under counts of training rows ``[N, T]``.

    ``special`` ids are never predicted.
    """
    is_token = ~np.isin(np.arange(vocab_size), special)
    first, second = _pairs(train, is_token)
    held_first, held_second = _pairs(held_out, is_token)
    counts = np.bincount(second, minlength=vocab_size) + is_token  # none is impossible
    unigram = counts / counts.sum()
    after = np.bincount(first, minlength=vocab_size)
    pairs, pair_counts = np.unique(first.astype(np.int64) * vocab_size + second, return_counts=True)
    wanted = held_first.astype(np.int64) * vocab_size + held_second
    places = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[places] == wanted, pair_counts[places], 0)
    bigram = min(
        -np.log((seen + a * unigram[held_second]) / (after[held_first] + a)).mean() for a in ALPHAS
    )
    return {"unigram": float(-np.log(unigram[held_second]).mean()), "bigram": float(bigram)}


def _pairs(rows: np.ndarray, is_token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (token before, token) whose second is predicted."""
    first, second = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    counts = is_token[second]
    return first[counts], second[counts]
