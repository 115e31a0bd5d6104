"""How far a run is: a bar on a terminal, plain lines elsewhere; process 0 alone shows them."""

import contextlib
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import jax

from zoo import extras


def say(text: str) -> None:
    """Prints a line; an output that is gone (``| head``, a full disk) never ends a run."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
        print(text, flush=True)


class Progress:
    """Shows steps done, loss, rate and the time that is left.

    The time is that of all parts, at the mean pace of the later half of the steps done since this
    process began: evaluations and checkpoints count, a compilation at the start is soon left out.

    Args:
        total: steps in all.
        done: steps done before.
        rate_unit: what the rate counts.
        part: which of how many runs of as many steps this is.
        shown: False shows nothing.
    """

    def __init__(
        self,
        total: int,
        done: int,
        rate_unit: str,
        *,
        part: tuple[int, int] = (1, 1),
        shown: bool = True,
    ) -> None:
        self._total, self._rate_unit = total, rate_unit
        self._after = (part[1] - part[0]) * total  # steps of the parts after this one
        self._part = "part {}/{}  ".format(*part) if part[1] > 1 else ""
        self._shown = shown and jax.process_index() == 0
        # (steps, time) after the first step, which compiles, and at every report.
        self._marks: list[tuple[int, float]] = []
        self._bar: Any = None
        if self._shown and _is_terminal(sys.stdout):
            rich = extras.require("rich.progress", "train")
            self._bar = rich.Progress(
                self._part + "step {task.completed}/{task.total}",
                rich.BarColumn(),
                rich.TimeElapsedColumn(),
                "{task.description}",
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "Progress":
        with contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.stop()

    def advance(self, done: int) -> None:
        """Moves the bar to this number of steps (4 µs: rich draws ten times per second at most)."""
        if not self._marks:
            self._marks.append((done, time.perf_counter()))
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def report(self, done: int, record: Mapping[str, float], *, rate: float) -> None:
        """Shows a record that was just logged; rate: weight per second."""
        text = f"loss {record['loss']:.4g}  {rate:,.4g} {self._rate_unit}/s"
        if record["nonfinite_steps"]:
            text += f"  ({record['nonfinite_steps']} steps refused: not finite)"
        text += f"  ETA {self._left(done)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif self._shown:
            say(f"{self._part}step {done}/{self._total}  {text}")

    def _left(self, done: int) -> str:
        self._marks.append((done, time.perf_counter()))
        (first, _), (_, now) = self._marks[0], self._marks[-1]
        if done == first:
            return "?"
        steps, then = next(mark for mark in reversed(self._marks) if 2 * mark[0] <= first + done)
        left = self._total - done + self._after
        return str(timedelta(seconds=round(left * (now - then) / (done - steps))))


def _is_terminal(stream: Any) -> bool:
    """Whether a bar can be drawn there; a standard output that is closed may be None."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False
