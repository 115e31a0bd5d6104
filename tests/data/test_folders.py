"""Folders, patterns, tables, images in files, hubs and buckets."""

import io
import pickle
import sys
import types

import pytest

from zoo.data import open_source
from zoo.data.images import image_arrays
from zoo.data.sources import fingerprint_of

pictures = pytest.importorskip("PIL.Image")


def picture(value, size=(6, 4), mode="RGB", kind="PNG"):
    file = io.BytesIO()
    pictures.new(mode, size, value).save(file, kind)
    return file.getvalue()


@pytest.fixture
def tree(tmp_path):
    """Writes files, given by name, and gives the URI of their folder."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"file:{tmp_path}"

    return write


def test_images_by_folder_of_their_class(tree):
    uri = tree(
        **{f"cat__{n}_dot_png": picture((n, 0, 0)) for n in range(20)},
        **{f"dog__deep__{n}_dot_JPG": picture((99, n, 0), kind="JPEG") for n in range(20)},
        README="not an image",
        _dot_hidden__x_dot_png=b"",
    )
    source = open_source(uri)
    assert (len(source), source[0]["image"].shape, source[0]["image"].dtype) == (
        40,
        (4, 6, 3),
        "u1",
    )
    for example in source:  # the class is the folder, whatever the order
        assert example["label"] == (example["image"][0, 0, 0] > 60)
    parts = [open_source(uri, split=split) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [36, 2, 2]
    assert {int(example["label"]) for example in parts[0]} == {0, 1}  # not cut by class
    small = open_source(f"{uri}?size=2&channels=1")[0]["image"]
    assert small.shape == (2, 2, 1)
    assert image_arrays(pickle.loads(pickle.dumps(source)))[0].max() <= 1
    assert len(open_source(f"{uri}/cat/*.png")) == 20
    before = fingerprint_of(uri)
    assert before == fingerprint_of(uri)
    tree(cat__0_dot_png=picture((1, 2, 3)))
    assert before != fingerprint_of(uri)


def test_split_folders_share_their_classes(tree):
    uri = tree(
        train__b__1_dot_png=picture(3, mode="L"),
        test__b__1_dot_png=picture(4, mode="L"),
        test__a__1_dot_png=picture(5, mode="L"),
        val__a__2_dot_png=picture(6, mode="L"),
    )
    got = {
        split: {int(e["image"][0, 0, 0]): int(e["label"]) for e in open_source(uri, split=split)}
        for split in ("train", "valid", "test", None)
    }
    assert got == {
        "train": {3: 1},
        "valid": {6: 0},
        "test": {4: 1, 5: 0},
        None: {3: 1, 6: 0, 4: 1, 5: 0},
    }
    assert open_source(f"{uri}/{{split}}", split="train")[0]["image"].shape == (4, 6, 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_dot_png": b"no picture"}, r"a\.png is damaged or no PNG or JPEG"),
        ({"a_dot_png": picture(1), "b_dot_png": picture(1, (9, 9))}, r"2 sizes.*\?size=64"),
        ({"a_dot_png": picture(1, mode="I;16")}, "8 bits a channel"),
        ({"a_dot_png": picture(1), "b_dot_txt": "x"}, r"several kinds \(\.png, \.txt\)"),
        ({"a_dot_xyz": "x", "b_dot_xyz": "y"}, r"must hold images .* got a\.xyz"),
        ({"train__a_dot_txt": "x", "test__a_dot_txt": "x"}, "has the splits train, test, got"),
    ],
)
def test_folders_that_cannot_be_read(tree, files, message):
    with pytest.raises(ValueError, match=message):
        open_source(tree(**files), split="valid")


def test_an_image_that_is_cut_off_is_named(tree):
    data = picture((1, 2, 3), (90, 90), kind="JPEG")
    source = open_source(tree(a_dot_jpg=data[:-50]))
    with pytest.raises(ValueError, match=r"a\.jpg is truncated or damaged"):
        source[0]
    with pytest.raises(ValueError, match=r"a\.jpg is damaged or no PNG or JPEG image"):
        open_source(tree(a_dot_jpg=data[:150]))


def test_text_files_of_a_folder_and_of_a_pattern(tree):
    uri = tree(b_dot_txt="3\n", a_dot_txt="1\n2\n", deep__c_dot_md="4\n", LICENSE="no data")
    lines = ["1", "2", "", "3", "", "4"]  # a document ends with its file
    assert [example["text"] for example in open_source(uri)] == lines
    assert [example["text"] for example in open_source(f"{uri}/*.txt")] == lines[:4]
    assert [example["text"] for example in open_source(f"{uri}/**/*.*")] == lines
    assert fingerprint_of(f"{uri}/*.txt") != fingerprint_of(uri)
    with pytest.raises(FileNotFoundError, match="no data file"):
        open_source(f"{uri}/*.jsonl")
    tables = tree(t__a_dot_jsonl='{"a": 1}\n', t__b_dot_jsonl='{"a": 2}\n')
    assert list(open_source(f"{tables}/t")) == [{"a": 1}, {"a": 2}]


CSV = '\ufefftext,label\r\n"a, ""b""\nc",x\r\n\r\n5" disk,y\n"",z\n'


def test_comma_separated(tree):
    uri = tree(a_dot_csv=CSV) + "/a.csv"
    source = open_source(uri)
    rows = [{"text": 'a, "b"\nc', "label": "x"}, {"text": '5" disk', "label": "y"}]
    rows.append({"text": "", "label": "z"})
    assert list(source) == rows
    assert list(pickle.loads(pickle.dumps(source))) == rows
    assert open_source(f"{uri}?columns=t,l")[0] == {"t": "\ufefftext".strip("\ufeff"), "l": "label"}
    long = "x" * 200_000
    assert open_source(tree(b_dot_csv=f"text\n{long}\n") + "/b.csv")[0] == {"text": long}
    source = open_source(tree(c_dot_csv="a,b\n1,2\n1,2,3\n") + "/c.csv")
    with pytest.raises(ValueError, match="line 3: expected 2 comma-separated columns"):
        source[1]
    for bad in ('a,b\n1,"2\n', 'a,b\n1,"2"3\n'):
        with pytest.raises(ValueError, match=r"d\.csv, line 2: .*stands in quotation marks"):
            open_source(tree(d_dot_csv=bad) + "/d.csv")


def test_parquet(tree, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": ["é", "b", None], "label": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = open_source(f"file:{tmp_path}/a.parquet")
    assert list(source) == [
        {"text": "é", "label": 1},
        {"text": "b", "label": 2},
        {"text": None, "label": 3},
    ]
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
    assert len(open_source(f"file:{tmp_path}")) == 3
    data = (tmp_path / "a.parquet").read_bytes()
    for bad in (b"", data[:-9], data[:4] + b"x" * 9 + data[9:-40]):
        with pytest.raises(ValueError, match=r"b\.parquet is damaged or no Parquet file"):
            open_source(tree(b_dot_parquet=bad) + "/b.parquet")


def test_hugging_face(monkeypatch):
    image = pictures.new("L", (3, 2), 7)
    rows = [{"image": image, "label": 1, "text": "a"}] * 40
    sets = {("o/n", None): {"train": rows, "validation": rows[:2]}, ("o/n", "c"): {"train": rows}}
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda name, config: sets[name, config]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert [len(open_source("hf:o/n", split=s)) for s in ("train", "valid", None)] == [40, 2, 42]
    assert open_source("hf:o/n")[0]["image"].shape == (2, 3, 1)
    assert len(open_source("hf:o/n?config=c", split="test")) == 2  # one split: it is cut
    with pytest.raises(ValueError, match="has the splits train, validation, got split='test'"):
        open_source("hf:o/n", split="test")


def test_hugging_face_itself(tree, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    uri = tree(set__train_dot_csv="text,label\nx,0\ny,1\n", set__test_dot_csv="text,label\nz,1\n")
    assert open_source(f"hf:{uri[5:]}/set", split="test")[0] == {"text": "z", "label": 1}


def test_buckets(monkeypatch, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    system = fsspec.filesystem("memory")
    files = {f"{split}.tsv": f"text\tlabel\n{split}\t1\n" for split in ("train", "valid", "test")}
    for name, text in {**files, "d/1.txt": "one\n", "d/e/2.txt": "two\n"}.items():
        system.pipe(f"/zoo-data/{name}", text.encode())
    assert open_source("memory://zoo-data/{split}.tsv", split="test")[0]["text"] == "test"
    assert len(open_source("memory://zoo-data/*.tsv")) == 3
    assert len(open_source("memory://zoo-data/test.tsv?columns=a,b")) == 2
    source = open_source("memory://zoo-data/d")
    assert ([e["text"] for e in source], source.uri) == (["one", "", "two"], "memory://zoo-data/d")
    reads = []
    monkeypatch.setattr(type(system), "get_file", lambda *names, **_: reads.append(names))
    open_source("memory://zoo-data/d")
    assert not reads  # nothing has changed
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    before = fingerprint_of("memory://zoo-data/d")
    system.rm("/zoo-data/d/e/2.txt")
    system.pipe("/zoo-data/d/1.txt", b"changed\n")
    assert list(open_source("memory://zoo-data/d")) == [{"text": "changed"}]
    assert fingerprint_of("memory://zoo-data/d") != before
    with pytest.raises(FileNotFoundError, match="there is no data: 'memory://zoo-data/no"):
        open_source("memory://zoo-data/no.txt")
    system.rm("/zoo-data", recursive=True)
