"""Parsers on mutated and random input: documented errors, in bounded time and memory.

ZOO_FUZZ is the number of inputs per parser.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import struct
import zipfile

import numpy as np
import pytest

from zoo.data import Vocabulary, build_vocabulary, encode_lines, open_source

COUNT = int(os.environ.get("ZOO_FUZZ", "300"))
TOKENS = [
    *(b"\n", b"\r\n", b"\t", b"\0", b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\ud800"),
    *(b"\xef\xbb\xbf", b"\xff", b"\xc3\xa9", b"\xe2", b"-1", b"0", b"1e999", b"NaN", b"null"),
    *(b"[" * 3000, b"9" * 5000),
]


def mutate(generator, data):
    """A few changes: bytes, cuts, repeats, insertions of what parsers stumble over."""
    data = bytearray(data)
    for _ in range(generator.integers(1, 5)):
        kind, place = generator.integers(6), int(generator.integers(len(data) + 1))
        stop = min(len(data), place + int(generator.integers(1, 20)))
        if kind == 0 and place < len(data):
            data[place] = generator.integers(256)
        elif kind == 1:
            del data[place:stop]
        elif kind == 2:
            data[place:place] = data[place:stop]
        elif kind == 3:
            data[place:place] = TOKENS[generator.integers(len(TOKENS))]
        elif kind == 4 and generator.random() < 0.3:
            del data[place:]
        elif place < len(data):
            data[place] ^= 1 << int(generator.integers(8))
    return bytes(data)


def message_of(call):
    """What a refusal says; None if nothing was refused."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def idx(array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


IMAGES, LABELS = np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.arange(3)
TEXT = "the first\nsecond é\n\nनमस्ते\n".encode()
XZ, BZ2 = lzma.compress(TEXT, preset=0), bz2.compress(TEXT, 1)
TABLE = b"id\ttext\n1\tone\n2\t\n\t\n"
OBJECTS = b'{"a": 1, "text": "x\\u00e9"}\n\n{"a": [1, {"b": null}], "text": ""}\n'


def archive(images, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as members:
        members.writestr("x_train.npy", images)
        members.writestr("y_train.npy", npy(LABELS))
    return file.getvalue()


def picture(kind):
    file = io.BytesIO()
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    pytest.importorskip("PIL.Image").fromarray(image).save(file, kind)
    return file.getvalue()


def parquet():
    file, arrow = io.BytesIO(), pytest.importorskip("pyarrow")
    table = arrow.table({"text": ["é", "b", None], "label": [1, 2, 3]})
    pytest.importorskip("pyarrow.parquet").write_table(table, file)
    return file.getvalue()


# Name -> contents, and what is done to them after they were changed.
FILES = {
    "a.csv": (b'id,text\n1,"one, ""two""\nthree"\n2,\n', bytes),
    "a.png": (picture("PNG"), bytes),
    "a.jpg": (picture("JPEG"), bytes),
    "a.parquet": (parquet(), bytes),
    "a.txt": (TEXT, bytes),
    "a.tsv": (TABLE, bytes),
    "a.jsonl": (OBJECTS, bytes),
    "a.txt.gz": (TEXT, lambda data: gzip.compress(data, mtime=0)),
    "a.txt.xz": (TEXT, lambda data: lzma.compress(data, preset=0) + XZ),
    "a.txt.bz2": (TEXT, lambda data: BZ2 + bz2.compress(data, 1)),
    "a.npz": (npy(IMAGES), archive),
    "b.npz": (npy(IMAGES), lambda data: archive(data, zipfile.ZIP_DEFLATED)),
}


def read(source):
    for index in range(len(source)):
        assert isinstance(source[index], dict)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # a header as Python 2 wrote it
@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    generator, path, opened = np.random.default_rng(0), tmp_path / name, 0
    content, store = FILES[name]
    for _ in range(COUNT):
        kind, split = generator.random(), [None, "train"][generator.integers(2)]
        if kind < 0.05:
            data = generator.bytes(int(generator.integers(200)))
        elif kind < 0.5:
            data = store(mutate(generator, content))
        else:
            data = mutate(generator, store(content))
        path.write_bytes(data)
        message = message_of(lambda split=split: read(open_source(f"file:{path}", split=split)))
        assert message is None or str(path) in message
        opened += message is None
    assert 0 < opened < COUNT


def test_idx(tmp_path):
    generator, opened = np.random.default_rng(0), 0
    images, labels = idx(IMAGES), idx(LABELS.astype(np.uint8))
    good = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels}
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    for _ in range(COUNT):
        name = sorted(good)[generator.integers(2)]
        (tmp_path / name).write_bytes(mutate(generator, good[name]))
        message = message_of(lambda: read(open_source(f"file:{tmp_path}", split="train")))
        assert message is None or str(tmp_path) in message
        opened += message is None
        (tmp_path / name).write_bytes(good[name])
    assert 0 < opened < COUNT


