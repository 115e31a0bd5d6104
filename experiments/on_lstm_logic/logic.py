"""Pairs of formulas of propositional logic and the relation between them.

A formula is a word tree, written with parentheses as tokens of their own:

    a,   ( not A ),   ( A ( and B ) ),   ( A ( or B ) )

It stands for the set of truth assignments that satisfy it, and seven relations tell how the set of
a premise lies to that of a hypothesis:

    = equal   < inside   > around   ^ complements   | disjoint   v together everything   # none

Formulas that are always or never true are left out, and a pair speaks of at most four of the six
variables, else nearly all pairs would be #. A builtin corpus is drawn; the published one is read.

Source: Samuel Bowman, Christopher Manning, Christopher Potts, "Tree-structured composition in
neural networks without tree-structured architectures", 2015, arXiv 1506.04834, section 2.
"""

import collections
import pathlib
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from zoo.data.archives import read_tar
from zoo.ordered.treebank import GoldTree
from zoo.ordered.trees import Tree

from ..command_line import local_path

VARIABLES = "abcdef"
TOKENS = ("(", ")", "and", "or", "not", *VARIABLES)
RELATIONS = ("#", "<", ">", "=", "^", "|", "v")

_ASSIGNMENTS = 2 ** len(VARIABLES)
_EVERYTHING = 2**_ASSIGNMENTS - 1
# Bit k of a set is assignment k, whose bit i is the truth of variable i.
_TRUTH = {
    name: sum(1 << k for k in range(_ASSIGNMENTS) if k >> i & 1) for i, name in enumerate(VARIABLES)
}


class Pair(NamedTuple):
    """One example."""

    relation: str
    premise: str
    hypothesis: str


class Corpus(NamedTuple):
    """Examples; the test pairs by number of operators of the longer formula."""

    train: list[Pair]
    valid: list[Pair]
    test: dict[int, list[Pair]]


def open_corpus(
    uri: str, *, train_operators: int, test_operators: int, pairs_per_count: int, seed: int
) -> Corpus:
    """Reads or draws a corpus; every tenth training pair is kept for validation.

    Args:
        uri: ``builtin:logic``; or ``file:PATH`` of a folder or tar archive that holds files
            train0, train1, … and test0, test1, … with lines relation, premise, hypothesis,
            separated by tabs; the number is that of the operators of the longer formula.
        train_operators: the largest such number in training and validation.
        test_operators: the largest in the test.
        pairs_per_count: pairs drawn for each number of operators, if that many differ.
        seed: of the drawn corpus.
    """
    scheme, _, rest = uri.partition(":")
    if uri == "builtin:logic":
        parts = draw_pairs(
            pairs_per_count, seed, train_operators=train_operators, test_operators=test_operators
        )
    elif scheme == "file":
        parts = read_pairs(local_path(rest))
    else:
        raise ValueError(f"data.uri must be builtin:logic or file:PATH, got {uri!r}")
    train = [
        pair
        for (part, number), pairs in sorted(parts.items())
        if part == "train" and number <= train_operators
        for pair in pairs
    ]
    return Corpus(
        train=[pair for i, pair in enumerate(train) if i % 10 != 9],
        valid=train[9::10],
        test={
            number: pairs
            for (part, number), pairs in sorted(parts.items())
            if part == "test" and number <= test_operators
        },
    )


def read_pairs(path: pathlib.Path) -> dict[tuple[str, int], list[Pair]]:
    """The pairs of every file trainN and testN in a folder or a tar archive."""
    parts = {}
    for name, data in _files(path):
        if not (match := re.fullmatch(r"(train|test)(\d+)", pathlib.PurePath(name).name)):
            continue
        pairs = []
        try:
            lines = data.decode().splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}/{name} is not UTF-8: {error}") from error
        if not lines:
            raise ValueError(f"{path}/{name} is empty")
        for number, line in enumerate(lines, start=1):
            where = f"{path}/{name}, line {number}"
            fields = line.split("\t")
            if len(fields) != 3 or fields[0] not in RELATIONS:
                raise ValueError(
                    f"{where}: expected one of {' '.join(RELATIONS)}, premise and hypothesis, "
                    f"separated by tabs, got {line!r}"
                )
            if unknown := set(" ".join(fields[1:]).split()) - set(TOKENS):
                raise ValueError(f"{where}: unknown token {min(unknown)!r}")
            pairs.append(Pair(*fields))
        parts[match[1], int(match[2])] = pairs
    if not {"train", "test"} <= {part for part, _ in parts}:
        raise ValueError(f"{path} must hold files train0, train1, … and test0, test1, …")
    return parts


