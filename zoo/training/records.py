"""What a run leaves in its folder: config, metrics, summary; and the table it ends with.

Only process 0 writes. JSON has no NaN and no infinity: they are written as null.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from zoo import extras
from zoo._files import replace_file
from zoo._remote import SCHEMES, is_remote
from zoo.training import remote
from zoo.training.lock import NAME, lock_folder, release_folders
from zoo.training.loggers import KINDS, Logger


def open_workdir(
    directory: str | pathlib.Path,
    config: Any,
    *,
    ignore: Sequence[str] = (),
    lock: bool = True,
) -> pathlib.Path:
    """Makes the folder of a run, or enters it again with the same settings, as its only writer.

    A folder without results (files that hold anything, folders with a config of their own left
    out) may be reused with new settings. The lock is that of ``zoo.training.lock``: it ends with
    the process, also in a crash. Every process of a run calls this; process 0 alone writes.

    Args:
        directory: created if absent; ``gs://…`` and ``s3://…`` (extra ``remote``) stand for a
            folder on this machine that is filled from there, and copied there with every
            checkpoint and at the end, see ``zoo.training.remote``. One process then runs alone.
        config: dataclass instance, written to ``config.json`` the first time.
        ignore: dotted names of fields that may differ from the first time, and from process to
            process, such as ``"mesh"`` (with all below it) or ``"logging.every"``.
        lock: False is for a folder that several runs may read and complete at once.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder holds a run with other settings, its config is missing or
            unreadable, the processes of this run have different settings, or the directory has a
            scheme that is not supported.
        BlockingIOError: if another process writes in the folder.
        OSError: if the folder cannot be written.

    >>> import tempfile
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     seed: int = 0
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (open_workdir(folder, Config()) / "metrics.jsonl").write_text("{}")
    ...     _ = open_workdir(folder, Config(seed=1))
    Traceback (most recent call last):
    ...
    ValueError: ... holds a run with other settings:
      seed: 0 there, 1 here
    ...
    """
    check_local(directory)
    if is_remote(os.fspath(directory)) and jax.process_count() > 1:
        raise ValueError(
            f"workdir must be a folder that all processes see, got {directory}; mount the bucket "
            "on every machine"
        )
    directory, here = remote.entered(directory), _plain(config)
    _check_same_everywhere(_flat(here), ignore)
    refusal: Exception | None = None
    if jax.process_index() == 0:
        try:
            _enter(directory, here, ignore, lock)
        except (OSError, ValueError) as error:
            refusal = error
    if jax.process_count() > 1:  # the others must not wait for a process that has left
        (reason, *_) = _from_everywhere("" if refusal is None else str(refusal))
        if reason and refusal is None:
            raise ValueError(f"process 0 was refused: {reason}")
    if refusal is not None:
        raise refusal
    return directory


def check_local(directory: str | pathlib.Path) -> None:
    """A ValueError if the directory has a scheme that is none of ``zoo.training.remote``."""
    name = os.fspath(directory)
    if not is_remote(name) and re.match(r"(?!file:)[A-Za-z][\w+.-]+:/", name):
        raise ValueError(
            "workdir must be a folder of this machine's file system, or "
            f"{', '.join(f'{scheme}://…' for scheme in SCHEMES)}, got {name!r}; copy the folder "
            "there afterwards"
        )


def _enter(directory: pathlib.Path, here: Any, ignore: Sequence[str], lock: bool) -> None:
    """Locks the folder, and writes the config or compares it with the one there."""
    new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    if lock:
        lock_folder(directory)
    path = directory / "config.json"
    if not (_has_results(directory) if path.exists() else _is_trained(directory)):
        if new or not any(file.name != NAME for file in directory.iterdir()):
            _unfinished.add(directory.resolve())
        _write(path, here)
        return
    there = read_json(path, dict, advice="restore the file, or use another --workdir")
    differing = [
        f"\n  {name}: {was} there, {now} here"
        for name, was, now in _differing(_flat(there), _flat(here), ignore)
    ]
    if differing:
        raise ValueError(
            f"{directory} holds a run with other settings:{''.join(differing)}\n"
            "Give the same settings to continue it, or another --workdir."
        )


def _has_results(directory: pathlib.Path) -> bool:
    """Whether a run has left anything but its config, which may then not be replaced."""
    for folder, folders, files in os.walk(directory):
        inside = pathlib.Path(folder)
        if inside != directory and "config.json" in files:  # a folder of its own
            folders.clear()
            continue
        own = (
            inside / file
            for file in files  # a part is what a killed process was about to put in place
            if file not in ("config.json", NAME) and not file.endswith(".part")
        )
        if any(file.stat().st_size for file in own):
            return True
    return False


def _is_trained(directory: pathlib.Path) -> bool:
    """Whether there is a record, a summary, a checkpoint or a prepared corpus."""
    patterns = ("metrics*.jsonl", "summary.json", "checkpoints*/[0-9]*/manifest")
    found = (file for pattern in patterns for file in directory.rglob(pattern))
    # A corpus is a folder of its own: inside that of a run it is none of the run's results.
    return (directory / "manifest.json").exists() or any(
        file.is_dir() or file.stat().st_size for file in found
    )


# Folders that this process made and trained nothing in, as far as it knows.
_unfinished: set[pathlib.Path] = set()


def leave_workdirs(*, failed: bool) -> None:
    """Gives up the folders that this process entered; the end of a command calls it.

    Args:
        failed: the command ended in a mistake. What it wrote in a folder that it made, or found
            empty, is removed if no record, checkpoint, summary or prepared corpus is among it: else
            a mistake in the first command would keep the corrected one out.
    """
    for directory in _unfinished if failed else ():
        if not _is_trained(directory):
            shutil.rmtree(directory, ignore_errors=True)
    _unfinished.clear()
    remote.leave()
    release_folders()


def _differing(
    old: Mapping[str, str], new: Mapping[str, str], ignore: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Name and both values of each field that differs."""
    for name in dict.fromkeys([*old, *new]):
        pair = old.get(name, "absent"), new.get(name, "absent")
        ignored = any(name == field or name.startswith(field + ".") for field in ignore)
        if pair[0] != pair[1] and not ignored:
            yield name, *pair


