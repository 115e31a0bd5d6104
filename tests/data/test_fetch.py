"""Public sets from a server on this machine: fetched, checked, made, and refused when damaged."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import lzma
import re
import tarfile
import threading
import zipfile
from typing import ClassVar

import numpy as np
import pytest

from zoo.data import fetch, open_source
from zoo.data.public_sets import MAKERS


class Handler(http.server.SimpleHTTPRequestHandler):
    """Counts what it serves; ``/cut/`` breaks off."""

    served: ClassVar[list] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.served.append(self.path)
        if "/cut/" not in self.path:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        Handler.served.clear()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def tar(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        folder = tarfile.TarInfo("20news-bydate-test")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def entry(base, files, /, **others):
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {"page": "PAGE", "licence": "LICENCE", "base": base, "downloads": sums, **others}


def install(monkeypatch, sets):
    monkeypatch.setattr(fetch, "public_sets", lambda: sets)


def test_a_set_is_fetched_once_with_its_licence(server, monkeypatch, tmp_path, capsys):
    folder, base = server
    files = {"ptb.train.txt": b"a b\n", "sub/c.gz": gzip.compress(b"c")}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    install(monkeypatch, {"ptb": entry(base, files)})
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    for _ in range(2):
        assert fetch.main(["ptb"]) == 0
        out = capsys.readouterr().out
        assert "PAGE" in out
        assert "licence: LICENCE" in out
    assert "complete in" in out
    assert len(Handler.served) == 2
    found = {name: (tmp_path / "data/ptb" / name).read_bytes() for name in files}
    assert found == files
    assert sorted(p.name for p in (tmp_path / "data/ptb").iterdir()) == ["ptb.train.txt", "sub"]
    assert fetch.main([]) == 0
    assert "ptb  PAGE  (LICENCE)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("base", "name", "message"),
    [
        ("", "b.txt", r"ValueError: .*b\.txt has the SHA-256 .* expected .*nothing was kept"),
        ("", "missing.txt", r"OSError: cannot fetch .*missing\.txt: .*404.* or put the file there"),
        ("/cut", "b.txt", r"OSError: cannot fetch .*4 of 1,000 bytes"),
        ("/:1", "b.txt", "OSError: cannot fetch"),
    ],
)
def test_what_cannot_be_fetched(server, monkeypatch, tmp_path, capsys, base, name, message):
    folder, address = server
    (folder / "b.txt").write_bytes(b"other")
    base = "http://127.0.0.1:1" if base == "/:1" else address + base
    good = entry(address, {"b.txt": b"other"})
    install(monkeypatch, {"bad": entry(base, {name: b"right"}), "good": good})
    assert fetch.main(["all", "--folder", str(tmp_path / "data")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not [path for path in (tmp_path / "data/bad").rglob("*") if path.is_file()]
    assert (tmp_path / "data/good/b.txt").exists()  # the others are fetched


def test_names_and_folders(capsys, monkeypatch):
    monkeypatch.delenv("ZOO_DATA", raising=False)
    with pytest.raises(SystemExit):
        fetch.main(["ptb"])
    assert "set ZOO_DATA" in capsys.readouterr().err
    assert fetch.main(["pbt", "--folder", "x"]) == 2
    assert "the set must be one of ptb, " in capsys.readouterr().err


NAMES = ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt")


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def cifar(labels):
    rows = [bytes([label]) + bytes([number]) * 3072 for number, label in enumerate(labels)]
    return b"".join(rows)


DOWNLOADS = {
    "20news_bydate": {
        "20news-bydate.tar.gz": tar(
            {"20news-bydate-test/b/3": b"z", "20news-bydate-train/b/10": b"\xe9\n"}
        )
    },
    "imdb": {
        "aclImdb_v1.tar.gz": tar(
            {
                f"aclImdb/{part}/{n}_{7 * (part != 'train/unsup')}.txt": f"é\n{n}".encode()
                for part in ("train/pos", "train/neg", "test/pos", "test/neg", "train/unsup")
                for n in (10, 9)
            }
        )
    },
    "cifar10": {
        "cifar-10-binary.tar.gz": tar(
            {"x/data_batch_2.bin": cifar([3]), "x/data_batch_1.bin": cifar([3, 1] * 3 + [2]),
             "x/test_batch.bin": cifar([9, 0])}
        )
    },
    "sst_trees": {f"{name}.txt": b"(3 a)\n" * 9000 for name in ("train", "dev", "test")},
    "propositional_logic": {f"{name}{n}": b"x" for name in ("train", "test") for n in range(2)},
    "flickr8k": {
        "text.zip": zipped({"Flickr8k.token.txt": "a#0\tA\n", **dict.fromkeys(NAMES, "a.jpg\n")})
    },
}  # fmt: skip


@pytest.fixture
def made(server, monkeypatch, tmp_path):
    """Makes a set of tiny downloads; its folder."""
    folder, base = server

    def make(name):
        for file, content in DOWNLOADS[name].items():
            (folder / file).write_bytes(content)
        known = json.loads(json.dumps(PUBLIC[name]))
        known = {key: known[key] for key in ("files", "by_hand") if key in known}
        install(monkeypatch, {name: entry(base, DOWNLOADS[name], **known)})
        assert fetch.main([name, "--folder", str(tmp_path)]) == 0
        return tmp_path / name

    return make


PUBLIC = fetch.public_sets()


def test_newsgroups(made):
    folder = made("20news_bydate")
    rows = list(open_source(f"file:{folder}/20news_bydate.jsonl.xz"))
    assert rows[0] == {"split": "train", "group": "b", "label": 0, "id": 10, "text": "é\n"}
    assert rows[1]["split"] == "test"
    assert (folder / "groups.txt").read_text() == "b\n"


def test_reviews(made):
    folder = made("imdb")
    text = lzma.decompress((folder / "train_unsup.tsv.xz").read_bytes()).decode()
    assert text == "9\t0\té 9\n10\t0\té 10\n"
    assert len(open_source(f"file:{folder}/test_pos.tsv.xz?columns=id,rating,text")) == 2


def test_small_images(made):
    source = open_source(f"file:{made('cifar10')}/cifar10_10k_2k.npz")
    assert [int(example["label"]) for example in source] == [3, 1, 3, 1, 3, 1, 2, 3, 9, 0]
    assert source[2]["image"].shape == (32, 32, 3)
    assert np.all(source[2]["image"] == 2)


def test_trees_and_formulas(made):
    assert len(open_source(f"file:{made('sst_trees')}/{{split}}.txt.gz", split="train")) == 8544
    with tarfile.open(made("propositional_logic") / "propositional_logic.tar.xz") as archive:
        assert archive.getnames() == ["test0", "test1", "train0", "train1"]


def test_captions_need_pictures_put_there_by_hand(made, tmp_path, capsys):
    pictures = pytest.importorskip("PIL.Image")
    with pytest.raises(AssertionError):
        made("flickr8k")
    said = capsys.readouterr().err
    assert "Flicker8k_Dataset/" in said
    assert "https://github.com/jbrownlee/Datasets" in said
    folder = tmp_path / "flickr8k"
    assert (folder / NAMES[0]).exists()
    (folder / "Flicker8k_Dataset").mkdir()
    pictures.new("RGB", (30, 40), (200, 9, 9)).save(folder / "Flicker8k_Dataset/a.jpg")
    made("flickr8k")
    archive = np.load(folder / "flickr8k_64px_jpeg.npz")
    jpeg = archive["jpeg"][: archive["offsets"][1]].tobytes()
    assert pictures.open(io.BytesIO(jpeg)).size == (64, 64)
    assert archive["split"].tolist() == [0, 1, 2]


def test_every_set_has_what_it_needs():
    assert MAKERS.keys() <= PUBLIC.keys()
    for name, entry in PUBLIC.items():
        assert entry["licence"]
        assert entry["page"].startswith("http")
        assert ("files" in entry) == (name in MAKERS)
        known = {**entry["downloads"], **entry.get("contents", {})}
        assert any(known.values())  # something of it has a checksum
        for file, code in known.items():
            assert code is None or re.fullmatch("[0-9a-f]{64}", code)
            assert code or "contents" in entry, file
        urls = entry.get("urls", dict.fromkeys(entry["downloads"], entry.get("base")))
        assert all(url.startswith("http") for url in urls.values())
