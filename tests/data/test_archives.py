"""Archives: every member, or an error that names the file."""

import io
import lzma
import tarfile
import zipfile

import pytest

from zoo.data.archives import read_tar, read_zip

MEMBERS = {"a.txt": b"first" * 50, "folder/b.txt": b"second" * 50, "folder/c.md": b"third" * 50}


def zipped(compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_every_member_is_read(tmp_path):
    path = tmp_path / "a.zip"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        path.write_bytes(zipped(compression))
        texts = read_zip(path, lambda name: name.endswith(".txt"))
        assert dict(texts) == {name: MEMBERS[name] for name in ("a.txt", "folder/b.txt")}
    for name, mode in (
        ("a.tar", "w"),
        ("a.tar.xz", "w:xz"),
        ("a.TAR.GZ", "w:gz"),
        ("a.tgz", "w:gz"),
    ):
        (tmp_path / name).write_bytes(tarred(mode))
        assert dict(read_tar(tmp_path / name)) == MEMBERS


def damages(content):
    yield from (content[: len(content) * i // 7] for i in range(7))
    for place in range(0, len(content), 41):
        yield content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


@pytest.mark.parametrize(("name", "content"), [("a.zip", zipped()), ("a.tar", tarred())])
def test_what_is_damaged_is_named_and_nothing_is_left_out(tmp_path, name, content):
    """A changed byte is found, or is one of the data of a tar, which has no checksum of them."""
    path, found = tmp_path / name, 0
    for damaged in damages(content):
        path.write_bytes(damaged)
        try:
            members = dict(read_tar(path) if name == "a.tar" else read_zip(path, lambda _: True))
            sizes = sorted(map(len, members.values()))
            assert sizes == sorted(map(len, MEMBERS.values()))
            assert name == "a.tar" or list(members.values()) == list(MEMBERS.values())
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            found += 1
    assert found > 20
    path.write_bytes(lzma.compress(content))
    with pytest.raises(ValueError, match=r"(a\.zip is damaged|a\.tar is damaged|no tar)"):
        (read_tar(path) if name == "a.zip" else list(read_zip(path, bool)))
