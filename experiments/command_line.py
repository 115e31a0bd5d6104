"""What the command lines of all experiments share.

    python -m experiments.<name> [--preset NAME] [--any.field value] [--workdir DIR]

A preset is a complete config; every field of it is a flag. The settings that say where and how a
run is computed, but not what comes out, are the same for all experiments and are here.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoo import extras


def local_path(name: str) -> pathlib.Path:
    """The path of ``PATH`` or ``file:PATH``, with ``$NAME`` and ``~`` filled in."""
    return pathlib.Path(os.path.expandvars(name.removeprefix("file:"))).expanduser()


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
    return f"{type(settings).__name__.removesuffix('Config').lower()}.{name}".removeprefix(".")


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


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How often the run logs and saves, in steps."""

    log_every: int = 50
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    progress: bool = True

    def __post_init__(self) -> None:
        at_least(1, self, "log_every", "checkpoint_every", "keep_checkpoints")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where and how a run is computed, not what comes out.

    A config names it before its own fields, whose flags then come first in ``--help``:

        class Config(RunConfig, Fields): ...
    """

    workdir: str = ""
    """Folder of the run; the same command continues it."""
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

    A mistake of the user ends in one line and exit code 2; ``ZOO_TRACEBACK=1`` shows where it was
    noticed.
    """
    tyro = extras.require("tyro", "train")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default="small")
    chosen, others = parser.parse_known_args(arguments)
    try:
        if (preset := chosen.preset) not in presets:
            raise ValueError(f"--preset must be one of {', '.join(presets)}, got {preset!r}")
        package = run.__module__.rpartition(".")[0]
        folder = package.rpartition(".")[2] + ("" if preset == "small" else f"_{preset}")
        workdir = presets[preset].workdir or f"runs/{folder}"
        config = tyro.cli(
            type(presets[preset]),
            default=dataclasses.replace(presets[preset], workdir=workdir),
            args=others,
            prog=f"python -m {package}",
            config=(tyro.conf.FlagConversionOff,),  # --any.field value for truth values too
            description=f"{description or ''}\n\nPresets: --preset {' | '.join(presets)}.",
        )
        run(config)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("ZOO_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        print("(ZOO_TRACEBACK=1 shows where.)", file=sys.stderr)
        sys.exit(2)
