"""What the command lines of all experiments share.

    python -m experiments.<name> [--preset NAME] [--any.field value] [--workdir DIR]

A preset is a complete config; every field of it is a flag. The settings that say where and how a
run is computed, but not what comes out, are the same for all experiments and are here.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from zoo import extras
from zoo._remote import is_remote
from zoo.training.mesh import leave_distributed
from zoo.training.records import check_local, leave_workdirs
from zoo.training.remote import stage

# What every experiment uses in the end: a module that is missing is found out at the start.
NEEDED = ("tyro", "rich.table", "orbax.checkpoint", "matplotlib.figure")
EXTRAS = "data,train,plot"

# What a mistake of the user raises; anything else shows where it comes from.
_MISTAKES = (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError)
_OF_THE_MACHINE = (OSError, TimeoutError, RuntimeError)  # themselves: no missing file, no lock


def local_path(name: str) -> pathlib.Path:
    """The path of ``PATH`` or ``file:PATH``, with ``$NAME`` and ``~`` filled in.

    Raises:
        ValueError: if an environment variable is not set, and there is no file of that name, or if
            ``~NAME`` is nobody.
    """
    filled = os.path.expandvars(name.removeprefix("file:"))
    if (unset := re.search(r"\$(\w+|\{\w+\})", filled)) and not os.path.exists(filled):
        hint = "; `python -m zoo.data.fetch` fetches the sets of the READMEs into it"
        raise ValueError(
            f"{name}: the environment variable {unset[1].strip('{}')} is not set"
            + (hint if "ZOO_DATA" in unset[1] else "")
        )
    try:
        return pathlib.Path(filled).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}: {error}") from error


def at_least(bound: float, settings: Any, *names: str) -> None:
    """Raises a ValueError that names the field unless each of them is ≥ ``bound`` or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{_flag(settings, name)} must be at least {bound}, got {value}")


def in_unit_interval(settings: Any, *names: str) -> None:
    """Raises a ValueError that names the field unless 0 ≤ each of them < 1."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            value = getattr(settings, name)
            raise ValueError(f"{_flag(settings, name)} must be in [0, 1), got {value}")


def all_different(settings: Any, *names: str) -> None:
    """Raises a ValueError that names the field unless each holds something, and nothing twice."""
    for name in names:
        values = getattr(settings, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"{_flag(settings, name)} must hold at least one value and none twice, got {values}"
            )


def check_numbers(settings: Any, section: str = "") -> None:
    """Raises a ValueError that names the field unless every number can be computed with.

    A float is finite, but for limits (``max_…``, ``…_clip``), where infinity is none; an integer
    fits in 32 bits, and a seed is not negative.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{section}{field.name}"
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{name}.")
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float):
                limit = name.endswith("_clip") or field.name.startswith("max_")
                if math.isnan(item) or (math.isinf(item) and not limit):
                    raise ValueError(f"{name} must be finite, got {item}")
            elif isinstance(item, int):
                seed = field.name in ("seed", "seeds")
                if not (0 if seed else -(2**31)) <= item < 2**31:
                    wanted = f"be from 0 to {2**31 - 1}" if seed else "fit in 32 bits"
                    raise ValueError(f"{name} must {wanted}, got {item}")


def change(config: Any, **fields: Any) -> Any:
    """The config with other fields; of a section, those that its dictionary names.

    ``change(config, workdir="runs/short", training={"steps": 200})``
    """
    for name, value in fields.items():
        if isinstance(value, dict):
            fields[name] = dataclasses.replace(getattr(config, name), **value)
    return dataclasses.replace(config, **fields)


def _flag(settings: Any, name: str) -> str:
    """``training.epochs`` for the field epochs of a TrainingConfig."""
    section = type(settings).__name__.removesuffix("Config").removesuffix("Fields").lower()
    return f"{section}.{name}".removeprefix(".")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis takes; -1 takes all that are left."""

    data: int = -1
    """Copies of the model, each with its share of the batch."""
    fsdp: int = 1
    """Shares of the batch that also hold a share of every parameter."""
    model: int = 1
    """Shares of every layer's units."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes: the same command in each, with its own process_id."""

    coordinator_address: str | None = None
    """host:port of process 0; "auto" on Cloud TPU, Slurm and GKE."""
    num_processes: int | None = None
    process_id: int | None = None
    initialization_timeout: int = 300
    """Seconds to wait for the other processes at the start."""
    heartbeat_timeout: int = 60
    """Seconds without a sign of life of a process after which the others end."""

    def __post_init__(self) -> None:
        at_least(1, self, "initialization_timeout", "heartbeat_timeout")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How often the run logs and saves, in steps."""

    log_every: int = 50
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    progress: bool = True
    logger: Literal["tensorboard", "wandb"] | None = None
    """Where the records of metrics.jsonl also go; the extra logging installs both."""

    def __post_init__(self) -> None:
        at_least(1, self, "log_every", "checkpoint_every", "keep_checkpoints")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where and how a run is computed, not what comes out.

    A config names it before its own fields, whose flags then come first in ``--help``:

        class Config(RunConfig, Fields): ...
    """

    workdir: str = ""
    """Folder of the run, or gs://… or s3://…; the same command continues it."""
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()