def _files(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(filter(pathlib.Path.is_file, path.iterdir())):
            yield file.name, file.read_bytes()
        return
    yield from read_tar(path)


def draw_pairs(
    pairs_per_count: int, seed: int, *, train_operators: int, test_operators: int
) -> dict[tuple[str, int], list[Pair]]:
    """Draws different pairs of formulas; of lengths to train on a fifth are for testing."""
    generator = random.Random(seed)
    parts: dict[tuple[str, int], list[Pair]] = collections.defaultdict(list)
    for number in range(test_operators + 1):
        trained = number <= train_operators
        wanted = pairs_per_count if trained else pairs_per_count // 5
        pairs: dict[Pair, None] = {}  # a set in the order of drawing
        for _ in range(10 * wanted):  # there are only 36 pairs of variables
            if len(pairs) < wanted and (pair := _draw_pair(generator, number)):
                pairs[pair] = None
        for i, pair in enumerate(pairs):
            parts["train" if trained and i % 5 else "test", number].append(pair)
    return dict(parts)


def _draw_pair(generator: random.Random, num_operators: int) -> Pair | None:
    """A pair whose longer formula has so many operators; None if one says nothing."""
    variables = generator.sample(VARIABLES, 4)
    shorter = 0  # in the published pairs too, most shorter formulas have none or one
    while shorter < num_operators and generator.random() < 0.5:
        shorter += 1
    counts = [num_operators, shorter]
    generator.shuffle(counts)
    formulas = [_draw_formula(generator, count, variables) for count in counts]
    sets = [truth_set(formula) for formula in formulas]
    if not all(0 < one < _EVERYTHING for one in sets):
        return None
    return Pair(relation(*sets), *map(write_formula, formulas))


def _draw_formula(generator: random.Random, num_operators: int, variables: list[str]) -> Tree:
    if not num_operators:
        return generator.choice(variables)
    rest = num_operators - 1
    if generator.random() < 0.4:
        return ["not", _draw_formula(generator, rest, variables)]
    left = generator.randint(0, rest)
    first, second = (_draw_formula(generator, n, variables) for n in (left, rest - left))
    return [first, [generator.choice(("and", "or")), second]]


def truth_set(formula: Tree) -> int:
    """The assignments that make a formula true, as the bits of a number."""
    if isinstance(formula, str):
        return _TRUTH[formula]
    first, second = formula
    if first == "not":
        return _EVERYTHING & ~truth_set(second)
    operator, second = second
    sets = truth_set(first), truth_set(second)
    return sets[0] & sets[1] if operator == "and" else sets[0] | sets[1]


def relation(premise: int, hypothesis: int) -> str:
    """The relation of two sets of assignments, neither empty nor everything."""
    if premise == hypothesis:
        return "="
    if premise & hypothesis in (premise, hypothesis):
        return "<" if premise & hypothesis == premise else ">"
    disjoint, exhaustive = not premise & hypothesis, premise | hypothesis == _EVERYTHING
    return {(True, True): "^", (True, False): "|", (False, True): "v"}.get(
        (disjoint, exhaustive), "#"
    )


def write_formula(formula: Tree) -> str:
    """The formula as text, with a space between tokens."""
    return formula if isinstance(formula, str) else f"( {' '.join(map(write_formula, formula))} )"


def count_operators(formula: str) -> int:
    """The number of and, or, not in a written formula."""
    return sum(token in ("and", "or", "not") for token in formula.split())


def gold_tree(formula: str) -> GoldTree:
    """The tree that the parentheses of a written formula say, over its other tokens.

    A constituent is called after its operator; ( or B ), the right part of ( A ( or B ) ), is an
    "operand".
    """
    words: list[str] = []
    constituents: list[tuple[str, int, int]] = []
    opened: list[tuple[str, int]] = []
    tokens = formula.split()
    for token, after in zip(tokens, [*tokens[1:], ")"], strict=True):
        if token == "(":
            label = {"not": "not", "and": "operand", "or": "operand"}.get(after, "and, or")
            opened.append((label, len(words)))
        elif token != ")":
            words.append(token)
        elif not opened:
            raise ValueError(f"a parenthesis closes nothing in {formula!r}")
        else:
            constituents.append((*opened.pop(), len(words)))
    if opened:
        raise ValueError(f"a parenthesis is never closed in {formula!r}")
    return GoldTree(tuple(words), tuple(reversed(constituents)))
