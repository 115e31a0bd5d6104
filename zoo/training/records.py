"""What a run leaves in its folder: config, metrics, summary; and the table it ends with.

Only process 0 writes. JSON has no NaN and no infinity: they are written as null.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zoo import extras
from zoo._files import replace_file


def open_workdir(
    directory: str | pathlib.Path, config: Any, *, ignore: Sequence[str] = ()
) -> pathlib.Path:
    """Makes the folder of a run, or enters it again with the same settings.

    A folder that holds only ``config.json`` may be reused with new settings.

    Args:
        directory: created if absent.
        config: dataclass instance, written to ``config.json`` the first time.
        ignore: dotted names of fields that may differ from the first time, such as
            ``"mesh"`` (with all below it) or ``"logging.every"``.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder holds a run with other settings, or its config is unreadable.

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
    directory = pathlib.Path(directory)
    if jax.process_index() != 0:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    here = _plain(config)
    results = (file for file in directory.rglob("*") if file.is_file() and file != path)
    if not path.exists() or not any(file.stat().st_size for file in results):
        _write(path, here)
        return directory
    try:
        there = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); use another --workdir") from error
    old, new = _flat(there), _flat(here)
    differing = [
        f"\n  {name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} here"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
        and not any(name == field or name.startswith(field + ".") for field in ignore)
    ]
    if differing:
        raise ValueError(
            f"{directory} holds a run with other settings:{''.join(differing)}\n"
            "Give the same settings to continue it, or another --workdir."
        )
    return directory


class MetricsLog:
    """One JSON object per line, each written out at once.

    Args:
        path: the file; created if absent.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with MetricsLog(folder + "/metrics.jsonl") as log:
    ...         log.write(1, {"loss": 2.5})
    ...         log.write(2, {"loss": float("nan")})
    ...     print(pathlib.Path(folder, "metrics.jsonl").read_text().strip())
    {"step": 1, "loss": 2.5}
    {"step": 2, "loss": null}
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        self._writes = jax.process_index() == 0
        if self._writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line: the number of steps done, and what JSON, NumPy or JAX scalars can hold."""
        if self._writes:
            self._file.write(json.dumps({"step": step, **_plain(values)}) + "\n")
            self._file.flush()

    def resume(self, step: int) -> None:
        """Drops what a run that continues from ``step`` writes again, and lines cut off by a crash.

        ``fit`` calls it with the restored step, 0 for a new start.
        """
        if not self._writes:
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, TypeError, KeyError):
                continue
        self._file.close()
        replace_file(self.path, "".join(kept))
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Closes the file."""
        if self._writes:
            self._file.close()


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
