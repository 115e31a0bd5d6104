"""What the command lines of all experiments share.

    python -m experiments.<name> [--preset NAME] [--any.field value] [--workdir DIR]

A preset is a whole config; every field of it is a flag. The settings that say where and how a run
is computed, but not what comes out, are the same for all experiments and are here.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoo import extras

# Fields that a run may be continued with changed.
MAY_CHANGE = ("workdir", "mesh", "distributed", "loop")


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
    """host:port of process 0; «auto» on Cloud TPU, Slurm and GKE."""
    num_processes: int | None = None
    process_id: int | None = None


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How often the run speaks and saves, in steps."""

    log_every: int = 50
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            at_least(1, name, getattr(self, name))


def local_path(name: str) -> pathlib.Path:
    """The path of ``PATH`` or ``file:PATH``, with ``$NAME`` and ``~`` filled in."""
    return pathlib.Path(os.path.expandvars(name.removeprefix("file:"))).expanduser()


def at_least(bound: float, name: str, value: float) -> None:
    """Raises a ValueError that names the field unless ``value`` ≥ ``bound``."""
    if not value >= bound:
        raise ValueError(f"{name} must be at least {bound}, got {value}")


def in_unit_interval(name: str, value: float) -> None:
    """Raises a ValueError that names the field unless 0 ≤ ``value`` < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


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
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        preset, arguments = _take_preset(arguments, presets)
        config = tyro.cli(
            type(presets[preset]),
            default=presets[preset],
            args=arguments,
            prog=f"python -m {run.__module__.rpartition('.')[0]}",
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


def _take_preset(arguments: list[str], presets: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Takes ``--preset NAME`` or ``--preset=NAME`` out of the arguments."""
    preset, rest = "small", []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if flag != "--preset":
            rest.append(argument)
            continue
        preset = value if equals else next(remaining, "")
        if preset not in presets:
            raise ValueError(f"--preset must be one of {', '.join(presets)}, got {preset!r}")
    return preset, rest
