"""Strict mode for every test: 8 CPU devices, no silent rank promotion."""

import os
import pathlib

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# No deadline: the first example compiles. The same examples every time: no test passes by luck.
hypothesis.settings.register_profile("zoo", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("zoo")


@pytest.fixture(scope="session")
def data_directory() -> pathlib.Path:
    """The folder of real data sets: ``ZOO_DATA``, or ``../shared/data`` beside the checkout."""
    default = pathlib.Path(__file__).resolve().parents[1] / "shared" / "data"
    directory = pathlib.Path(os.environ.get("ZOO_DATA", default))
    if not directory.is_dir():
        pytest.skip(
            f"no real data: set ZOO_DATA to a folder with ptb/ and the other sets ({directory=})"
        )
    return directory


@pytest.fixture
def double_precision():
    """Runs one test with 64-bit floats."""
    with jax.enable_x64(True):
        yield
