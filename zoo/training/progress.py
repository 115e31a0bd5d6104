"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

import jax

from zoo import extras

# Redrawing at every step would cost more than a small step itself.
SECONDS_BETWEEN_DRAWINGS = 0.1


class Progress:
    """Shows steps done, loss, rate and the time that is left; only process 0 shows anything.

    Args:
        total: steps in all.
        done: steps done before.
        rate_unit: what the rate counts.
        shown: False shows nothing.
    """

    def __init__(self, total: int, done: int, rate_unit: str, *, shown: bool = True) -> None:
        self._total = total
        self._rate_unit = rate_unit
        self._lines = shown and jax.process_index() == 0
        self._bar: Any = None
        self._drawn = 0.0
        if self._lines and sys.stdout.isatty():
            rich = extras.require("rich.progress", "train")
            self._bar = rich.Progress(
                rich.TextColumn("step {task.completed}/{task.total}"),
                rich.BarColumn(),
                rich.TextColumn("{task.description}"),
                rich.TimeElapsedColumn(),
                rich.TextColumn("ETA"),
                rich.TimeRemainingColumn(),
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int) -> None:
        """Moves the bar.

        Args:
            done: steps done.
        """
        if self._bar is None:
            return
        now = time.perf_counter()
        if now - self._drawn > SECONDS_BETWEEN_DRAWINGS or done == self._total:
            self._bar.update(self._task, completed=done)
            self._drawn = now

    def report(self, done: int, record: Mapping[str, float], *, rate: float, pace: float) -> None:
        """Shows what was just logged.

        Args:
            done: steps done.
            record: has ``loss``.
            rate: weight a second.
            pace: steps a second.
        """
        text = f"loss {record['loss']:.4g}  {rate:,.4g} {self._rate_unit}/s"
        if record["nonfinite_steps"]:
            text += f"  ({record['nonfinite_steps']} steps refused: not finite)"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif self._lines:
            left = timedelta(seconds=round((self._total - done) / pace)) if pace else "?"
            print(f"step {done}/{self._total}  {text}  ETA {left}", flush=True)

    def say(self, text: str) -> None:
        """Prints a message.

        Args:
            text: the message.
        """
        if jax.process_index() == 0:
            print(text, flush=True)
