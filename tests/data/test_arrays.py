"""NumPy's files: what is stored comes back, and what is damaged is named."""

import io

import numpy as np
import pytest

from zoo.data.arrays import read_npy, read_npz

ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "c": np.array("text"),
    "d": np.zeros((0, 4), np.uint8),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    for names in (None, ["b", "a"]):
        found = read_npz(path, names)
        assert list(found) == (names or list(ARRAYS))
        for name, array in found.items():
            np.testing.assert_array_equal(array, ARRAYS[name], strict=True)
    for name, array in ARRAYS.items():
        np.save(tmp_path / name, array)
        np.testing.assert_array_equal(read_npy(tmp_path / f"{name}.npy"), array, strict=True)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    path, file = tmp_path / "a.npz", io.BytesIO()
    np.savez(file, **ARRAYS)
    path.write_bytes(whole := file.getvalue())
    with pytest.raises(ValueError, match=r"a\.npz has no x, y, it has a, b, c, d"):
        read_npz(path, ["a", "x", "y"])
    damaged = [whole[: len(whole) * i // 9] for i in range(9)]
    damaged += [b"\xff".join([whole[:i], whole[i + 1 :]]) for i in range(30, 400, 7)]
    for content in damaged:
        path.write_bytes(content)
        try:
            read_npz(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (some changes are not seen: dates)
    np.save(file := io.BytesIO(), ARRAYS["a"])
    for content in (b"", file.getvalue()[:-1], b"\x93NUMPY\x01\xff"):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npy is not a complete \.npy file"):
            read_npy(tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError, match=r"cannot read .*b\.npz"):
        read_npz(tmp_path / "b.npz")
