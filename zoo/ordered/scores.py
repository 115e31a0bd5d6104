"""How far trees agree with a treebank, in the three conventions that published numbers use.

    sentence F1    mean over sentences of the F1 of their brackets
    corpus F1      F1 of the brackets of all sentences counted together
    EVALB F1       the same with the bracket of the whole sentence, which every tree has

Brackets of single words never count, nor, but for EVALB, that of the whole sentence; brackets
around the same words count once; labels are not compared. Right branching on the sample of the Wall
Street Journal that NLTK offers has 39.9, 35.8 and 39.4 %, over its sentences of at most ten words
58.6, 55.0 and 63.3 %: a number without its convention cannot be compared.

Sources: arXiv 1810.09536, section 5.2; Yoon Kim, Chris Dyer, Alexander Rush, «Compound
Probabilistic Context-Free Grammars for Grammar Induction», 2019, arXiv 1906.10225, section 4
(sentence and corpus F1); EVALB, https://nlp.cs.nyu.edu/evalb/.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zoo.ordered.baselines import (
    balanced_tree,
    binarized_tree,
    left_branching_tree,
    random_tree,
    right_branching_tree,
)
from zoo.ordered.treebank import GoldTree
from zoo.ordered.trees import Tree, count_words_and_spans, depths_to_tree

PUBLISHED_LABELS = ("ADJP", "NP", "PP", "INTJ")  # those of the paper's table


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


def bracket_scores(predicted: Tree, gold: Tree) -> BracketScores:
    """Precision, recall and F1 of the brackets of a tree, see :func:`tree_spans`.

    precision = shared / predicted, recall = shared / gold, F1 their harmonic mean. Where the gold
    tree has no bracket, recall is 1, and precision is 1 only if the prediction has none either.

    Args:
        predicted: tree of the sentence.
        gold: the tree to find, over as many words.

    Returns:
        The scores of this sentence; the mean of their ``f1`` is «sentence F1».

    Raises:
        ValueError: if the trees have different numbers of words; TypeError as for the spans.

    >>> bracket_scores([["a", "b"], ["c", "d"]], ["a", ["b", ["c", "d"]]])
    BracketScores(precision=0.5, recall=0.5, f1=0.5)

    Reference: arXiv 1810.09536, section 5.2, as its code counts (without its 1e-8 terms).
    """
    return _bracket_scores(*_compare(_brackets(predicted), _brackets(gold))[:3])


def corpus_scores(predicted: Sequence[Tree], gold: Sequence[Tree]) -> CorpusScores:
    """The three F1 of trees against those of a treebank.

    Args:
        predicted: a tree for each sentence.
        gold: the trees to find, over the same numbers of words.

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
    _check_numbers("corpus_scores", predicted, gold)
    return _corpus_scores(map(_compare, map(_brackets, predicted), map(_brackets, gold)))


def label_recall(predicted: Sequence[Tree], gold: Sequence[GoldTree]) -> dict[str, float]:
    """The share of the constituents of each label whose bracket the predicted trees have.

    Args:
        predicted: a tree for each sentence.
        gold: the labelled trees to find, over the same numbers of words.

    Returns:
        label -> recall in [0, 1], the most frequent label first. Constituents of one word or of the
        whole sentence are not counted; two labels around the same words count each.

    Raises:
        ValueError: if the numbers of trees, or of words of a pair, differ.

    >>> gold = [GoldTree(("the", "dog", "barks"), (("S", 0, 3), ("NP", 0, 2)))]
    >>> label_recall([[["the", "dog"], "barks"]], gold)
    {'NP': 1.0}

    Reference: arXiv 1810.09536, table 2.
    """
    _check_numbers("label_recall", predicted, gold)
    return _label_recall([_brackets(tree) for tree in predicted], gold)


def mean_word_depth(trees: Iterable[Tree]) -> float:
    """The mean over sentences of how many brackets are around a word, that of the sentence too.

    Args:
        trees: binary or not.

    Returns:
        The depth; NaN without a tree.

    >>> mean_word_depth([["a", ["b", "c"]], "d"])
    0.83...

    Reference: arXiv 1810.09536, table 2.
    """
    return _mean_word_depth([_brackets(tree) for tree in trees])


