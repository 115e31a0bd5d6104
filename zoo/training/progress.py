"""How far a run is: a bar on a terminal, plain lines elsewhere; process 0 alone shows them."""

import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import jax

from zoo import extras


class Progress:
    """Shows steps done, loss, rate and the time that is left.

    Args:
        total: steps in all.
        done: steps done before.
        rate_unit: what the rate counts.
        shown: False shows nothing.
    """

    def __init__(self, total: int, done: int, rate_unit: str, *, shown: bool = True) -> None:
        self._total, self._rate_unit = total, rate_unit
        self._shown = shown and jax.process_index() == 0
        self._bar: Any = None
        if self._shown and sys.stdout.isatty():
            rich = extras.require("rich.progress", "train")
            self._bar = rich.Progress(
                "step {task.completed}/{task.total}",
                rich.BarColumn(),
                "{task.description}",
                rich.TimeElapsedColumn(),
                "ETA",
                rich.TimeRemainingColumn(),
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int) -> None:
        """Moves the bar to this number of steps (4 µs: rich draws ten times per second at most)."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def report(self, done: int, record: Mapping[str, float], *, rate: float, pace: float) -> None:
        """Shows a record that was just logged; rate: weight per second; pace: steps per second."""
        text = f"loss {record['loss']:.4g}  {rate:,.4g} {self._rate_unit}/s"
        if record["nonfinite_steps"]:
            text += f"  ({record['nonfinite_steps']} steps refused: not finite)"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif self._shown:
            left = timedelta(seconds=round((self._total - done) / pace)) if pace else "?"
            print(f"step {done}/{self._total}  {text}  ETA {left}", flush=True)
