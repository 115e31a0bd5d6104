"""Files are replaced completely or not at all, everywhere."""

import ast
import os
import pathlib

import pytest

from zoo._files import replace_file

ROOT = pathlib.Path(__file__).parents[2]
WRITERS = {"write_text", "write_bytes", "savefig", "save_file", "tofile", "to_csv", "savetxt"}
MODES = {"w", "wb", "wt", "a", "ab", "x", "xb", "r+b", "w+b"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    replace_file(path, "old é")
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(*((os, "fsync") if failing == "fsync" else (pathlib.Path, "replace")), fail)
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, "new")
    assert path.read_text("utf-8") == "old é"
    assert list(tmp_path.iterdir()) == [path]
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


def writes(call):
    """Whether a call opens a file to write; one that is only named may be a buffer in memory."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name == "open":
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        literals = [node.value for node in given if isinstance(node, ast.Constant)]
        return any(str(value) in MODES for value in literals)
    if isinstance(function, ast.Name):  # such as the project's own write_bytes
        return False
    of_numpy = name in ("save", "savez") and ast.unparse(function.value) == "np"
    return name in WRITERS or (of_numpy and not isinstance(call.args[0], ast.Name))


def test_every_file_is_replaced_at_once():
    """But for the log, which is appended to, and what stands in for a lost output."""
    found = {}
    for path in [*(ROOT / "zoo").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        text = path.read_text("utf-8")
        if not any(f"{name}(" in text for name in (*WRITERS, "open", "save", "savez")):
            continue
        calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        if lines := [ast.unparse(call) for call in calls if writes(call)]:
            found[path.relative_to(ROOT).as_posix()] = lines
    assert {name: len(lines) for name, lines in found.items()} == {
        "experiments/attention_map/__main__.py": 1,  # one picture, where the user says
        "experiments/command_line.py": 2,
        "experiments/pictures.py": 1,  # into memory
        "zoo/_files.py": 1,
        "zoo/data/fetch.py": 1,  # a part, which replaces the file
        "zoo/data/public_sets.py": 1,  # into memory
        "zoo/training/records.py": 2,
    }, found
