"""Scores of parsers against EVALB itself, with COLLINS.prm and both sides in one file each.

The numbers are those that it printed for these pairs; its percentages have two digits.
"""

import pytest

from zoo.ordered import evalb_scores, read_treebank
from zoo.ordered.treebank import GoldTree, parse_brackets

PAIRS = [  # gold, predicted
    ("(TOP (S (NP (DT the) (NN dog)) (VP (VBZ barks)) (. .)))",) * 2,
    (
        "(TOP (S (NP (DT the) (NN dog)) (VP (VBZ barks) (PRT (RP on))) (. .)))",
        "(TOP (S (DT the) (VP (NN dog) (VP (VBZ barks) (ADVP (RP on)))) (. .)))",
    ),
    (  # equal brackets: as many match as both have
        "(TOP (S (NP (NP (NP (PRP it)))) (VP (VBD fell) (NP-TMP (NN today)))))",
        "(TOP (S (NP (NP (PRP it))) (VP (VBD fell) (ADVP (NN today)))))",
    ),
    (
        "(TOP (S (NP-SBJ (NP (NN sale)) (PP (IN of) (NP ($ $) (CD 9)))) (VP (VBZ is) (JJ up))))",
        "(TOP (S (NP (NN sale)) (IN of) (FRAG (NP ($ $)) (VP (CD 9) (VBZ is))) (ADJP (JJ up))))",
    ),
    (  # three brackets cross; two tags are wrong
        "(TOP (S (X (NN a) (NN b)) (X (NN c) (NN d)) (X (NN e) (NN f))))",
        "(TOP (S (NN a) (X (VB b) (NN c)) (X (NN d) (X (X (VB e)))) (X (X (NN f)))))",
    ),
]


def perturbed(number, tree):
    """Some brackets dropped, some given another label, some tags changed."""
    spans = [
        ("XX" if (7 * i + number) % 11 == 0 else label, start, end)
        for i, (label, start, end) in enumerate(tree.constituents)
        if i == 0 or (7 * i + number) % 5
    ]
    tags = ["NN" if (i + number) % 13 == 0 else tag for i, tag in enumerate(tree.tags)]
    return GoldTree(tree.words, tuple(spans), tuple(tags))


def right_branching(number, tree):
    """The same labels for every sentence, in turn."""
    n = len(tree.words)
    spans = [(("S", "VP", "NP")[i % 3], i, n) for i in range(n)]
    return GoldTree(tree.words, tuple(spans), tree.tags)


def read(texts):
    return parse_brackets("\n".join(texts), tags="collins")


@pytest.mark.parametrize(
    ("pair", "shared", "predicted", "gold", "crossing", "right"),
    [
        (0, 3, 3, 3, 0, 3),
        (1, 3, 4, 4, 1, 4),
        (2, 4, 5, 6, 0, 3),
        (3, 2, 6, 6, 2, 6),
        (4, 1, 7, 4, 2, 4),
    ],
)
def test_sentences(pair, shared, predicted, gold, crossing, right):
    trees, others = (read([text]) for text in PAIRS[pair])
    scores = evalb_scores(others, trees)
    assert scores[:2] == (shared / predicted, shared / gold)
    assert scores.complete == (shared == predicted == gold)
    assert scores.crossing == crossing
    assert scores.tagging == right / len(trees[0].words)


def test_summary():
    gold, predicted = map(read, zip(*PAIRS, strict=True))
    percent = (52.00, 56.52, 54.17, 20.00, 100.00, 40.00, 100.00, 90.91)
    found = [100 * score for score in evalb_scores(predicted, gold)]
    assert found == pytest.approx(percent, abs=0.005)
    short = evalb_scores(predicted, gold, longest=3)
    assert short == evalb_scores([predicted[0], predicted[2]], [gold[0], gold[2]])
    unlabelled = evalb_scores(predicted[2:3], gold[2:3], labelled=False)
    assert unlabelled[:2] == (1, 5 / 6)
    strict = evalb_scores(predicted[1:2], gold[1:2], same={}, ignored=("S",))
    assert strict.recall == 2 / 4  # TOP and VP; ADVP is not PRT


# Precision, recall, F1, complete, crossing, without, at most two, tags; of all and of 40 words.
WSJ = {
    perturbed: (
        (91.12, 73.91, 81.62, 0.75, 0.00, 100.00, 100.00, 93.57),
        (91.15, 73.94, 81.65, 0.78, 0.00, 100.00, 100.00, 93.58),
    ),
    right_branching: (
        (12.48, 14.51, 13.42, 0.00, 1110, 2.50, 10.25, 100.00),
        (12.78, 14.91, 13.77, 0.00, 1043, 2.59, 10.62, 100.00),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", WSJ)
def test_the_wall_street_journal(data_directory, change):
    path = data_directory / "wsj_treebank_sample" / "treebank.zip"
    if not path.exists():
        pytest.skip(f"put NLTK's treebank.zip at {path}")
    gold = read_treebank(path, tags="collins")[:400]
    predicted = [change(number, tree) for number, tree in enumerate(gold)]
    for longest, expected in zip((None, 40), WSJ[change], strict=True):
        scores = evalb_scores(predicted, gold, longest=longest)
        for score, percent in zip(scores, expected, strict=True):
            assert 100 * score == pytest.approx(percent, abs=0.5 if percent > 100 else 0.006)


def test_chinese():
    text = "(IP (NP (PN 我)) (VP (VV 爱) (NP (NN 书))) (PU 。))"
    gold = parse_brackets(text, tags="chinese")
    flat = parse_brackets("(IP (NP (PN 我)) (VV 爱) (NP (NN 书)) (PU 。))", tags="chinese")
    assert evalb_scores(flat, gold)[:3] == (1, 3 / 4, 6 / 7)


def test_without_sentences_or_tags_and_what_is_refused():
    tree = GoldTree(("a", "b"), (("S", 0, 2),))
    assert all(score != score for score in evalb_scores([], []))
    assert evalb_scores([tree], [tree])[:4] == (1, 1, 1, 1)
    assert evalb_scores([tree], [tree]).tagging != evalb_scores([tree], [tree]).tagging
    with pytest.raises(ValueError, match="for each of 1 gold trees, got 0"):
        evalb_scores([], [tree])
    for words, got in ((("a", "c"), "got 'c' for 'b' at word 1"), (("a",), "got '' for 'b'")):
        with pytest.raises(ValueError, match=f"{got}.* of sentence 0.*same tags="):
            evalb_scores([tree._replace(words=words)], [tree])
    with pytest.raises(ValueError, match="longest must be at least 1, got 0"):
        evalb_scores([tree], [tree], longest=0)
