"""Strict mode for every test: 8 CPU devices, no silent rank promotion."""

import gc
import os
import pathlib

import hypothesis
import jax
import pytest

# Compiled programs are kept between runs, and shared with the other worker and the programs that
# tests start: compiling takes most of the suite's time. Delete .pytest_cache to start afresh.
CACHE = {
    "jax_compilation_cache_dir": str(pathlib.Path(__file__).parent / ".pytest_cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for option, value in CACHE.items():
    os.environ.setdefault(option.upper(), str(value))
    jax.config.update(option, type(value)(os.environ[option.upper()]))
jax.config.update("jax_num_cpu_devices", 8)
# No lines of source in compiled programs, and rare collections of what JAX keeps: a tenth of the
# suite's processor time.
jax.config.update("jax_traceback_in_locations_limit", 0)
gc.set_threshold(50_000, 20, 100)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Examples in docstrings that build whole models; they run with the slow tests.
SLOW_EXAMPLES = {
    "zoo.energy.adaptation.adapt_step_size",
    "zoo.energy.convergence.chain_agreement",
    "zoo.energy.hamiltonian.hamiltonian_monte_carlo",
    "zoo.ordered.language_model.OnLstmLanguageModel",
    "zoo.spherical.trainer.JoseTrainer",
    "zoo.spherical.trainer.train_jose",
    "zoo.spherical.von_mises_fisher.random_von_mises_fisher",
    "zoo.ordered.language_model.OnLstmLanguageModel.generate",
    "zoo.spherical.evaluation.word_similarity",
    "zoo.spherical.inference.embed_documents",
    "zoo.transformer.weights.load_bert",
    "zoo.transformer.weights.load_transformer",
    "zoo.transformer.weights.state_dict",
    "zoo.transformer.model.Transformer",
}
# No deadline: the first example compiles. The same examples every time: no test passes by luck.
hypothesis.settings.register_profile("zoo", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("zoo")


@pytest.hookimpl(tryfirst=True)  # before the tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow examples."""
    for item in items:
        if item.name in SLOW_EXAMPLES:
            item.add_marker(pytest.mark.slow)


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
