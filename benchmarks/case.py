"""What a benchmark case is, how plain functions make one, and where cases are found."""

import dataclasses
import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.extras import require

from . import cases

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


# Cases from plain functions of arrays.


class Rival(NamedTuple):
    """A rival that takes other inputs than ours."""

    function: Callable[..., Any] | str
    inputs: Callable[..., Sequence[Any]]
    options: tuple[str, ...] = ()


def make_case(
    name: str,
    ours: Callable[..., Any],
    rivals: Mapping[str, Callable[..., Any] | str | Rival],
    inputs: Callable[..., Sequence[Any]],
    *,
    gradient: bool = False,
    argnums: int | tuple[int, ...] = 0,
    options: tuple[str, ...] = (),
    keeps_output: bool = False,
    sizes: Mapping[str, Mapping[str, Any]],
    small: tuple[str, ...] = (),
    equal: tuple[str, ...] | None = None,
    **fields: Any,
) -> Case:
    """A case whose programs are functions of the same arrays, or their gradients.

    Args:
        name: of the case; a gradient case has ``" gradient"`` behind it.
        ours: our function of the inputs and, by keyword, of the options.
        rivals: functions of the same in JAX, or names of functions in `torch_programs`.
        inputs: the arrays, or trees of arrays, of a size.
        gradient: the output, or if it is an array a weighted sum of it, and its gradient.
        argnums: the inputs the gradient belongs to; for PyTorch, all of floating point.
        options: the entries of a size that the functions take as keyword arguments.
        keeps_output: the gradient case returns the output itself, not its weighted sum.
        sizes: of the `Case`.
        small: of the `Case`; the first size if none is named.
        equal: of the `Case`; all rivals if not given.
        **fields: of the `Case`.
    """

    def build(rival: Rival, **size: Any) -> Program:
        arrays, chosen = tuple(rival.inputs(**size)), {n: size[n] for n in rival.options}
        weights = None
        if gradient:
            ours_of_size = functools.partial(ours, **{n: size[n] for n in options})
            shape = jax.eval_shape(ours_of_size, *inputs(**size)).shape
            weights = normal(1, *shape) if shape else None
        if isinstance(rival.function, str):
            made = torch_programs().make(rival.function, chosen)
            if not gradient:
                return torch_programs().forward(made, arrays)
            return torch_programs().backward(made, arrays, weights, keeps_output)
        function = functools.partial(rival.function, **chosen)
        jax.eval_shape(function, *arrays)  # here a library that is absent is noticed
        if not gradient:
            return function, arrays

        def loss(*arguments: Any) -> tuple[jax.Array, jax.Array]:
            y = function(*arguments[:-1])
            value = y if weights is None else jnp.vdot(y, arguments[-1])
            return value, y if keeps_output else value

        def value_and_gradient(*arguments: Any) -> tuple[jax.Array, Any]:
            (_, output), gradients = jax.value_and_grad(loss, argnums, has_aux=True)(*arguments)
            return output, gradients

        return value_and_gradient, (*arrays, weights)

    def bound(program: Any) -> Callable[..., Program]:
        rival = program if isinstance(program, Rival) else Rival(program, inputs, options)
        return functools.partial(build, rival)

    return Case(
        name=name + " gradient" * gradient,
        build=bound(ours),
        rivals={rival: bound(program) for rival, program in rivals.items()},
        sizes=sizes,
        small=small or tuple(sizes)[:1],
        equal=tuple(rivals) if equal is None else equal,
        **fields,
    )


def forward_and_gradient(*arguments: Any, **options: Any) -> list[Case]:
    """The two cases of `make_case`; ``floor`` is that of the gradient."""
    forward = options | {"floor": None}
    return [make_case(*arguments, **forward), make_case(*arguments, gradient=True, **options)]


def normal(seed: int, *shape: int) -> np.ndarray:
    """Random numbers, always the same for a seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torch_programs() -> Any:
    """The rivals in PyTorch, or an ImportError that says what to install."""
    require("torch", "bench")
    return importlib.import_module(f"{cases.__name__}.torch_programs")


# Where cases are found.


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
