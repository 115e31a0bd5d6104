"""``open_source``: what every scheme gives, and what it says about bad input."""

import bz2
import gzip
import hashlib
import importlib.resources
import json
import lzma
import pickle
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data import Pipeline, Source, build_vocabulary, lines, open_source

CHARACTERS = st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])


def texts(source):
    return [example["text"] for example in source]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"file:{path}"

    return write


def test_shakespeare_is_the_text_its_readme_describes():
    source = open_source("builtin:shakespeare")
    text = "\n".join(texts(source)) + "\n"
    assert (len(source), len(text)) == (40_000, 1_115_394)
    readme = importlib.resources.files("zoo.data") / "files" / "README.txt"
    assert hashlib.sha256(text.encode()).hexdigest() in readme.read_text()


def test_digits_and_their_cut_which_is_contiguous_and_complete():
    uri = "builtin:digits"
    parts = [open_source(uri, split=split) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [1617, 90, 90]
    joined = [example for part in parts for example in part]
    assert (joined[0]["image"].dtype, joined[0]["label"].dtype) == (np.float32, np.int32)
    images = np.stack([example["image"] for example in joined])
    assert (images.shape, images.min(), images.max()) == ((1797, 8, 8, 1), 0, 1)
    for one, other in zip(joined, open_source(uri), strict=True):
        np.testing.assert_equal(one, other)
    assert all(isinstance(part, Source) and part.uri == uri for part in parts)


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
@given(content=st.lists(st.text(CHARACTERS, max_size=9), min_size=1))
@settings(max_examples=20, deadline=None)
def test_text_lines_round_trip(tmp_path_factory, ending, content):
    if not any(line.encode().strip() for line in content):
        content = [*content, "x"]
    if content[0].startswith("\ufeff"):  # a byte order mark is not text
        content = ["x", *content]
    data = "\n".join([*content, ""]).encode()
    path = tmp_path_factory.mktemp("text") / f"a.txt{ending}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[ending](data))
    source = open_source(f"file:{path}")
    assert texts(source) == content
    assert texts(pickle.loads(pickle.dumps(source))) == content
    with pytest.raises(IndexError):
        source[len(content)]


def test_line_breaks(write):
    source = open_source(write("a.md", b"\xef\xbb\xbfone\r\ntwo\x0c\xc2\x85\n\nlast\r\r"))
    assert texts(source) == ["one", "two\x0c\x85", "", "last\r"]


def test_lines_across_chunks(write, monkeypatch):
    monkeypatch.setattr(lines, "_CHUNK", 8)
    content = ["", "é" * 30, "a", "bc", "", "ü" * 3, "tail"]
    assert texts(open_source(write("a.txt", "\n".join(content)))) == content
    with pytest.raises(ValueError, match="line 4, byte offset 25 "):
        open_source(write("a.txt", b"x" * 20 + b"\n\n\nab\xfe\n"))


def test_byte_order_marks_where_files_were_joined(write):
    mark = b"\xef\xbb\xbf"
    for name, content, expected in [
        ("a.txt", b"the\n", [{"text": "the"}]),
        ("a.jsonl", b'{"a": 1}\n', [{"a": 1}]),
        ("a.tsv", b"1\t2\n", [{"a": "1", "b": "2"}]),
    ]:
        query = "?columns=a,b" if name == "a.tsv" else ""
        assert list(open_source(write(name, (mark + content) * 2) + query)) == expected * 2
    assert list(open_source(write("b.jsonl", mark + b'\n{"a": 1}\n'))) == [{"a": 1}]
    assert build_vocabulary(["\ufeffthe", "the"], split=str.split, special=()).tokens == ("the",)


COMPRESS = {".gz": gzip.compress, ".XZ": lzma.compress, ".Bz2": bz2.compress}


@pytest.mark.parametrize("ending", COMPRESS)
def test_every_member_of_a_compressed_file_is_read(write, ending):
    one, other = (COMPRESS[ending](text) for text in (b"first\n", b"second\n" * 3))
    for content in (one + other, one + bytes(8) + other + bytes(4)):
        source = open_source(write(f"a.txt{ending}", content))
        assert texts(source) == ["first", "second", "second", "second"]
    damaged = [bytes([*other[:place], other[place] ^ 64, *other[place + 1 :]]) for place in (0, 14)]
    for rest in (*damaged, other[:-3], b"rest"):
        with pytest.raises(ValueError, match=rf"a\.txt{ending} is truncated or damaged"):
            open_source(write(f"a.txt{ending}", one + rest))


def test_json_lines(write):
    rows = [{"a": 1, "text": "x\ny"}, {"a": 2, "text": "\u2028"}]
    data = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert list(open_source(write("a.jsonl.gz", gzip.compress(data.encode())))) == rows


def test_tab_separated(write):
    uri = write("a.tsv.xz", lzma.compress(b'id\ttext\n1\t"a\n\n2\t\n'))
    assert list(open_source(uri)) == [{"id": "1", "text": '"a'}, {"id": "2", "text": ""}]
    named = list(open_source(f"{uri}?columns=n,t"))
    assert named[0] == {"n": "id", "t": "text"}
    assert len(named) == 3
    rows = list(open_source(write("b.TSV", "a\tb\r\n\t\r\n  \n\n1\t\n")))
    assert rows == [{"a": "", "b": ""}, {"a": "1", "b": ""}]
    for uri in (write("c.tsv", "text\ttext\n1\t2\n"), write("d.tsv", "1\t2\n") + "?columns=a,a"):
        with pytest.raises(
            ValueError, match=r"must have different names, \['(text|a)'\] come twice"
        ):
            open_source(uri)


def test_split_in_the_path_and_variables(write, monkeypatch, tmp_path):
    for split in ("train", "valid", "test"):
        write(f"x.{split}.txt", f"{split} 1\n{split} 2\n")
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    uri = "file:$SOMEWHERE/x.{split}.txt"
    assert texts(open_source(uri, split="valid")) == ["valid 1", "valid 2"]
    assert texts(open_source(uri)) == [f"{s} {i}" for s in ("train", "valid", "test") for i in "12"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_source("file:~/x.test.txt")) == 2


def test_tfds(monkeypatch):
    content = {
        "train": [{"text": b"caf\xc3\xa9", "label": 1}, {"text": b"b", "label": 0}],
        "validation": [{"text": b"c", "label": 1}],
    }
    calls = []

    def data_source(name, *, split=None):
        calls.append((name, split))
        if split is None:
            return content if name == "reviews" else {}
        if split.split("[")[0] not in content:
            raise ValueError(f"Unknown split {split!r}. Should be one of {list(content)}.")
        return content[split] if split in content else content["train"][:1]

    class Builder:
        data_dir = "/nowhere/reviews"
        info = types.SimpleNamespace(features="FeaturesDict({'text': Text()})")

        def is_prepared(self):
            return True

    fake = types.ModuleType("tensorflow_datasets")
    fake.data_source = data_source
    fake.builder = lambda name, file_format: Builder()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    assert open_source("tfds:reviews", split="train")[0] == {"text": "café", "label": 1}
    assert texts(open_source("tfds:reviews", split="valid")) == ["c"]
    assert texts(open_source("tfds:reviews")) == ["café", "b", "c"]
    assert texts(open_source("tfds:reviews", split="train[:50%]")) == ["café"]
    assert calls[-1] == ("reviews", "train[:50%]")
    with pytest.raises(ValueError, match=r"'test' of 'tfds:reviews'.*\['train', 'validation'\]"):
        open_source("tfds:reviews", split="test")
    with pytest.raises(ValueError, match="does not say which splits"):
        open_source("tfds:nothing")
    # Preparing it would need TensorFlow: said before anything is fetched.
    Builder.is_prepared = lambda self: False
    assert open_source("tfds:reviews", split="train")  # it needs none
    calls.clear()
    monkeypatch.setattr(sys.modules[__name__], "tf", None, raising=False)
    with pytest.raises(
        ValueError, match=r"(?s)needs TensorFlow.*pip install tensorflow .*'reviews'"
    ):
        open_source("tfds:reviews", split="train")
    assert not calls
    fake.builder = lambda name, file_format: 1 / 0
    with pytest.raises(ValueError, match="tfds:reviews: division by zero"):
        open_source("tfds:reviews")


@pytest.mark.slow
def test_tfds_itself_without_tensorflow(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        """Three reviews."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(3), "validation": self._generate_examples(1)}

        def _generate_examples(self, count):
            yield from ((n, {"text": f"é {n}", "label": n}) for n in range(count))

    source = open_source("tfds:tiny_reviews", split="train")
    assert sorted(texts(source)) == ["é 0", "é 1", "é 2"]
    assert sum(example["label"] for example in source) == 3
    assert len(open_source("tfds:tiny_reviews", split="valid")) == 1
    with pytest.raises(ValueError, match=r"tfds:mnist is not prepared in .* needs TensorFlow"):
        open_source("tfds:mnist", split="train")
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("uri", "split", "message"),
    [
        ("http://x", None, "builtin:, file:, tfds:.*http"),
        ("/etc/passwd", None, "builtin:.*write a path as file:PATH"),
        ("builtin:shakespeer", None, "knows shakespeare and digits, got 'builtin:shakespeer'"),
        ("builtin:digits", "dev", "split must be one of .*'valid'.* got 'dev'"),
        ("file:a.txt?columns=a", None, "columns is of .tsv and .csv"),
        ("file:a.png?columns=a", None, "columns is of .tsv and .csv"),
        ("file:a.tsv?size=3", None, "are of images"),
        ("file:a.tsv?rows=3", None, "may follow a path is .*'rows=3'"),
        ("file:a?size=0", None, "may follow a path is .*'size=0'"),
        ("file:a?channels=2", None, "may follow a path is .*'channels=2'"),
        ("gs://", None, "expected a bucket and a path"),
        ("memory://a/../b", None, "may not climb"),
        ("hf:a?split=b", None, r"expected hf:OWNER/NAME"),
        ("file:", None, "expected file:PATH, got 'file:'"),
        ("file:a\0b", None, "expected file:PATH, got"),
        ("file:~no_such_user/a", None, "folder that ~ stands for in 'file:~no_such_user/a'"),
    ],
)
def test_bad_uri(uri, split, message):
    with pytest.raises(ValueError, match=message):
        open_source(uri, split=split)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n\t\n", "is empty.*5 bytes"),
        ("a.txt", b"ab\ncd\xff\n", r"not UTF-8: line 2, byte offset 5 .*b'\\xff'"),
        ("a.txt", b"ab\n\xe2\x82", "not UTF-8: line 2, byte offset 3 "),
        ("a.txt.gz", gzip.compress(b"\n\n\xc3("), "not UTF-8: line 3, byte offset 2 "),
        ("a.txt.gz", gzip.compress(b"some text " * 99)[:-9], "truncated or damaged"),
        ("a.txt.gz", b"some text", "truncated or damaged"),
        ("a.txt.gz", gzip.compress(b"some text")[:10] + b"\xff" * 20, "truncated or damaged"),
        ("a.txt.xz", lzma.compress(b"some text " * 99)[:-9], "truncated or damaged"),
        ("a.jsonl", b"\n", "is empty"),
    ],
    # Contents would make other names in every process: gzip writes the time.
    ids=[
        *("nothing", "blank", "bad byte", "cut character", "bad byte in gz"),
        *("cut gz", "no gz", "damaged gz", "cut xz", "no objects"),
    ],
)
def test_bad_file_is_found_when_it_is_opened(write, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_source(write(name, content))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: malformed JSON at column"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: .* each field once, got 'a' twice"),
        ("a.jsonl", '{"a": 1}\n{"a": "\\uD83D"}\n', "line 2: half a surrogate pair"),
        pytest.param("a.jsonl", '{"a": 1}\n' + "[" * 10**5, "line 2: .*nested", id="deep"),
        pytest.param("a.jsonl", '{"a": 1}\n{"a": ' + "9" * 5000 + "}", "line 2: ", id="long"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2: expected a JSON object, got list"),
        ("a.tsv", "a\tb\n1\t2\n1\t2\t3\n", r"line 3: expected 2 .*columns \(a, b\), got 3"),
    ],
)
def test_bad_line_is_named(write, name, content, message):
    source = open_source(write(name, content))
    assert len(source[0]) in (1, 2)
    with pytest.raises(ValueError, match=message):
        source[1]


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"cannot read .*missing\.txt"):
        open_source(f"file:{tmp_path}/missing.txt")
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(FileNotFoundError, match=r"is the environment variable .* set\?"):
        open_source("file:$NOT_SET/a.txt")
    with pytest.raises(TypeError, match="uri must be a string"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match="no data file in or at"):
        open_source(f"file:{tmp_path}")

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lines, "open", forbidden, raising=False)
    with pytest.raises(PermissionError, match=r"Permission denied.*a\.txt"):
        open_source(f"file:{tmp_path}/a.txt")


def test_too_few_examples_to_cut(write):
    uri = write("a.txt", "1\n2\n3\n")
    with pytest.raises(ValueError, match="3 examples are too few"):
        open_source(uri, split="valid")


def test_missing_extra(monkeypatch):
    for module in (
        *("grain", "tokenizers", "sklearn.datasets", "tensorflow_datasets", "datasets"),
        *("fsspec", "gcsfs", "pyarrow", "PIL.Image"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
    for extra, needs in (
        ("data", lambda: next(Pipeline([{"x": 1}], batch_size=1, seed=0))),
        ("data", lambda: build_vocabulary(["a"], split="subwords", max_size=300)),
        ("data", lambda: open_source("builtin:digits")),
        ("data", lambda: open_source("file:a.parquet")),
        ("data", lambda: open_source("file:a.png")),
        ("tfds", lambda: open_source("tfds:mnist")),
        ("hf", lambda: open_source("hf:a/b")),
        ("remote", lambda: open_source("gs://a/b")),
    ):
        with pytest.raises(ImportError, match=rf"pip install '.*zoo\[{extra}\]'"):
            needs()
