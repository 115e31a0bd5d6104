"""Gold trees from files in the bracket format of the Penn Treebank.

    ( (S (NP-SBJ (DT The) (NN dog)) (VP (VBD barked)) (. .)) )

As published scores have it, only words are kept: punctuation, currency signs and empty elements
(traces) go, and with them the constituents that are left without a word; a label loses its function
tags (NP-SBJ-1 is NP). What counts as a word is told by its tag, so each tag set has its own list.

Sources: Mitchell Marcus, Beatrice Santorini, Mary Ann Marcinkiewicz, "Building a Large Annotated
Corpus of English: The Penn Treebank", 1993, Computational Linguistics 19(2); Naiwen Xue, Fei Xia,
Fu-Dong Chiou, Martha Palmer, "The Penn Chinese TreeBank", 2005, Natural Language Engineering 11(2).
"""

import dataclasses
import fnmatch
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple, TypeAlias

from zoo.data.archives import read_zip
from zoo.data.lines import DECOMPRESSORS, read_bytes
from zoo.ordered.trees import Brackets, Tree, spans_to_tree

Tags: TypeAlias = str | Collection[str] | Callable[[str], bool]

_ENGLISH = (
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH "
    "VB VBD VBG VBN VBP VBZ WDT WP WP$ WRB ADD AFX GW XX"  # the last four in web texts
)
_CHINESE = (
    "AD AS BA CC CD CS DEC DEG DER DEV DT EM ETC FW IC IJ JJ LB LC M MSP NN NOI NR NT OD ON P PN "
    "SB SP URL VA VC VE VV X"
)
_UNIVERSAL = (
    "ADJ ADP ADV AUX CCONJ CONJ DET INTJ NOUN NUM PART PRON PROPN PRT SCONJ VERB X"  # CONJ, PRT: v1
)
# Name -> tags of the words that stay, and of what goes.
TAG_SETS = {
    "penn": (_ENGLISH, "# $ . , : `` '' -LRB- -RRB- -NONE- HYPH NFP"),
    # What EVALB's parameter file COLLINS.prm leaves, which most published scores of parsers use.
    "collins": (f"{_ENGLISH} # $ -LRB- -RRB- HYPH NFP", ". , : `` '' -NONE-"),
    "chinese": (_CHINESE, "PU -NONE-"),
    "universal": (_UNIVERSAL, "PUNCT SYM . -NONE-"),
}
# Of lines between trees: of CoNLL and many tools, of NEGRA, of the Penn and the Chinese Treebank.
COMMENTS = ("#", "%%", "*x*", "<")

_BLANKS = " \t\r\f\v\ufeff"  # of ASCII, as words may hold others; and byte order marks
_TOKEN = re.compile(rf"[()]|(?:\\[()]|[^(){_BLANKS}])+")


class GoldTree(NamedTuple):
    """A sentence with its labelled constituents."""

    words: tuple[str, ...]
    constituents: tuple[tuple[str, int, int], ...]  # label, start, end (half-open), as they open
    tags: tuple[str, ...] = ()  # one per word, where the treebank has them

    @property
    def tree(self) -> Tree:
        """The tree without labels, a word or nested lists; brackets of one part are left out."""
        return spans_to_tree(self.words, {(start, end) for _, start, end in self.constituents})

    @property
    def brackets(self) -> Brackets:
        """What is compared of the tree."""
        n = len(self.words)
        return Brackets(n, {(i, j) for _, i, j in self.constituents if 1 < j - i < n})


def parse_brackets(
    text: str,
    *,
    name: str = "text",
    tags: Tags = "penn",
    comments: Collection[str] = COMMENTS,
) -> list[GoldTree]:
    r"""Reads trees in bracket format, without the words and constituents that scores leave out.

    Blanks are those of ASCII; ``\(`` and ``\)`` are part of a word.

    Args:
        text: any number of trees, nested to any depth.
        name: of the text, for messages.
        tags: of the words that stay. The name of a tag set: ``"penn"``, ``"collins"`` (with the
            parentheses and currency signs that EVALB's COLLINS.prm counts), ``"chinese"`` (the Penn
            Chinese Treebank) or ``"universal"``; a tag that is not in the set is refused, as its
            words would be left out without notice. Or a collection of tags, or ``tag -> bool``,
            which decide alone.
        comments: how the lines begin that are passed over between trees; none inside a tree, and no
            line of SGML that holds a bracket.

    Returns:
        A tree for each sentence that holds such a word.

    Raises:
        ValueError: if a bracket is malformed or a tag is unknown; the message names the line.

    >>> text = "(S (NP (-NONE- *)) (VP (VB Stop) (NP (DT the) (NN fun))) (. !))"
    >>> parse_brackets(text)[0].constituents
    (('S', 0, 3), ('VP', 0, 3), ('NP', 1, 3))
    >>> parse_brackets("# 1\n(IP (NP (PN 她)) (VP (VV 笑)) (PU 。))", tags="chinese")[0].words
    ('她', '笑')
    """
    reader, number = _Reader(_keeps(tags)), 0
    try:
        for number, line in enumerate(text.split("\n"), start=1):
            start = line.lstrip(_BLANKS)
            comment = start.startswith(tuple(comments)) and not re.match(r"<.*\(", start)
            if reader.opened or not comment:
                for token in _TOKEN.findall(line):
                    reader.read(token, number)
        if reader.opened:
            number = reader.opened[0].line
            raise ValueError("a bracket opens that is never closed")
    except ValueError as error:
        raise ValueError(f"{name}, line {number}: {error}") from error
    return reader.trees


@dataclasses.dataclass
class _Bracket:
    """What was read of a bracket that is open."""

    line: int
    start: int  # words before it
    label: str = ""
    word: str | None = None
    place: int | None = None  # among the constituents, once it holds a bracket