# Fields that a run may be continued with changed.
MAY_CHANGE = tuple(field.name for field in dataclasses.fields(RunConfig))


def main(
    run: Callable[[Any], None],
    presets: Mapping[str, Any],
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parses the command line and runs the experiment.

    Args:
        run: takes the config.
        presets: name -> config; ``small`` is the default.
        description: what ``--help`` says first.
        arguments: the command line, that of the process if None.

    A mistake of the user ends in one line and exit code 2 (1 if it may be a failure of another
    process); ``ZOO_TRACEBACK=1`` shows where it was noticed. What such a run wrote in a folder of
    its own is removed, unless it has trained.
    """
    with _lasting("stdout"), _lasting("stderr"):
        failed, code = False, 0
        try:
            for module in NEEDED:
                extras.require(module, EXTRAS)
            config = parse(run, presets, description, arguments)
            run(config)
        except jax.errors.JaxRuntimeError:  # of the machine, not of the command
            raise
        except _MISTAKES as error:
            failed = True
            if os.environ.get("ZOO_TRACEBACK"):
                raise
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            print("(ZOO_TRACEBACK=1 shows where.)", file=sys.stderr)
            # Another process may be gone, which shows as the failure of what was under way: a
            # cluster starts such a run again, and not one with a mistake (2).
            several = jax.distributed.is_initialized()
            code = 1 if several and type(error) in _OF_THE_MACHINE else 2
        except KeyboardInterrupt:
            if os.environ.get("ZOO_TRACEBACK"):
                raise
            print("interrupted; the same command continues", file=sys.stderr)
            code = 130
        finally:
            leave_workdirs(failed=failed)
        if code:
            leave_distributed(code)
            sys.exit(code)


def parse(
    run: Callable[[Any], None],
    presets: Mapping[str, Any],
    description: str | None,
    arguments: Sequence[str] | None,
) -> Any:
    """The config of a command line; arguments as those of ``main``."""
    tyro = extras.require("tyro", "train")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default="small")
    chosen, others = parser.parse_known_args(arguments)
    if (preset := chosen.preset) not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}, got {preset!r}")
    package = run.__module__.rpartition(".")[0]
    program = run.__module__.removesuffix(".train")  # such as experiments.pretraining.finetune
    folder = package.rpartition(".")[2] + ("" if preset == "small" else f"_{preset}")
    workdir = presets[preset].workdir or f"runs/{folder}"
    config = tyro.cli(
        type(presets[preset]),
        default=dataclasses.replace(presets[preset], workdir=workdir),
        args=others,
        prog=f"python -m {program} [--preset NAME]".replace(
            "python -m zoo.experiments.", "zoo run "
        ),
        config=(tyro.conf.FlagConversionOff,),  # --any.field value for truth values too
        description=f"{description or ''}\n\nPresets: --preset {' | '.join(presets)}.",
    )
    check_numbers(config)
    if not config.workdir.strip():
        raise ValueError("workdir must name a folder, got an empty name")
    check_local(config.workdir)
    if is_remote(config.workdir):
        if getattr(config, "distributed", DistributedConfig()) != DistributedConfig():
            raise ValueError(
                f"workdir must be a folder that all processes see, got {config.workdir}; mount the "
                "bucket on every machine"
            )
        return dataclasses.replace(config, workdir=os.fspath(stage(config.workdir)))
    return dataclasses.replace(config, workdir=os.fspath(local_path(config.workdir)))


@contextlib.contextmanager
def _lasting(name: str) -> Iterator[None]:
    """Inside it, a standard output that goes away (``| head``, a full disk) ends no run."""
    stream = getattr(sys, name)
    with open(os.devnull, "w") as nowhere:
        # None: it was closed before the program began.
        setattr(sys, name, nowhere if stream is None else _LastingStream(stream))
        try:
            yield
        finally:
            setattr(sys, name, stream)


class _LastingStream:
    """A stream that goes on into nothing once it cannot be written to."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._going_on():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._going_on():
            self._stream.flush()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is still in the buffer goes there too, when the program ends.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if sys.stderr is not self:
                print(f"no more output ({error}); the run goes on", file=sys.stderr)
