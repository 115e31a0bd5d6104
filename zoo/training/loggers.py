"""Where metrics go beside the JSON lines: TensorBoard, or Weights & Biases.

Both are optional (extra ``logging``) and get what ``MetricsLog`` gets, on process 0. A run that
continues from a step writes again what comes after it; TensorBoard then hides what was there, and
Weights & Biases keeps it, as it is the same.
"""

import json
import os
import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from zoo import extras
from zoo._files import replace_file


class Logger(Protocol):
    """What ``MetricsLog`` calls."""

    def resume(self, step: int) -> None:
        """The run goes on from this step, 0 for a new one; comes before the first record."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """A record; what is no number is left out."""

    def close(self) -> None:
        """Nothing comes any more."""


class TensorBoard:
    """Event files in ``tensorboard/`` beside ``metrics.jsonl``: ``tensorboard --logdir runs``."""

    def __init__(self, path: pathlib.Path) -> None:
        self._open = extras.require("tensorboardX", "logging").SummaryWriter
        self._folder = path.with_name(path.stem.replace("metrics", "tensorboard"))
        self._writer: Any = None

    def resume(self, step: int) -> None:
        """See :class:`Logger`."""
        self.close()
        self._writer = self._open(
            os.fspath(self._folder),
            purge_step=step + 1 if step else None,
            filename_suffix=f".{step}",  # two files of one second are two files
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """See :class:`Logger`."""
        if self._writer is None:
            self.resume(0)
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See :class:`Logger`."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run named after the folder; ``wandb.json`` there keeps its id for the run that goes on.

    Project, entity and mode are those of the environment (``WANDB_PROJECT``, ``WANDB_MODE=offline``
    …); the project is ``zoo`` if it names none.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._wandb = extras.require("wandb", "logging")
        self._folder = path.parent
        self._id = path.with_name(path.stem.replace("metrics", "wandb") + ".json")
        self._run: Any = None

    def resume(self, step: int) -> None:
        """See :class:`Logger`."""
        if not step or not self._id.exists():
            replace_file(self._id, json.dumps({"id": uuid.uuid4().hex[:16]}))
        # The config of a part of a run is in the folder above it.
        configs = (self._folder / "config.json", self._folder.parent / "config.json")
        found = [json.loads(file.read_text()) for file in configs if file.exists()]
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "zoo"),
            id=json.loads(self._id.read_text())["id"],
            name=self._folder.name,
            dir=os.fspath(self._folder),
            config=found[0] if found else None,
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """See :class:`Logger`."""
        if self._run is None:
            self.resume(0)
        self._run.log(_numbers(values), step=step)

    def close(self) -> None:
        """See :class:`Logger`."""
        if self._run is not None:
            self._run.finish()
            self._run = None


KINDS: dict[str, Callable[[pathlib.Path], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if getattr(value, "ndim", 0) == 0 and not isinstance(value, str | bool | None)
    }
