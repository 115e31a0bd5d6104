"""What a benchmark case is, and where cases are found."""

import dataclasses
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import zoo
from benchmarks import cases

# (function, arguments) for JAX, which the harness jits; or a thunk that runs another framework to
# its end and returns the outputs.
Program = tuple[Callable[..., Any], tuple] | Callable[[], Any]


class Floor(NamedTuple):
    """The least work any implementation must do in one call."""

    operations: int  # multiplications and additions count one each
    bytes: int  # every input read once, every output written once
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One function of ours with its rivals.

    Attributes:
        name: such as ``"ordered.on_lstm"``.
        sizes: keyword arguments of every build, by label.
        small: the labels that belong to the small set, seconds each on two cores.
        build: our program.
        rivals: other programs for the same task, by name; a build whose framework is absent raises
            ImportError.
        equal: the rivals whose outputs must be our numbers; the floor holds for them too.
        count: what one call gets through, for a rate.
        unit: what ``count`` counts.
        floor: the least work in one call; None: what XLA counts of our program, which takes the
            body of a loop once.
    """

    name: str
    sizes: Mapping[str, Mapping[str, Any]]
    small: tuple[str, ...]
    build: Callable[..., Program]
    rivals: Mapping[str, Callable[..., Program]]
    equal: tuple[str, ...] = ()
    count: Callable[..., int] | None = None
    unit: str = ""
    floor: Callable[..., Floor] | None = None

    def programs(self) -> dict[str, Callable[..., Program]]:
        """Every build, ours first under the name ``zoo``."""
        return {"zoo": self.build, **self.rivals}


def discover() -> list[Case]:
    """All cases, from the modules of ``benchmarks/cases`` that are named as a package of zoo.

    The others beside them are rivals, whose frameworks may be absent.
    """
    packages = {module.name for module in pkgutil.iter_modules(zoo.__path__)}
    names = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
    modules = [importlib.import_module(f"{cases.__name__}.{n}") for n in names if n in packages]
    return [case for module in modules for case in module.CASES]


def select(pattern: str, sizes: str, known: list[Case]) -> list[tuple[Case, str]]:
    """The (case, size label) pairs whose ``name/label`` contains the pattern (``*`` allowed)."""
    return [
        (case, label)
        for case in known
        for label in case.sizes
        if (sizes == "full" or label in case.small)
        and fnmatch.fnmatchcase(f"{case.name}/{label}", f"*{pattern}*")
    ]