class _Reader:
    """Makes trees of tokens, one after the other and without recursion."""

    def __init__(self, keeps: Callable[[str], bool]) -> None:
        self._keeps = keeps
        self.trees: list[GoldTree] = []
        self.opened: list[_Bracket] = []
        self._words: list[str] = []
        self._tags: list[str] = []
        self._constituents: list[tuple[str, int, int]] = []

    def read(self, token: str, line: int) -> None:
        top = self.opened[-1] if self.opened else None
        if token == "(":
            if top is not None and top.word is not None:
                raise ValueError(_expected(f"({top.label} {top.word} ("))
            if top is not None and top.place is None:
                top.place = len(self._constituents)
                self._constituents.append(("", 0, 0))  # until it closes
            self.opened.append(_Bracket(line, len(self._words)))
        elif top is None:
            raise ValueError(f"expected a bracket that opens, or a comment, got {token!r:.80}")
        elif token == ")":
            self._close(self.opened.pop())
        elif top.place is not None or top.word is not None:
            raise ValueError(_expected(token))
        elif top.label:
            top.word = token
        else:
            top.label = token

    def _close(self, bracket: _Bracket) -> None:
        if bracket.word is not None:
            if not self.opened:
                raise ValueError(
                    "a word needs a bracket around it and its tag, got "
                    f"{f'({bracket.label} {bracket.word})':.80}"
                )
            if self._keeps(bracket.label):
                self._words.append(bracket.word)
                self._tags.append(bracket.label)
            return
        if bracket.place is None:
            raise ValueError(_expected(f"({bracket.label})"))
        label = re.split("[-=|]", bracket.label)[0] or bracket.label
        self._constituents[bracket.place] = label, bracket.start, len(self._words)
        if not self.opened:
            named = tuple(c for c in self._constituents if c[0] and c[1] < c[2])
            if self._words:
                self.trees.append(GoldTree(tuple(self._words), named, tuple(self._tags)))
            self._words, self._tags, self._constituents = [], [], []


def _expected(got: str) -> str:
    return f"expected (TAG word) or brackets inside a bracket, got {got:.80}"


def _keeps(tags: Tags) -> Callable[[str], bool]:
    """Whether the word of a tag stays; raises ValueError for one that is not in a named set."""
    if callable(tags):
        return tags
    if not isinstance(tags, str):
        return frozenset(tags).__contains__
    if tags not in TAG_SETS:
        raise ValueError(
            f"tags must be one of {', '.join(map(repr, TAG_SETS))}, a collection of tags, or a "
            f"function of a tag, got {tags!r:.80}"
        )
    words, others = (frozenset(names.split()) for names in TAG_SETS[tags])

    def keeps(tag: str) -> bool:
        # Where annotators could not decide, the treebank has two, JJ|NN, and their word goes.
        if tag not in words and not {*tag.split("|")} & (words | others):
            raise ValueError(
                f"expected a tag of the tag set {tags!r}, got {tag!r:.80}; for others pass tags=, "
                f"one of {', '.join(map(repr, TAG_SETS))}, or the tags of the words that stay"
            )
        return tag in words

    return keeps


def read_treebank(
    path: str | os.PathLike[str],
    *,
    tags: Tags = "penn",
    encoding: str = "utf-8",
    pattern: str = "*.mrg",
    comments: Collection[str] = COMMENTS,
) -> list[GoldTree]:
    """Reads the gold trees of a treebank, see :func:`parse_brackets`.

    Args:
        path: a file of trees; a folder or a zip archive, of which the files that match ``pattern``
            are read in the order of their names, archives without unpacking. ``~`` and environment
            variables are expanded; ``.gz``, ``.xz`` and ``.bz2`` are decompressed.
        tags: of the words that stay: ``"penn"``, ``"collins"``, ``"chinese"``, ``"universal"``, a
            collection of tags or a function of a tag, see :func:`parse_brackets`.
        encoding: of the files, such as ``"gb18030"`` for the first Chinese Treebanks; a byte order
            mark is no part of the text.
        pattern: of the names of files in a folder or an archive, without ``.gz``.
        comments: how the lines begin that are passed over between trees.

    Returns:
        A tree for each sentence that holds a word.

    Raises:
        OSError: if there is no such file; ValueError: if there is no tree in it, a bracket is
            malformed, a tag unknown, or a file damaged or of another encoding; the message names
            file and line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "wsj_0001.mrg").write_text("( (S (UH Yes) (. .)))")
    ...     read_treebank(folder)
    [GoldTree(words=('Yes',), constituents=(('S', 0, 1),), tags=('UH',))]
    """
    path = pathlib.Path(os.path.expandvars(path)).expanduser()
    trees: list[GoldTree] = []
    for name, data in _files(path, pattern):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not {encoding.upper()} at byte offset {error.start}; pass its encoding="
            ) from error
        except LookupError as error:
            raise ValueError(f"encoding must be one that Python knows, got {encoding!r}") from error
        trees += parse_brackets(text, name=name, tags=tags, comments=comments)
    if not trees:
        raise ValueError(
            f"{path} holds no tree; in a folder or an archive files must match {pattern!r}"
        )
    return trees


def _files(path: pathlib.Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file of trees."""

    def matches(name: str) -> bool:
        stem, ending = os.path.splitext(os.path.basename(name))
        return fnmatch.fnmatchcase(
            stem if ending.lower() in DECOMPRESSORS else stem + ending, pattern
        )

    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if matches(file.name) and file.is_file():
                yield str(file), bytes(read_bytes(file))
    elif path.suffix.lower() == ".zip":
        yield from ((f"{path}/{name}", data) for name, data in read_zip(path, matches))
    else:
        yield str(path), bytes(read_bytes(path))
