"""The baseline to beat: an interpolated n-gram model with modified Kneser-Ney smoothing.

    p_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h·) + γ(h) · p_{n-1}(w | h'),   p_0 = 1 / V
    γ(h) = (D_1 N_1(h·) + D_2 N_2(h·) + D_3 N_{3+}(h·)) / c(h·)

c counts occurrences at the highest order and distinct left neighbours below it; h' is h without
its first word; N_k(h·) is the number of words seen k times after h.

Source: Stanley Chen, Joshua Goodman, "An Empirical Study of Smoothing Techniques for Language
Modeling", 1999, section 3 (Computer Speech & Language 13).
"""

from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """What was counted of the n-grams of one order."""

    keys: np.ndarray  # [types] sorted; context id · V + last word
    counts: np.ndarray  # [types] c(hw)
    discounts: np.ndarray  # [4] D of c = 0, 1, 2 and 3 or more
    totals: np.ndarray  # [contexts] c(h·)
    reserved: np.ndarray  # [contexts] γ(h) · c(h·)


def fit_kneser_ney(ids: np.ndarray, *, vocab_size: int, order: int = 5) -> list[Order]:
    """Counts the n-grams, n = 1 … ``order``, of a text ``[N]`` of ids below ``vocab_size``."""
    if len(ids) < order:
        raise ValueError(f"a text of at least {order} tokens is needed, got {len(ids)}")
    # The id of an n-gram is its place among the sorted types, so (context id, word) is one number.
    gram = np.zeros(len(ids) + 1, np.int64)
    types = []
    for n in range(1, order + 1):
        keys, first, gram, occurrences = np.unique(
            gram[:-1] * vocab_size + ids[n - 1 :],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        types.append((keys, first, gram, occurrences))
    orders: list[Order] = []
    for n, (keys, _, gram, occurrences) in enumerate(types, start=1):
        if n < order:
            # Every type one longer has one left neighbour; it ends in the gram one further on.
            longer_first = types[n][1]
            occurrences = np.bincount(gram[longer_first + 1], minlength=len(keys))
        contexts = len(types[n - 2][0]) if n > 1 else 1
        orders.append(_order(keys, occurrences, keys // vocab_size, contexts))
    return orders


def perplexity(orders: list[Order], ids: np.ndarray, *, vocab_size: int) -> float:
    """Perplexity of ``ids[1:]``, each predicted from all that precedes it."""
    return float(np.exp(-np.mean(np.log(probabilities(orders, ids, vocab_size=vocab_size)[1:]))))


def probabilities(orders: list[Order], ids: np.ndarray, *, vocab_size: int) -> np.ndarray:
    """The probability of each token after all that precedes it, ``[N]`` float64."""
    probability = np.full(len(ids), 1 / vocab_size)
    context = np.zeros(len(ids), np.int64)  # id of the n - 1 words before, -1: never seen
    for order in orders:
        keys = context * vocab_size + ids
        place = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
        found = (context >= 0) & (order.keys[place] == keys)
        count = np.where(found, order.counts[place], 0)
        total = np.where(context >= 0, order.totals[context], 0)
        known = total > 0
        kept = np.maximum(count - order.discounts[np.minimum(count, 3)], 0)
        backed_off = (kept + order.reserved[context] * probability) / np.where(known, total, 1)
        probability = np.where(known, backed_off, probability)
        # The n-gram that ends here is the context of the next word at the next order.
        context = np.concatenate([[-1], np.where(found, place, -1)[:-1]])
    return probability


def _order(keys: np.ndarray, counts: np.ndarray, context: np.ndarray, contexts: int) -> Order:
    frequency = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    # n_1 = 0 or n_2 = 0 happens on toy texts only; the discounts must stay inside [0, k].
    base = frequency[1] / max(frequency[1] + 2 * frequency[2], 1)
    discounts = np.zeros(4)
    for k in (1, 2, 3):
        estimate = k - (k + 1) * base * frequency[k + 1] / max(frequency[k], 1)
        discounts[k] = np.clip(estimate, 0.1, k)
    totals = np.bincount(context, counts, contexts)
    reserved = np.bincount(context, discounts[np.minimum(counts, 3)], contexts)
    return Order(keys, counts, discounts, totals, reserved)
