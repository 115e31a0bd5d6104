"""How far trees agree with a treebank, in the three conventions that published numbers use.

    sentence F1    mean over sentences of the F1 of their brackets
    corpus F1      F1 of the brackets of all sentences counted together
    EVALB F1       the same with the bracket of the complete sentence, which every tree has

Brackets of single words never count, nor, but for EVALB, that of the complete sentence; brackets
around the same words count once; labels are not compared: :mod:`zoo.ordered.evalb` does. Right
branching on the sample of the Wall Street Journal that NLTK offers has 39.9, 35.8 and 39.4 %, over
its sentences of at most ten words 58.6, 55.0 and 63.3 %: a number without its convention cannot be
compared.

Sources: arXiv 1810.09536, section 5.2; Yoon Kim, Chris Dyer, Alexander Rush, "Compound
Probabilistic Context-Free Grammars for Grammar Induction", 2019, arXiv 1906.10225, section 4
(sentence and corpus F1); EVALB, https://nlp.cs.nyu.edu/evalb/.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.ordered.treebank import GoldTree
from zoo.ordered.trees import Brackets, Tree, brackets


class BracketScores(NamedTuple):
    """Agreement of the brackets of one tree with those of another, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


class CorpusScores(NamedTuple):
    """Agreement with a treebank, each in [0, 1], see the module docstring."""

    sentence_f1: float
    corpus_f1: float
    evalb_f1: float


class TreebankScores(NamedTuple):
    """What a row of the paper's table says of one set of trees."""

    every: CorpusScores  # over all sentences
    short: CorpusScores  # over the short ones
    depth: float  # mean_word_depth
    recall: dict[str, float]  # label_recall


def bracket_scores(predicted: Tree | Brackets, gold: Tree | Brackets) -> BracketScores:
    """Precision, recall and F1 of the brackets of a tree, see :func:`tree_spans`.

    precision = shared / predicted, recall = shared / gold, F1 their harmonic mean. Where the gold
    tree has no bracket, recall is 1, and precision is 1 only if the prediction has none either.

    Args:
        predicted: tree of the sentence, or its brackets.
        gold: the tree to find, over as many words, or its brackets.

    Returns:
        The scores of this sentence; the mean of their ``f1`` is "sentence F1".

    Raises:
        ValueError: if the trees have different numbers of words; TypeError as for the spans.

    >>> bracket_scores([["a", "b"], ["c", "d"]], ["a", ["b", ["c", "d"]]])
    BracketScores(precision=0.5, recall=0.5, f1=0.5)

    Reference: arXiv 1810.09536, section 5.2, as its code counts (without its 1e-8 terms).
    """
    ((found, wanted),) = _pairs("bracket_scores", [predicted], [gold])
    return from_counts(len(found.spans & wanted.spans), len(found.spans), len(wanted.spans))


def corpus_scores(
    predicted: Sequence[Tree | Brackets], gold: Sequence[Tree | Brackets]
) -> CorpusScores:
    """The three F1 of trees against those of a treebank.

    Args:
        predicted: a tree for each sentence, or its brackets.
        gold: the trees to find, over the same numbers of words, or their brackets.

    Returns:
        ``CorpusScores``; all NaN without a sentence.

    Raises:
        ValueError: if the numbers of trees, or of words of a pair, differ.

    >>> predicted = [["a", ["b", "c"]], [["a", "b"], ["c", "d"]]]
    >>> gold = [["a", "b", "c"], ["a", ["b", ["c", "d"]]]]
    >>> corpus_scores(predicted, gold)
    CorpusScores(sentence_f1=0.25, corpus_f1=0.4, evalb_f1=0.66...)

    Reference: arXiv 1906.10225, section 4.
    """
    pairs = _pairs("corpus_scores", predicted, gold)
    if not pairs:
        return CorpusScores(np.nan, np.nan, np.nan)
    counts = [(len(p.spans & g.spans), len(p.spans), len(g.spans)) for p, g in pairs]
    shared, found, wanted = map(sum, zip(*counts, strict=True))
    sentences = sum(gold.num_words > 1 for _, gold in pairs)  # whose own bracket is always found
    return CorpusScores(
        float(np.mean([from_counts(*count).f1 for count in counts])),
        from_counts(shared, found, wanted).f1,
        from_counts(shared + sentences, found + sentences, wanted + sentences).f1,
    )