def _check_same_everywhere(flat: dict[str, str], ignore: Sequence[str]) -> None:
    if jax.process_count() == 1:
        return
    first, *others = map(json.loads, _from_everywhere(json.dumps(flat)))
    for number, other in enumerate(others, 1):
        if found := list(_differing(first, other, ignore)):
            lines = (f"\n  {name}: {a} in process 0, {b} in {number}" for name, a, b in found)
            raise ValueError(
                f"the processes of one run have other settings:{''.join(lines)}\n"
                "Give every process the same command."
            )


def _from_everywhere(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.pad(data, (0, int(sizes.max()) - data.size))
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def read_json(path: pathlib.Path, kind: type, *, advice: str) -> Any:
    """What a JSON file holds, a ``kind``.

    Raises:
        ValueError: if it is absent, cut, damaged or of another kind; names the file.
        OSError: if the system refuses to read it (no permission, too many files open).
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}, expected a {kind.__name__}")
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {advice}") from error
    return content


class MetricsLog:
    """One JSON object per line, each written out at once.

    Args:
        path: the file; created if absent.
        logger: where the records also go, a name of ``zoo.training.loggers.KINDS``.

    Attributes:
        count: lines that belong in the file, on every process; None if nobody has counted them.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with MetricsLog(folder + "/metrics.jsonl") as log:
    ...         log.write(1, {"loss": 2.5})
    ...         log.write(2, {"loss": float("nan")})
    ...     print(pathlib.Path(folder, "metrics.jsonl").read_text().strip())
    {"step": 1, "loss": 2.5}
    {"step": 2, "loss": null}
    """

    def __init__(self, path: str | pathlib.Path, *, logger: str | None = None) -> None:
        self.path = pathlib.Path(path)
        self.count: int | None = None
        self._writes = jax.process_index() == 0
        self._also: list[Logger] = []
        if self._writes and logger is not None:
            self._also.append(KINDS[logger](self.path))
        if self._writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line: the number of steps done, and what JSON, NumPy or JAX scalars can hold."""
        if self.count is not None:
            self.count += 1
        if self._writes:
            try:
                self._file.write(json.dumps({"step": step, **_plain(values)}) + "\n")
                self._file.flush()
            except OSError as error:  # a full disk: Python does not say which file
                error.filename = str(self.path)
                raise
            for logger in self._also:
                logger.write(step, values)

    def resume(self, step: int, count: int | None = None) -> None:
        """Drops what a run that continues from ``step`` writes again, and lines cut off by a crash.

        ``fit`` calls it with the restored step, 0 for a new start. Other lines that are no records
        are dropped too, with a warning, as there is for lines that are missing.

        Args:
            step: the run continues from.
            count: lines that there were then, if it is known.
        """
        self.count = count
        if not self._writes:
            return
        kept, bad = [], []
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # the last one is empty or cut off
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + b"\n")
            except (ValueError, TypeError, KeyError, RecursionError):
                bad.append(str(number))
        if bad:
            text = f"{self.path}: damaged and left out: line {', '.join(bad)}"
            warnings.warn(text[:500], stacklevel=2)
        if count is not None and len(kept) < count:
            text = f"{self.path} lacks {count - len(kept)} of the {count} records up to step {step}"
            warnings.warn(f"{text}: tables and pictures made of it are incomplete", stacklevel=2)
        self._file.close()
        replace_file(self.path, b"".join(kept))
        self._file = self.path.open("a", encoding="utf-8")
        for logger in self._also:
            logger.resume(step)

    def close(self) -> None:
        """Closes the file."""
        if self._writes:
            with contextlib.suppress(OSError):  # of a line that could not be written: said then
                self._file.close()
        for logger in self._also:
            logger.close()


