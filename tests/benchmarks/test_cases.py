"""Every case builds at its smallest size, and rivals that claim to be equal are."""

import sys

import jax
import numpy as np
import pytest

from benchmarks.case import discover
from tests.battery import quick_jit

CASES = discover()
PROGRAMS = [
    pytest.param(case, name, id=f"{case.name}-{name}") for case in CASES for name in case.rivals
]


@pytest.fixture(scope="module", autouse=True)
def subnormal_numbers_afterwards():
    """Rivals in PyTorch have the processor flush them to zero; other tests need them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="module")
def ours():
    """Our outputs by case, computed once."""
    outputs = {}

    def compute(case):
        if case.name not in outputs:
            outputs[case.name] = run(case.build(**smallest(case)))
        return outputs[case.name]

    return compute


def smallest(case):
    return case.sizes[case.small[0]]


def run(program):
    if callable(program):
        return jax.tree.map(np.asarray, program())
    function, arguments = program
    return quick_jit(function)(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), PROGRAMS)
def test_rival_builds_and_agrees(case, name, ours):
    try:
        program = case.rivals[name](**smallest(case))
    except ImportError as error:
        pytest.skip(str(error))
    if name not in case.equal:
        if callable(program):
            program()
        else:
            jax.eval_shape(*program[:1], *program[1])
        return
    expected, actual = jax.tree.leaves(ours(case)), jax.tree.leaves(run(program))
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-4 * np.abs(e).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_is_well_formed(case):
    assert set(case.small) <= set(case.sizes)
    assert case.small
    assert set(case.equal) <= set(case.rivals)
    for size in case.sizes.values():
        assert case.count is None or case.count(**size) > 0
        assert case.floor is None or min(case.floor(**size)[:2]) > 0


def test_case_names_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
