"""What every language model must beat: the entropy of single tokens, -log p(x), in nats."""

import numpy as np


def unigram_entropy(train: np.ndarray, held_out: np.ndarray, *, vocab_size: int) -> float:
    """Cross-entropy of held-out ids ``[M]`` under the counts of training ids ``[N]``, plus one."""
    counts = np.bincount(train, minlength=vocab_size) + 1  # none is impossible
    return float(np.mean(np.log(counts.sum()) - np.log(counts[held_out])))


def judged(name: str, loss: float, unigram: float) -> str:
    """The name of a model in the table of results; one that learnt nothing is called so."""
    return name if loss < unigram else f"{name} (learnt nothing: single tokens are no worse)"
