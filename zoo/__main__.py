"""The command ``zoo``.

zoo list                   lists the experiments
zoo run NAME [arguments]   runs one: [--preset smoke|small|paper] [--any.field value], or --help
zoo bench [arguments]      runs the microbenchmarks: [pattern] [--sizes small|full], or --help
zoo data [arguments]       fetches the data sets that the experiments name, or --help
zoo --version

``python -m zoo`` is the same command.
"""

import difflib
import importlib
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType

import zoo


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line, that of the process if None; returns the exit status."""
    command, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    match command:
        case "list":
            print(_beside("experiments").listing())
        case "run":
            return _run(*rest)
        case "bench":
            return importlib.import_module(f"{_beside('benchmarks').__name__}.run").main(rest)
        case "data":
            return importlib.import_module("zoo.data.fetch").main(rest)
        case "--version":
            print(zoo.__version__)
        case "--help" | "-h":
            print((__doc__ or "").strip())
        case _:
            return _mistake(f"zoo {command}: expected list, run, bench or data; see zoo --help")
    return 0


def _run(name: str = "", *rest: str) -> int:
    """Runs an experiment as ``python -m`` would."""
    experiments = _beside("experiments")
    if name not in (known := experiments.programs()):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return _mistake(f"zoo run: no experiment {name!r}; {hint}zoo list shows them")
    before = sys.argv
    sys.argv = [f"zoo run {name}", *rest]
    try:
        runpy.run_module(f"{experiments.__name__}.{name}", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
    return 0


def _beside(name: str) -> ModuleType:
    """``zoo.experiments``, or in a clone that is not installed the folder beside ``zoo``."""
    try:
        return importlib.import_module(f"zoo.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"zoo.{name}":
            raise
        return importlib.import_module(name)


def _mistake(text: str) -> int:
    print(text, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
