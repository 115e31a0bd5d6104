"""The scores of parsers: labelled brackets, crossing brackets, tags, as EVALB counts them.

    precision   matched / predicted,   recall = matched / gold,   F1 their harmonic mean
    crossing    predicted brackets that cross a gold one:  i < i' < j < j'  or  i' < i < j' < j

A bracket is a label with its span; brackets of one word and of the complete sentence count, and of
equal ones as many match as both trees have. These are the numbers that supervised parsers publish;
those of induced trees, which have no labels, are in :mod:`zoo.ordered.scores`.

Source: EVALB, Satoshi Sekine and Michael Collins, 1997, https://nlp.cs.nyu.edu/evalb/, with its
parameter file COLLINS.prm; the measures are those of Ezra Black et al., "A Procedure for
Quantitatively Comparing the Syntactic Coverage of English Grammars", 1991.
"""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zoo import _checks
from zoo.ordered.scores import from_counts
from zoo.ordered.treebank import GoldTree

IGNORED = ("TOP", "ROOT", "S1")  # brackets around every sentence
SAME = {"PRT": "ADVP"}


class EvalbScores(NamedTuple):
    """Agreement with a treebank; all NaN without a sentence."""

    precision: float
    recall: float
    f1: float
    complete: float  # share of sentences whose brackets are those of the gold tree
    crossing: float  # mean number of crossing brackets of a sentence
    no_crossing: float  # share of sentences without
    few_crossing: float  # share of sentences with at most two
    tagging: float  # share of words whose tag is right; NaN if trees have no tags


def evalb_scores(
    predicted: Sequence[GoldTree],
    gold: Sequence[GoldTree],
    *,
    labelled: bool = True,
    same: Mapping[str, str] = SAME,
    ignored: Collection[str] = IGNORED,
    longest: int | None = None,
) -> EvalbScores:
    """The summary of EVALB, as fractions of 1.

    For COLLINS.prm both sides are read with ``tags="collins"``, which drops the words that it does:
    ``evalb_scores(parse_brackets(output, tags="collins"), parse_brackets(gold, tags="collins"))``.
    EVALB leaves out sentences whose words differ; here they are refused.

    Args:
        predicted: a tree for each sentence, such as the output of a parser.
        gold: the trees to find, over the same words.
        labelled: whether labels must agree, or spans alone.
        same: label or tag -> the one that it counts as; PRT is ADVP in COLLINS.prm.
        ignored: labels whose brackets count on neither side.
        longest: leaves out sentences of more words, 40 in EVALB's second table. It counts the words
            of the trees, EVALB punctuation too.

    Returns:
        ``EvalbScores``.

    Raises:
        ValueError: if the numbers of trees, or the words of a pair, differ.

    >>> from zoo.ordered.treebank import parse_brackets
    >>> gold = parse_brackets("(S (NP (DT the) (NN dog)) (VP (VBZ barks)))")
    >>> predicted = parse_brackets("(S (DT the) (VP (NN dog) (VP (VBZ barks))))")
    >>> scores = evalb_scores(predicted, gold)
    >>> scores.recall, scores.crossing, scores.tagging
    (0.66..., 1.0, 1.0)

    Reference: EVALB's README, sections 4 and 7.
    """
    if len(predicted) != len(gold):
        raise ValueError(
            f"evalb_scores: needs one predicted tree for each of {len(gold)} gold trees, "
            f"got {len(predicted)}"
        )
    if longest is not None:
        _checks.count("evalb_scores: longest", longest, at_least=1)
    rows, tagged = [], True
    for number, (ours, theirs) in enumerate(zip(predicted, gold, strict=True)):
        if ours.words != theirs.words:
            place = next(
                (
                    i
                    for i, (a, b) in enumerate(zip(ours.words, theirs.words, strict=False))
                    if a != b
                ),
                min(len(ours.words), len(theirs.words)),
            )
            a, b = (" ".join(tree.words[place : place + 3]) for tree in (ours, theirs))
            raise ValueError(
                f"evalb_scores: trees of the same words are compared, got {a!r} for {b!r} at word "
                f"{place} of sentence {number}, {len(ours.words)} words for {len(theirs.words)}; "
                "read both with the same tags="
            )
        if longest is not None and len(theirs.words) > longest:
            continue
        found, wanted = (_brackets(tree, labelled, same, ignored) for tree in (ours, theirs))
        tagged = tagged and bool(ours.tags and theirs.tags)
        tags = zip(ours.tags, theirs.tags, strict=False)
        rows.append(
            (
                (found & wanted).total(),
                found.total(),
                wanted.total(),
                found == wanted,
                _crossing(found, wanted),
                sum(same.get(a, a) == same.get(b, b) for a, b in tags),
                len(theirs.words),
            )
        )
    if not rows:
        return EvalbScores(*[float("nan")] * len(EvalbScores._fields))
    shared, found, wanted, complete, crossing, right, words = np.array(rows).T
    return EvalbScores(
        *from_counts(int(shared.sum()), int(found.sum()), int(wanted.sum())),
        complete=float(complete.mean()),
        crossing=float(crossing.mean()),
        no_crossing=float((crossing == 0).mean()),
        few_crossing=float((crossing <= 2).mean()),
        tagging=float(right.sum() / words.sum()) if tagged else float("nan"),
    )


def _brackets(
    tree: GoldTree, labelled: bool, same: Mapping[str, str], ignored: Collection[str]
) -> collections.Counter[tuple[str, int, int]]:
    return collections.Counter(
        (same.get(label, label) if labelled else "", start, end)
        for label, start, end in tree.constituents
        if label not in ignored
    )


def _crossing(found: collections.Counter, wanted: collections.Counter) -> int:
    spans = {(start, end) for _, start, end in wanted}
    return sum(
        count
        for (_, i, j), count in found.items()
        if any(a < i < b < j or i < a < j < b for a, b in spans)
    )
