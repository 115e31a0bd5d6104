"""Damaged, mutated and random treebanks: documented errors alone, and what is read is consistent.

``ZOO_FUZZ=100000 python -m pytest tests/ordered/test_fuzz.py`` tries so many files of each kind.
"""

import gzip
import io
import os
import zipfile

import numpy as np
import pytest

from tests.edits import edited
from zoo.ordered import read_treebank, tree_spans
from zoo.ordered.trees import tree_words

COUNT = int(os.environ.get("ZOO_FUZZ", "300"))
ENGLISH = "# 1 (a)\n( (S (NP-SBJ (DT The) (NN dog)) (VP (VBD barked)) (-NONE- *) (. .)) )\n" * 2
CHINESE = "\ufeff<S ID=1>\n(IP (NP (PN 她)) (VP (VV 笑) (NP=2 (NN 　))) (PU 。))\n</S>\n"
PARTS = [
    *(
        "(",
        ")",
        "((",
        "))",
        ") (",
        " ",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "\\(",
        "\\)",
        "\\",
        "\ufeff",
        "\u2028",
    ),
    *("(NN a)", "(. .)", "(S ", "()", "#", "%%", "<", "*x*", "-NONE-", "NP-", "=", "|", "(" * 2000),
]


def archived(text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.mrg", text)
        archive.writestr("a/2.mrg", text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("ending", "text", "encoding", "pack"),
    [
        (".mrg", ENGLISH, "utf-8", bytes),
        (".mrg", CHINESE, "utf-8", bytes),
        (".mrg", CHINESE, "gb18030", bytes),
        (".mrg.gz", ENGLISH, "utf-8", gzip.compress),
        (".zip", ENGLISH, "utf-8", archived),
    ],
    ids=["english", "chinese", "gb18030", "gz", "zip"],
)
def test_a_treebank_is_read_or_refused(tmp_path, ending, text, encoding, pack):
    path, random, refusals = tmp_path / f"bank{ending}", np.random.default_rng(0), []
    content = text.encode(encoding, "ignore" if encoding == "gb18030" else "strict")
    parts = [part.encode(encoding, "ignore") for part in PARTS]
    tags = "chinese" if text == CHINESE else "penn"
    for _ in range(COUNT):
        # Within the archive as well as around it.
        inner = (
            edited(random, content, parts) if pack is bytes or random.random() < 0.5 else content
        )
        data = inner if pack is bytes else edited(random, pack(inner), parts)
        path.write_bytes(data)
        try:
            trees = read_treebank(path, tags=tags, encoding=encoding)
        except ValueError as error:
            refusals.append(str(error))
            continue
        assert trees
        for tree in trees:
            n = len(tree.words)
            assert n == len(tree.tags) > 0
            assert all(0 <= i < j <= n and label for label, i, j in tree.constituents)
            assert tree_words(tree.tree) == list(tree.words)
            assert tree_spans(tree.tree) == tree.brackets.spans
    assert all(str(path) in refusal for refusal in refusals)
    assert 0.1 * COUNT < len(refusals) < COUNT
