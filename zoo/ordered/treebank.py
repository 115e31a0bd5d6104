"""Gold trees from files in the bracket format of the Penn Treebank.

    ( (S (NP-SBJ (DT The) (NN dog)) (VP (VBD barked)) (. .)) )

As published scores have it, only words are kept: punctuation, currency signs and empty elements
(traces) go, and with them the constituents that are left without a word; a label loses its function
tags (NP-SBJ-1 is NP).

Source: Mitchell Marcus, Beatrice Santorini, Mary Ann Marcinkiewicz, «Building a Large Annotated
Corpus of English: The Penn Treebank», 1993, Computational Linguistics 19(2).
"""

import os
import pathlib
import re
import zipfile
from collections.abc import Collection, Iterator
from typing import NamedTuple

from zoo.ordered.trees import Tree, spans_to_tree

# The tags of words; all others are those of punctuation, signs and empty elements.
WORD_TAGS = frozenset(
    re.split(
        " ",
        "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO "
        "UH VB VBD VBG VBN VBP VBZ WDT WP WP$ WRB",
    )
)


NEVER_CLOSED = "this bracket is never closed"


class GoldTree(NamedTuple):
    """A sentence with its labelled constituents."""

    words: tuple[str, ...]
    constituents: tuple[tuple[str, int, int], ...]  # label, start, end (half-open), as they open
    tags: tuple[str, ...] = ()  # one a word, where the treebank has them

    @property
    def tree(self) -> Tree:
        """The tree without labels, a word or nested lists; brackets of one part are left out."""
        return spans_to_tree(self.words, {(start, end) for _, start, end in self.constituents})


def parse_brackets(text: str, *, name: str = "text") -> list[GoldTree]:
    """Reads trees in bracket format, with all that they hold.

    Args:
        text: any number of trees.
        name: of the text, for messages.

    Returns:
        The trees as written: empty elements, punctuation and function tags are there still.

    Raises:
        ValueError: if a bracket is malformed; the message names line and column.

    >>> parse_brackets("(S (NP (DT The) (NN dog)) (VP (VBD barked)))")[0].constituents
    (('S', 0, 3), ('NP', 0, 2), ('VP', 2, 3))
    """
    trees = []
    words: list[str] = []
    tags: list[str] = []
    # Label, first word and end, in the order in which they open.
    constituents: list[tuple[str, int, int]] = []
    opened: list[tuple[str, int, int]] = []  # label, offset, position in constituents
    tokens = list(re.finditer(r"[()]|[^\s()]+", text))
    kinds = [*(token[0] if token[0] in "()" else "text" for token in tokens), "end"]
    i = 0

    def wrong(offset: int, what: str) -> ValueError:
        line, column = text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
        return ValueError(f"{name}, line {line}, column {column}: {what}")

    while i < len(tokens):
        token, offset = tokens[i][0], tokens[i].start()
        if token == "(":
            if kinds[i + 1 : i + 4] == ["text", "text", ")"]:
                if not opened:
                    raise wrong(offset, "a word needs a bracket around it and its tag")
                tags.append(tokens[i + 1][0])
                words.append(tokens[i + 2][0])
                i += 4
                continue
            labelled = kinds[i + 1] == "text"
            label = tokens[i + 1][0] if labelled else ""
            if kinds[i + 1 + labelled] == ")":
                raise wrong(offset, "this bracket holds nothing, expected (TAG word) or brackets")
            if kinds[i + 1 + labelled] == "text":
                if kinds[i + 3] == "end":
                    raise wrong(offset, NEVER_CLOSED)
                word, after = tokens[i + 2][0], tokens[i + 3]
                raise wrong(
                    after.start(), f"expected ')' after the word {word!r}, got {after[0]!r}"
                )
            opened.append((label, offset, len(constituents)))
            constituents.append((label, len(words), -1))
            i += 1 + labelled
        elif token == ")":
            if not opened:
                raise wrong(offset, "this ')' closes nothing")
            label, _, position = opened.pop()
            constituents[position] = (label, constituents[position][1], len(words))
            if not opened:
                named = tuple(c for c in constituents if c[0])
                trees.append(GoldTree(tuple(words), named, tuple(tags)))
                words, tags, constituents = [], [], []
            i += 1
        else:
            where = "beside brackets" if opened else "outside of any bracket"
            raise wrong(offset, f"{token!r} stands {where}, expected '(' or ')'")
    if opened:
        raise wrong(opened[-1][1], NEVER_CLOSED)
    return trees


def keep_words(tree: GoldTree, tags: Collection[str] = WORD_TAGS) -> GoldTree | None:
    """The tree as published scores have it: words alone, labels without function tags.

    Args:
        tree: as :func:`parse_brackets` reads it.
        tags: of the words that stay.

    Returns:
        The tree over these words; None if there are none.

    >>> raw = parse_brackets("(S (NP (-NONE- *)) (VP (VB Stop) (NP (DT the) (NN fun))) (. !))")
    >>> keep_words(raw[0]).constituents
    (('S', 0, 3), ('VP', 0, 3), ('NP', 1, 3))
    """
    kept = [tag in tags for tag in tree.tags]
    before = [0]
    for stays in kept:
        before.append(before[-1] + stays)
    constituents = tuple(
        (re.split("[-=|]", label)[0] or label, before[start], before[end])
        for label, start, end in tree.constituents
        if before[start] < before[end]
    )
    pairs = [
        pair
        for pair, stays in zip(zip(tree.words, tree.tags, strict=True), kept, strict=True)
        if stays
    ]
    if not pairs:
        return None
    words, word_tags = zip(*pairs, strict=True)
    return GoldTree(words, constituents, word_tags)


def read_treebank(path: str | os.PathLike[str]) -> list[GoldTree]:
    """Reads the gold trees of a treebank, see :func:`keep_words`.

    Args:
        path: a file of trees; a folder or a zip archive, whose files ``*.mrg`` are read in the
            order of their names, archives without unpacking. ``~`` and environment variables are
            expanded.

    Returns:
        A tree for each sentence that holds a word.

    Raises:
        OSError: if there is no such file; ValueError: if there is no tree in it or a bracket is
            malformed; the message names file, line and column.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "wsj_0001.mrg").write_text("( (S (UH Yes) (. .)))")
    ...     read_treebank(folder)
    [GoldTree(words=('Yes',), constituents=(('S', 0, 1),), tags=('UH',))]
    """
    path = pathlib.Path(os.path.expandvars(path)).expanduser()
    trees = [
        gold
        for name, data in _files(path)
        for tree in parse_brackets(_text(name, data), name=name)
        if (gold := keep_words(tree)) is not None
    ]
    if not trees:
        raise ValueError(f"{path} holds no tree; a folder or an archive needs files named *.mrg")
    return trees


def _files(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file of trees."""
    if path.is_dir():
        for file in sorted(path.rglob("*.mrg")):
            yield str(file), file.read_bytes()
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".mrg"):
                    yield f"{path}/{name}", archive.read(name)
    else:
        yield str(path), path.read_bytes()


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 at byte offset {error.start}") from error