def label_recall(
    predicted: Sequence[Tree | Brackets], gold: Sequence[GoldTree]
) -> dict[str, float]:
    """The share of the constituents of each label whose bracket the predicted trees have.

    Args:
        predicted: a tree for each sentence, or its brackets.
        gold: the labelled trees to find, over the same numbers of words.

    Returns:
        label -> recall in [0, 1], the most frequent label first. Constituents of one word or of the
        complete sentence are not counted; two labels around the same words count each.

    Raises:
        ValueError: if the numbers of trees, or of words of a pair, differ.

    >>> gold = [GoldTree(("the", "dog", "barks"), (("S", 0, 3), ("NP", 0, 2)))]
    >>> label_recall([[["the", "dog"], "barks"]], gold)
    {'NP': 1.0}

    Reference: arXiv 1810.09536, table 2.
    """
    found: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    pairs = _pairs("label_recall", predicted, [tree.brackets for tree in gold])
    for (tree, _), target in zip(pairs, gold, strict=True):
        for label, start, end in set(target.constituents):
            if 1 < end - start < tree.num_words:
                total[label] += 1
                found[label] += (start, end) in tree.spans
    return {label: found[label] / count for label, count in total.most_common()}


def mean_word_depth(trees: Iterable[Tree | Brackets]) -> float:
    """Mean over sentences of the number of brackets around a word, that of the sentence included.

    NaN without a tree.

    >>> mean_word_depth([["a", ["b", "c"]], "d"])
    0.83...

    Reference: arXiv 1810.09536, table 2.
    """
    depths = [
        sum(end - start for start, end in spans) / num_words + (num_words > 1)
        for num_words, spans in map(brackets, trees)
    ]
    return float(np.mean(depths)) if depths else float("nan")


def treebank_scores(
    predicted: Sequence[Tree], gold: Sequence[GoldTree], *, short: int = 10
) -> TreebankScores:
    """All that the paper's table says of a set of trees.

    Args:
        predicted: a tree for each sentence.
        gold: the labelled trees to find, over the same numbers of words.
        short: number of words that a short sentence has at most.

    >>> gold = [GoldTree(("the", "dog", "barks"), (("S", 0, 3), ("NP", 0, 2)))]
    >>> treebank_scores([[["the", "dog"], "barks"]], gold).recall
    {'NP': 1.0}

    Reference: arXiv 1810.09536, table 2.
    """
    pairs = _pairs("treebank_scores", predicted, [tree.brackets for tree in gold])
    found, wanted = [p for p, _ in pairs], [g for _, g in pairs]
    of_short = [pair for pair in pairs if pair[1].num_words <= short]
    return TreebankScores(
        corpus_scores(found, wanted),
        corpus_scores([p for p, _ in of_short], [g for _, g in of_short]),
        mean_word_depth(found),
        label_recall(found, gold),
    )


def _pairs(name: str, predicted: Sequence[Any], gold: Sequence[Any]) -> list[tuple]:
    """The brackets of every predicted tree with those of its gold tree, checked."""
    if len(predicted) != len(gold):
        raise ValueError(
            f"{name}: needs one predicted tree for each of {len(gold)} gold trees, "
            f"got {len(predicted)}"
        )
    pairs = list(zip(map(brackets, predicted), map(brackets, gold), strict=True))
    for ours, theirs in pairs:
        if ours.num_words != theirs.num_words:
            raise ValueError(
                f"predicted has {ours.num_words} words and gold {theirs.num_words}; "
                "trees of the same sentence are compared, with the same tokens left out"
            )
    return pairs


def from_counts(shared: int, predicted: int, gold: int) -> BracketScores:
    """Precision, recall and F1 of numbers of brackets, see :func:`bracket_scores`."""
    recall = shared / gold if gold else 1.0
    precision = shared / predicted if predicted else float(not gold)
    f1 = 2 * precision * recall / (precision + recall) if shared or not gold else 0.0
    return BracketScores(precision, recall, f1)
