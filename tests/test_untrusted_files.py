"""Files that lie: no reader runs code, writes a file, or takes memory for what a file only claims.

Every hostile file is small. One process reads them all and says how much memory each took.
"""

import ast
import bz2
import contextlib
import functools
import gzip
import io
import json
import lzma
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
MOST = 64 << 20  # bytes of memory that a refused file may take
HUGE = 10**12
BOMB = 1 << 27  # bytes that a compressed bomb grows to


def bomb(compress, unit=b"\0"):
    """Many members, which is quicker than to compress as much."""
    return compress(unit * (1 << 20)) * (BOMB // len(unit) >> 20)


@functools.cache
def zip_bomb(name, head=b""):
    return zipped((name, head + bytes(BOMB)))


def npy(shape, dtype="<f4"):
    header = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def zipped(*members, claims=None):
    """An archive; ``claims`` is written as the size of every member in its directory."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
        for info in file.infolist() if claims else ():
            info.file_size = claims
    return archive.getvalue()


def tar(*members, mode="w"):
    """An archive of (name, claimed size, link)."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as file:
        for name, size, link in members:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            info.size = 0 if link else size
            file.addfile(info, None if link or size > BOMB else io.BytesIO(bytes(size)))
    return archive.getvalue()


def safetensors(header, length=None, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


FLOATS = {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}
BERT = {"model_type": "bert", "vocab_size": HUGE}  # the rest as in the first BERT


def idx(*shape, body=b""):
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return bytes([0, 0, 8, len(shape)]) + sizes + body


def lines(path):
    from zoo.data.lines import Lines

    return Lines(path)


def images(path):
    from zoo.data.images import read_images

    return read_images(path if path.suffix == ".npz" else path.parent, "train")


def array(path):
    from zoo.data import arrays

    return (arrays.read_npy if path.suffix == ".npy" else arrays.read_npz)(path)


def zip_members(path):
    from zoo.data.archives import read_zip

    return list(read_zip(path, lambda name: True))


def tar_members(path):
    from zoo.data.archives import read_tar

    return read_tar(path)


def treebank(path):
    from zoo.ordered import read_treebank

    return read_treebank(path)


def word2vec(path, binary=False):
    from zoo.spherical import load_word2vec

    return load_word2vec(path, binary=binary)


def embeddings(path):
    from zoo.spherical import load_embeddings

    return load_embeddings(path)


def weights(path):
    """Of a folder with the file and a configuration."""
    from zoo.transformer import load_bert

    config = path.parent / "config.json"
    if not config.exists():
        config.write_text(json.dumps(BERT | {"vocab_size": 100}))
    return load_bert(path.parent)


def rows(path):
    """Of a corpus of one file; the manifest is beside it, or is the file."""
    from experiments.pretraining.records import RecordRows

    manifest = path.parent / "manifest.json"
    if not manifest.exists():
        shard = {"split": "train", "file": path.name, "rows": HUGE}
        manifest.write_text(json.dumps({"length": 16, "shards": [shard]}))
    return RecordRows(path.parent, "train", "skip")


def manifest(**changes):
    shard = {"split": "train", "file": "rows.array_record", "rows": 1} | changes
    return json.dumps({"length": changes.pop("length", 16), "shards": [shard]}).encode()


# label: (name of the file, content, reader, what the refusal says)
HOSTILE = {
    "text of a gz bomb": ("a.txt.gz", lambda: bomb(gzip.compress), lines, "grow"),
    "text of an xz bomb": ("a.txt.xz", lambda: bomb(lzma.compress), lines, "grow"),
    "text of a bz2 bomb": ("a.txt.bz2", lambda: bomb(bz2.compress), lines, "grow"),
    "idx of 10^18 bytes": ("train-images-idx3-ubyte", lambda: idx(10**6, 10**6, 10**6), images, ""),
    "idx of a gz bomb": ("train-images-idx3-ubyte.gz", lambda: bomb(gzip.compress), images, "grow"),
    "npy of 10^12 numbers": ("a.npy", lambda: npy((HUGE,)), array, "bytes for float32"),
    "npy of objects": ("a.npy", lambda: npy((1,), "|O") + b"cos\nsystem\n.", array, "allow_pickle"),
    "npz of 10^12 numbers": ("a.npz", lambda: zipped(("x.npy", npy((HUGE,)))), array, "0 bytes"),
    "npz of a bomb": (
        "a.npz",
        lambda: zip_bomb("x.npy", npy((BOMB // 4,))),
        array,
        "grow",
    ),
    "npz that claims a terabyte": (
        "a.npz",
        lambda: zipped(("x.npy", npy((HUGE,))), claims=4 * HUGE),
        array,
        "grow",
    ),
    "zip bomb": ("a.zip", lambda: zip_bomb("a.mrg"), zip_members, "grow"),
    "zip of many bombs": (
        "a.zip",
        lambda: zipped(*((str(n), bytes(1 << 20)) for n in range(64))),
        zip_members,
        "grow",
    ),
    "treebank in a zip bomb": ("a.zip", lambda: zip_bomb("a.mrg"), treebank, "grow"),
    "tar member of a terabyte": ("a.tar", lambda: tar(("a", HUGE, "")), tar_members, "grow"),
    "tar of links to one member": (
        "a.tar",
        lambda: tar(("a", 1 << 20, ""), *((str(n), 0, "a") for n in range(2000))),
        tar_members,
        "is a link",
    ),
    "tar.gz bomb": ("a.tar.gz", lambda: bomb(gzip.compress), tar_members, "grow"),
    "tgz bomb": ("a.tgz", lambda: tar(("a", BOMB // 2, ""), mode="w:gz"), tar_members, "grow"),
    "word2vec of 10^12 rows": ("a.txt", lambda: b"%d 300\na 1\n" % HUGE, word2vec, "300 numbers"),
    "word2vec of 10^12 binary rows": (
        "a.bin",
        lambda: b"%d 300\na " % HUGE,
        functools.partial(word2vec, binary=True),
        "ends within",
    ),
    "word2vec of 10^12 columns": (
        "a.bin",
        lambda: b"1 %d\na " % HUGE,
        functools.partial(word2vec, binary=True),
        "ends within",
    ),
    "word2vec of one line": ("a.gz", lambda: bomb(gzip.compress, b"0 "), word2vec, ""),
    "GloVe of one line": ("a.bz2", lambda: bomb(bz2.compress, b"1 "), word2vec, ""),
    "embeddings with a header of 2^62": (
        "a",
        lambda: safetensors({}, length=1 << 62),
        embeddings,
        "",
    ),
    "embeddings of 10^12 numbers": ("a", lambda: safetensors({"words": FLOATS}), embeddings, ""),
    "weights with a header of 2^62": (
        "model.safetensors",
        lambda: safetensors({}, length=1 << 62),
        weights,
        "damaged",
    ),
    "weights of 10^12 numbers": (
        "model.safetensors",
        lambda: safetensors({"embeddings.word_embeddings.weight": FLOATS}),
        weights,
        "damaged",
    ),
    "weights of a nested header": (
        "model.safetensors",
        lambda: safetensors(b'{"a":' * 10**5),
        weights,
        "damaged",
    ),
    "configuration of 10^12 words": (
        "config.json",
        lambda: json.dumps(BERT).encode(),
        weights,
        "",
    ),
    "index that leaves its folder": (
        "model.safetensors.index.json",
        lambda: json.dumps({"weight_map": {"x": "../../secret.safetensors"}}).encode(),
        weights,
        "file of this folder",
    ),
    "index with an absolute path": (
        "model.safetensors.index.json",
        lambda: json.dumps({"weight_map": {"x": "/etc/passwd"}}).encode(),
        weights,
        "file of this folder",
    ),
    "records that are none": ("rows.array_record", lambda: bytes(1 << 20), rows, ""),
    "manifest of 10^12 rows": ("manifest.json", lambda: manifest(rows=HUGE), rows, ""),
    "manifest that leaves its folder": (
        "manifest.json",
        lambda: manifest(file="../../secret"),
        rows,
        "",
    ),
}


def memory(what):
    """``VmRSS`` or its peak ``VmHWM``, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) << 10


def read_all(folder):
    """For each file a line: its label, the growth of the peak of memory, and the refusal."""
    for read in (lines, images, array, word2vec, embeddings, weights, rows):  # what they import
        with contextlib.suppress(Exception):
            read(pathlib.Path("/dev/null"))
    for label, (name, _, read, _) in HOSTILE.items():
        before = memory("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        try:
            read(pathlib.Path(folder, label, name))
            refusal = "accepted"
        except (ValueError, OSError) as error:
            refusal = str(error)
        print(json.dumps([label, memory("VmHWM") - before, refusal]), flush=True)


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """label -> (growth of the peak of memory, refusal) of every hostile file."""
    folder = tmp_path_factory.mktemp("hostile")
    for label, (name, content, _, _) in HOSTILE.items():
        (folder / label).mkdir()
        (folder / label / name).write_bytes(content())
    before = sorted(folder.rglob("*"))
    code = f"from tests.test_untrusted_files import read_all; read_all({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = {path.name for path in set(folder.rglob("*")) - set(before)}
    assert written <= {"config.json", "manifest.json"}  # our own
    return {label: rest for label, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("label", HOSTILE)
def test_a_file_that_lies_is_refused_in_little_memory(label, refusals):
    memory, refusal = refusals[label]
    assert refusal != "accepted"
    assert HOSTILE[label][3] in refusal
    assert memory < MOST


# What no source may do.

FOLDERS = ("zoo", "experiments", "benchmarks")
PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPACKS = (".extract", ".extractall", ".unpack_archive", "torch.load")


def offences(text):
    """Imports of what runs code from files, and calls that do, or that unpack an archive."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (n for n in names if n.partition(".")[0] in PICKLES)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield "allow_pickle"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            # Tensors and nothing else, from a file whose checksum is known: published weights.
            if called == "torch.load" and "weights_only=True" in map(ast.unparse, node.keywords):
                continue
            if called.endswith(UNPACKS) or called in ("eval", "exec", "os.system"):
                yield called


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_source_runs_code_from_files_or_unpacks_archives(folder):
    found = {str(path): [*offences(path.read_text())] for path in (ROOT / folder).rglob("*.py")}
    assert len(found) > 10
    assert not [entry for entry in found.items() if entry[1]]


def test_offences_are_found():
    text = """
import pickle, numpy as np
from joblib import load
np.load(path, allow_pickle=True)
tarfile.open(path).extractall()
torch.load(path, weights_only=False), torch.load(path, weights_only=True)
eval("1")
"""
    found = {
        "torch.load",
        "pickle",
        "joblib",
        "allow_pickle",
        "tarfile.open(path).extractall",
        "eval",
    }
    assert set(offences(text)) == found