@pytest.mark.slow
def test_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tsv").write_bytes(TABLE)
    (tmp_path / "a.txt").write_bytes(TEXT)
    uris = [
        "file:a.txt",
        "file:a.tsv?columns=a,b",
        "file:{split}.txt",
        "file:~nobody/a",
        "file:a.npz",
    ]
    uris += ["builtin:shakespeer", "file:$HOME/a.gz", "file:" + "a" * 300, "file:a\0", "file:"]
    generator, opened = np.random.default_rng(0), 0
    for _ in range(COUNT):
        uri = mutate(generator, uris[generator.integers(len(uris))].encode())
        uri = uri.decode("utf-8", "surrogateescape")
        with contextlib.suppress(ValueError, OSError):
            read(open_source(uri))
            opened += 1
    assert 0 < opened < COUNT


def saved(vocabulary):
    return json.dumps(vocabulary._contents(), ensure_ascii=False).encode()


def test_vocabularies(tmp_path):
    lines = ["the cat sat on the mat", "a cat é"] * 3
    bases = [
        saved(build_vocabulary(lines)),
        saved(build_vocabulary(lines, split="characters")),
        saved(build_vocabulary(lines, split="wordpiece", max_size=40)),
        build_vocabulary(lines, split="wordpiece", max_size=40).model.encode(),
        build_vocabulary(lines, split="subwords", max_size=260).model.encode(),
        build_vocabulary(lines, split="bert_characters").model.encode(),
    ]
    generator, path, opened = np.random.default_rng(0), tmp_path / "tokenizer.json", 0
    for _ in range(COUNT):
        path.write_bytes(mutate(generator, bases[generator.integers(len(bases))]))
        loaded = []
        message = message_of(lambda loaded=loaded: loaded.append(Vocabulary.load(path)))
        if message is not None:
            assert str(path) in message
            continue
        opened += 1
        (vocabulary,) = loaded
        ids = vocabulary.encode("the cat\nis é")
        assert not len(ids) or 0 <= ids.min() <= ids.max() < len(vocabulary)
        assert isinstance(vocabulary.digest, str)
    assert 0 < opened < COUNT


def test_texts():
    vocabularies = {
        split: build_vocabulary(["a b", "c é नमस्ते"], split=split, lowercase=True)
        for split in ("words", "whitespace", "characters", "bert_characters")
    }
    generator = np.random.default_rng(0)
    low, high = [0x20, 0x300, 0x900, 0x1F600], [0x80, 0x370, 0xE80, 0x1F650]
    for _ in range(COUNT):
        text = mutate(generator, TEXT * 2).decode("utf-8", "replace")
        if generator.random() < 0.3:
            points = generator.integers(low, high, (9, 4))
            text = "".join(map(chr, generator.permutation(points.ravel())))
        for split, vocabulary in vocabularies.items():
            ids = vocabulary.encode(text)
            assert ids.dtype == np.int32
            if split != "bert_characters" and "\n" not in text and len(ids):
                assert encode_lines([text], vocabulary)[:-1].tolist() == ids.tolist()
                again = vocabulary.encode(vocabulary.decode(ids))
                assert split == "characters" or again.tolist() == ids.tolist()