def parsing_table(
    predicted: Mapping[str, Sequence[Tree]],
    gold: Sequence[GoldTree],
    *,
    short: int = 10,
    labels: Sequence[str] = PUBLISHED_LABELS,
    seed: int = 0,
) -> list[dict[str, str | float]]:
    """The rows of a results table: predicted trees, then the trees that no model made.

    Args:
        predicted: name of the row -> a tree for each sentence; may be empty.
        gold: the labelled trees to find, such as from :func:`read_treebank`.
        short: the scores over sentences of at most so many words get columns of their own.
        labels: labels whose recall gets a column.
        seed: of the random trees.

    Returns:
        Rows for ``zoo.training.results_table``, in percent: the three F1 over all sentences and
        over short ones, the mean depth of a word, the recall of the labels.

    Raises:
        ValueError: if the numbers of trees, or of words of a pair, differ.

    >>> gold = [GoldTree(("the", "dog", "barks"), (("S", 0, 3), ("NP", 0, 2)))]
    >>> for row in parsing_table({"ours": [[["the", "dog"], "barks"]]}, gold, labels=["NP"])[:2]:
    ...     print(row["trees"], row["sentence F1"], row["NP"])
    ours 100.0 100.0
    right branching 0.0 0.0

    Reference: arXiv 1810.09536, table 2.
    """
    generator = np.random.default_rng(seed)
    words = [tree.words for tree in gold]
    rows = dict(predicted) | {
        "right branching": list(map(right_branching_tree, words)),
        "left branching": list(map(left_branching_tree, words)),
        "balanced": list(map(balanced_tree, words)),
        "random depths, greedy": [depths_to_tree(generator.random(len(w)), w) for w in words],
        "random depths, unbiased": [random_tree(generator, w) for w in words],
    }
    gold_trees = [tree.tree for tree in gold]
    rows["best binary tree"] = list(map(binarized_tree, gold_trees))
    targets = list(map(_brackets, gold_trees))
    table: list[dict[str, str | float]] = []
    for name, trees in rows.items():
        _check_numbers(f"parsing_table: {name}", trees, gold)
        brackets = list(map(_brackets, trees))
        counts = list(map(_compare, brackets, targets))
        recall = _label_recall(brackets, gold)
        table.append(
            {"trees": name}
            | _percent(_corpus_scores(counts))
            | _percent(
                _corpus_scores(count for count in counts if count.words <= short),
                suffix=f", ≤ {short} words",
            )
            | {"depth": _mean_word_depth(brackets)}
            | {label: 100 * recall.get(label, np.nan) for label in labels}
        )
    return table


class _Brackets(NamedTuple):
    """What is compared of a tree."""

    words: int
    spans: set[tuple[int, int]]  # neither the whole sentence nor a single word


class _Counts(NamedTuple):
    """Numbers of brackets of a pair of trees."""

    shared: int
    predicted: int
    gold: int
    words: int


def _brackets(tree: Tree) -> _Brackets:
    return _Brackets(*count_words_and_spans(tree))


def _compare(predicted: _Brackets, gold: _Brackets) -> _Counts:
    _check_words(predicted.words, gold.words)
    shared = len(predicted.spans & gold.spans)
    return _Counts(shared, len(predicted.spans), len(gold.spans), gold.words)


def _bracket_scores(shared: int, predicted: int, gold: int) -> BracketScores:
    recall = shared / gold if gold else 1.0
    precision = shared / predicted if predicted else float(not gold)
    f1 = 2 * precision * recall / (precision + recall) if shared or not gold else 0.0
    return BracketScores(precision, recall, f1)


def _corpus_scores(counts: Iterable[_Counts]) -> CorpusScores:
    counts = list(counts)
    if not counts:
        return CorpusScores(np.nan, np.nan, np.nan)
    sentences = [_bracket_scores(*count[:3]).f1 for count in counts]
    shared, predicted, gold, _ = map(sum, zip(*counts, strict=True))
    whole = sum(count.words > 1 for count in counts)  # a bracket that is always found
    return CorpusScores(
        float(np.mean(sentences)),
        _bracket_scores(shared, predicted, gold).f1,
        _bracket_scores(shared + whole, predicted + whole, gold + whole).f1,
    )


def _label_recall(predicted: Sequence[_Brackets], gold: Sequence[GoldTree]) -> dict[str, float]:
    found: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    for (num_words, spans), target in zip(predicted, gold, strict=True):
        _check_words(num_words, len(target.words))
        for label, start, end in set(target.constituents):
            if 1 < end - start < num_words:
                total[label] += 1
                found[label] += (start, end) in spans
    return {label: found[label] / count for label, count in total.most_common()}


def _mean_word_depth(trees: Sequence[_Brackets]) -> float:
    depths = [
        sum(end - start for start, end in spans) / words + (words > 1) for words, spans in trees
    ]
    return float(np.mean(depths)) if depths else float("nan")


def _percent(scores: CorpusScores, suffix: str = "") -> dict[str, float]:
    names = ("sentence F1", "corpus F1", "EVALB F1")
    return {name + suffix: 100 * score for name, score in zip(names, scores, strict=True)}


def _check_words(predicted: int, gold: int) -> None:
    if predicted != gold:
        raise ValueError(
            f"predicted has {predicted} words and gold {gold}; "
            "trees of the same sentence are compared, with the same tokens left out"
        )


def _check_numbers(name: str, predicted: Sequence[Tree], gold: Sequence[object]) -> None:
    if len(predicted) != len(gold):
        raise ValueError(
            f"{name}: needs one predicted tree for each of {len(gold)} gold trees, "
            f"got {len(predicted)}"
        )
