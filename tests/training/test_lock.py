"""One writer per folder."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from zoo.training import lock, open_workdir
from zoo.training.lock import lock_folder
from zoo.training.records import leave_workdirs

HOLD = """
import pathlib, runpy, sys
lock_folder = runpy.run_path(sys.argv[1])["lock_folder"]  # alone, without JAX
lock_folder(pathlib.Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def released():
    yield
    leave_workdirs(failed=False)


@pytest.mark.slow
@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.communicate])
def test_another_process_is_kept_out_until_the_first_has_ended(tmp_path, end):
    """Killed or not: the file that it leaves holds nobody up."""
    command = [sys.executable, "-c", HOLD, lock.__file__, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        message = rf"another run is writing here: process {holder.pid} on .*, since .* --workdir"
        for _ in range(2):
            with pytest.raises(BlockingIOError, match=message) as caught:
                open_workdir(tmp_path, {})
            assert caught.value.filename == str(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        end(holder)
    assert (tmp_path / ".lock").read_text().startswith("process ")
    open_workdir(tmp_path, {})
    kept_out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} on" in kept_out.stderr
    leave_workdirs(failed=False)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout == b"held\n"


def test_the_same_process_may_enter_again(tmp_path):
    for _ in range(2):
        open_workdir(tmp_path, {})
        open_workdir(tmp_path / "inner", {})
    held = dict(lock._held)
    open_workdir(tmp_path, {})
    assert lock._held == held
    leave_workdirs(failed=False)
    assert not lock._held
    for descriptor in held.values():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_folder_that_several_may_complete_is_not_locked(tmp_path):
    open_workdir(tmp_path, {}, lock=False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("system", ["no locks", "Windows"])
def test_where_nothing_can_be_locked_it_is_said(tmp_path, monkeypatch, system):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if system == "Windows":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="nothing keeps a second run out of this folder"):
        lock_folder(pathlib.Path(tmp_path))
    assert not lock._held
