"""Gold trees from files in the bracket format of the Penn Treebank.

    ( (S (NP-SBJ (DT The) (NN dog)) (VP (VBD barked)) (. .)) )

As published scores have it, only words are kept: punctuation, currency signs and empty elements
(traces) go, and with them the constituents that are left without a word; a label loses its function
tags (NP-SBJ-1 is NP).

Source: Mitchell Marcus, Beatrice Santorini, Mary Ann Marcinkiewicz, "Building a Large Annotated
Corpus of English: The Penn Treebank", 1993, Computational Linguistics 19(2).
"""

import os
import pathlib
import re
import zipfile
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from zoo.extras import require
from zoo.ordered.trees import Brackets, Tree, spans_to_tree

_WORD_TAGS = (
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH "
    "VB VBD VBG VBN VBP VBZ WDT WP WP$ WRB"
)
WORD_TAGS = frozenset(_WORD_TAGS.split())
OTHER_TAGS = frozenset(("#", "$", ".", ",", ":", "``", "''", "-LRB-", "-RRB-", "-NONE-"))


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
    text: str, *, name: str = "text", tags: Collection[str] = WORD_TAGS
) -> list[GoldTree]:
    """Reads trees in bracket format, without the words and constituents that scores leave out.

    Args:
        text: any number of trees.
        name: of the text, for messages.
        tags: of the words that stay. With those of the Penn Treebank, which are the default, a tag
            that it does not have is refused: its words would be left out without notice.

    Returns:
        A tree for each sentence that holds such a word.

    Raises:
        ImportError: without the extra ``data``, for NLTK; ValueError: if a bracket is malformed or
            nested too deeply, or a tag is unknown; the message names the line.

    >>> text = "(S (NP (-NONE- *)) (VP (VB Stop) (NP (DT the) (NN fun))) (. !))"
    >>> parse_brackets(text)[0].constituents
    (('S', 0, 3), ('VP', 0, 3), ('NP', 1, 3))
    """
    nltk_tree = require("nltk.tree", "data").Tree
    split = require("nltk.tokenize", "data").SExprTokenizer().tokenize
    trees, start, end = [], 0, 0
    try:
        for block in filter(None, map(str.strip, split(text))):
            start = text.index(block, end)
            end = start + len(block)
            trees.append(_read_tree(nltk_tree.fromstring(block), tags))
    except (ValueError, RecursionError) as error:
        message, *_ = str(error).splitlines()
        if isinstance(error, RecursionError):
            message = "brackets are nested too deeply to be a sentence"
        if unmatched := re.fullmatch(r"(Un-matched .*) at char (\d+)", message):
            message, start = unmatched[1], int(unmatched[2])
        line = text.count("\n", 0, start) + 1
        raise ValueError(f"{name}, line {line}: {message}") from error
    return [tree for tree in trees if tree.words]


def _read_tree(root: Any, tags: Collection[str]) -> GoldTree:
    """An ``nltk.Tree`` as a gold tree."""
    words: list[str] = []
    word_tags: list[str] = []
    constituents: list[tuple[str, int, int]] = []

    def read(node: Any) -> None:
        if isinstance(node, str) or not len(node):
            raise ValueError(f"expected (TAG word) or brackets inside a bracket, got {node!s:.80}")
        if len(node) == 1 and isinstance(node[0], str):
            tag = node.label()
            if tag in tags:
                words.append(node[0])
                word_tags.append(tag)
            # Where annotators could not decide, the treebank has two: JJ|NN.
            elif tags is WORD_TAGS and not {*tag.split("|")} & (WORD_TAGS | OTHER_TAGS):
                raise ValueError(
                    f"expected a tag of the Penn Treebank, got {tag!r:.80}; for other tag sets "
                    "pass tags=, those of the words that stay"
                )
            return
        position, start = len(constituents), len(words)
        constituents.append(("", start, start))
        for child in node:
            read(child)
        label = re.split("[-=|]", node.label())[0] or node.label()
        constituents[position] = (label, start, len(words))

    if len(root) == 1 and isinstance(root[0], str):
        raise ValueError(f"a word needs a bracket around it and its tag, got {root!s:.80}")
    read(root)
    named = tuple(c for c in constituents if c[0] and c[1] < c[2])
    return GoldTree(tuple(words), named, tuple(word_tags))


def read_treebank(
    path: str | os.PathLike[str], *, tags: Collection[str] = WORD_TAGS
) -> list[GoldTree]:
    """Reads the gold trees of a treebank, see :func:`parse_brackets`.

    Args:
        path: a file of trees; a folder or a zip archive, whose files ``*.mrg`` are read in the
            order of their names, archives without unpacking. ``~`` and environment variables are
            expanded.
        tags: of the words that stay, see :func:`parse_brackets`.

    Returns:
        A tree for each sentence that holds a word.

    Raises:
        OSError: if there is no such file; ValueError: if there is no tree in it or a bracket is
            malformed; the message names file and line; ImportError: without the extra ``data``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "wsj_0001.mrg").write_text("( (S (UH Yes) (. .)))")
    ...     read_treebank(folder)
    [GoldTree(words=('Yes',), constituents=(('S', 0, 1),), tags=('UH',))]
    """
    require("nltk.tree", "data")  # named before files are looked for
    path = pathlib.Path(os.path.expandvars(path)).expanduser()
    trees: list[GoldTree] = []
    for name, data in _files(path):
        try:
            # A byte order mark is no part of the text.
            trees += parse_brackets(data.decode("utf-8-sig"), name=name, tags=tags)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8 at byte offset {error.start}") from error
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