def write_summary(directory: str | pathlib.Path, summary: Mapping[str, Any]) -> pathlib.Path:
    """Writes ``summary.json`` in the folder of a run, completely or not at all; gives its path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     json.loads(write_summary(folder, {"loss": np.float32(0.5)}).read_text())
    {'loss': 0.5}
    """
    path = pathlib.Path(directory) / "summary.json"
    if jax.process_index() == 0:
        _write(path, _plain(summary))
        remote.publish(path)
    return path


def results_table(rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Prints a table on the terminal.

    Args:
        rows: one mapping per row, column name -> value; missing values stay empty.
        title: above the table.

    Raises:
        ImportError: without the extra ``train``.

    >>> rows = [{"model": "5-gram", "perplexity": 141.25}, {"model": "ours", "bits": np.float32(2)}]
    >>> results_table(rows, title="Test set")
              Test set
    ┏━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━┓
    ┃ model  ┃ perplexity ┃ bits ┃
    ┡━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━┩
    │ 5-gram │      141.2 │      │
    │ ours   │            │    2 │
    └────────┴────────────┴──────┘
    """
    if jax.process_index() != 0:
        return
    table = extras.require("rich.table", "train").Table(title=title)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        numeric = all(isinstance(_plain(row.get(name, 0)), int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in columns))
    extras.require("rich.console", "train").Console().print(table)


def _cell(value: Any) -> str:
    value = value if isinstance(value, float) else _plain(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)  # their own order changes from run to run
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name -> value as JSON."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: json.dumps(tree)}
    flat: dict[str, str] = {}
    for name, item in tree.items():
        flat |= _flat(item, f"{prefix}.{name}" if prefix else name)
    return flat


def _write(path: pathlib.Path, content: Any) -> None:
    replace_file(path, json.dumps(content, indent=2) + "\n")
