"""What the experiments share: means over held-out rows, presets, changes of a config."""

import dataclasses
import errno
import importlib
import io
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import command_line
from experiments.energy_plane.config import PRESETS
from experiments.running import check_rows, decaying_adamw, finish, held_out_means
from experiments.unigram import judged, unigram_entropy
from zoo.training import LossOutput, make_mesh


def test_held_out_means_count_every_row_once():
    @jax.jit
    def loss(parameters, batch, *, key, carry):
        weights = jnp.float32(batch["valid"])
        total = (weights * parameters * batch["x"]).sum()
        return LossOutput(total, weights.sum(), metrics={"large": ((batch["x"] > 2).sum(), 5.0)})

    rows, mesh = [{"x": jnp.float32(i)} for i in range(5)], make_mesh(devices=jax.devices()[:1])
    means = held_out_means(loss, 2.0, rows, batch_size=2, mesh=mesh)
    assert means == {"loss": 4.0, "large": 3 / 15}  # 3, 4 and the copy of 4 that fills a batch


@pytest.mark.parametrize(
    "flags", [["--preset=smoke", "--long", "3"], ["--long=3", "--preset", "smoke"]]
)
def test_flags_change_a_preset(flags):
    found = []

    def run(config):
        found.append(config)

    run.__module__ = "experiments.energy_plane.train"
    command_line.main(run, PRESETS, None, flags)
    expected = dataclasses.replace(PRESETS["smoke"], long=3, workdir="runs/energy_plane_smoke")
    assert found == [expected]


def test_a_change_of_a_section_keeps_the_rest_of_it():
    config = command_line.RunConfig(loop=command_line.LoopConfig(log_every=7))
    changed = command_line.change(config, workdir="there", loop={"progress": False})
    loop = command_line.LoopConfig(log_every=7, progress=False)
    assert changed == command_line.RunConfig(workdir="there", loop=loop)


# Mistakes are found out before there is a folder.

WITH_SEED = (
    *("conditional_text", "energy_model", "image_captioning", "jose", "on_lstm_language_model"),
    *("on_lstm_logic", "pretraining", "smooth_metrics", "weight_averaging"),
)


@pytest.mark.parametrize("name", WITH_SEED)
@pytest.mark.parametrize("seed", ["99999999999999999999", "-1"])
def test_a_seed_that_no_generator_takes_is_named(name, seed, refused):
    field = "data" if name == "on_lstm_logic" else "training"
    refused(name, f"--{field}.seed={seed}", "seed must be")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("conditional_text", "--model.hidden-features=0", "model.hidden_features must be at"),
        ("conditional_text", "--model.pretrained=/no", "model.pretrained must be a folder"),
        ("conditional_text", "--model.num-heads=7", "model.num_heads must divide"),
        ("conditional_text", "--sampling.guidance", "sampling.guidance must hold at least one"),
        ("conditional_text", "--sampling.top-k=0", "sampling.top_k must be at least 1"),
        ("conditional_text", "--preset=smoke --sampling.top-k=201", "at most the 200 tokens"),
        ("conditional_text", "--sampling.count=1", "sampling.count must be at least 2"),
        ("conditional_text", "--sampling.top-p=0", "sampling.top_p must be in (0, 1]"),
        ("conditional_text", "--sampling.temperature=0", "sampling.temperature must be > 0"),
        ("conditional_text", "--training.epochs=inf", "training.epochs must be finite"),
        ("conditional_text", "--training.epochs=0", "training.epochs must be > 0"),
        ("conditional_text", "--variants norm norm", "variants must hold at least one"),
        ("energy_model", "--training.steps=99999999999", "training.steps must fit in 32 bits"),
        ("image_captioning", "--search.length-penalties", "length_penalties must hold at"),
        ("image_captioning", "--model.num-heads=7", "model.num_heads must divide"),
        ("image_captioning", "--preset=smoke --search.beam-size=99999", "beam_size must be at"),
        ("jose", "--data.similarity=/no", "/no"),
        ("jose", "--model.dimension=1", "model.dimension must be at least 2"),
        ("jose", "--evaluation.runs=0", "evaluation.runs must be at least 1"),
        ("jose", "--evaluation.map-points=0", "evaluation.map_points must be at least"),
        ("on_lstm_language_model", "--training.accumulation-steps=3", "must divide"),
        ("on_lstm_language_model", "--training.evaluation-batch-size=7", "multiple of 8"),
        (
            "on_lstm_language_model",
            "--preset=smoke --training.evaluation-batch-size=80000",
            "use a longer text or a smaller batch",
        ),
        ("on_lstm_logic", "--training.evaluation-batch-size=7", "multiple of 8, got 7"),
        (
            "pretraining",
            "--preset=paper",
            "data.uri must name a large text for this preset, got",
        ),
        ("pretraining", "--preset=base", "would read its million characters about 2,979 times"),
        ("self_orthogonality", "--model.first-features=1", "first_features must be at least 2"),
        ("self_orthogonality", "--training.seeds 1 1", "training.seeds must hold at least one"),
        ("self_orthogonality", "--training.batch-size=3", "training.batch_size must be a multip"),
        ("smooth_metrics", "--training.batch-sizes 16 16", "training.batch_sizes must hold"),
        ("smooth_metrics", "--data.positive-share=1e-9", "must hold both classes, got [0 0"),
        ("smooth_metrics", "--data.test-share=1e-9", "the test samples must hold both classes"),
        ("smooth_metrics", "--bias.rows=0", "bias.rows must be at least 1"),
        ("weight_averaging", "--averaging.decays .9 .9", "averaging.decays must hold"),
        ("weight_averaging", "--averaging.stored-stds .4", "relative_std must be one finite"),
        ("weight_averaging", "--distributed.num-processes=2", "together"),
        (
            "weight_averaging",
            "--distributed.coordinator-address=h --distributed.num-processes=2 "
            "--distributed.process-id=0",
            "coordinator_address must be 'host:port' or 'auto', got 'h'",
        ),
    ],
)
def test_mistakes_are_found_out_before_there_is_a_folder(name, flags, message, refused):
    refused(name, flags, message)


def test_a_model_that_learnt_nothing_is_called_so():
    train, held_out = np.array([0, 0, 0, 1]), np.array([0, 1, 2])
    single = unigram_entropy(train, held_out, vocab_size=3)
    assert single == pytest.approx(-np.mean(np.log([4 / 7, 2 / 7, 1 / 7])))
    assert judged("ours", single - 0.1, single) == "ours"
    for loss in (single, single + 1, float("nan")):
        assert judged("ours", loss, single).startswith("ours (learnt nothing")


def run_of(act, config=PRESETS["smoke"]):
    """A run of one function, and the presets of its experiment."""

    def run(config):
        act(config)

    run.__module__ = "experiments.energy_plane.train"
    return run, {"small": config}


@pytest.mark.parametrize("module", ["matplotlib.figure", "rich.table", "tyro"])
def test_a_missing_module_is_named_at_the_start(module, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    run, presets = run_of(lambda config: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as stopped:
        command_line.main(run, presets, None, [f"--workdir={tmp_path}"])
    assert stopped.value.code == 2
    assert "pip install 'kexue-zoo[data,train,plot]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("~/x", "/the/home/x"),
        ("$PLACE/x", "/the/place/x"),
        ("${PLACE}", "/the/place"),
        ("file:x", "x"),
        ("ftp://b/y", "must be a folder of this machine's file system, or gs://…, s3://…"),
        ("s3:/b", "must be a folder of this machine's file system"),
        ("$ABSENT/x", "the environment variable ABSENT is not set"),
        (" ", "workdir must name a folder"),
    ],
)
def test_names_of_the_workdir(given, found, monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/the/home")
    monkeypatch.setenv("PLACE", "/the/place")
    monkeypatch.delenv("ABSENT", raising=False)
    seen = []
    run, presets = run_of(lambda config: seen.append(config.workdir))
    try:
        command_line.main(run, presets, None, [f"--workdir={given}"])
    except SystemExit:
        seen.append(" ".join(capsys.readouterr().err.split()))
    assert found == seen[0] or (" " in found and found in seen[0])


def test_a_workdir_in_a_bucket(monkeypatch, capsys, tmp_path):
    from experiments.pretraining.config import PRESETS as OF_PROCESSES
    from zoo.training import open_workdir

    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    run, presets = run_of(lambda config: finish(open_workdir(config.workdir, config), {"a": 1}))
    command_line.main(run, presets, None, ["--workdir=memory://zoo-running/run"])
    assert "written: memory://zoo-running/run/summary.json" in capsys.readouterr().out
    system = fsspec.filesystem("memory")
    assert system.exists("/zoo-running/run/config.json")
    flags = ["--workdir=memory://zoo-running/run", "--distributed.num-processes=2"]
    with pytest.raises(SystemExit):
        command_line.main(run, OF_PROCESSES, None, flags)
    assert "must be a folder that all processes see" in capsys.readouterr().err
    monkeypatch.setattr(type(system), "pipe_file", None)
    with pytest.raises(SystemExit):
        command_line.main(run, presets, None, ["--workdir=memory://zoo-running/other"])
    assert "workdir cannot be written" in capsys.readouterr().err


def test_a_run_that_trained_keeps_its_folder_and_another_that_failed_does_not(tmp_path):
    from zoo.training import MetricsLog, open_workdir

    def act(config):
        workdir = open_workdir(config.workdir, config, ignore=("workdir",))
        (workdir / "vocabulary.json").write_text("[]")
        with MetricsLog(workdir / "metrics.jsonl") as log:
            if config.seed:
                log.write(1, {"loss": 1.0})
        raise {0: ValueError, 1: ValueError, 2: KeyboardInterrupt}[config.seed]

    run, presets = run_of(act)
    for seed, left, code in ((0, False, 2), (1, True, 2), (2, True, 130)):
        workdir = tmp_path / str(seed)
        with pytest.raises(SystemExit) as stopped:
            command_line.main(run, presets, None, [f"--workdir={workdir}", f"--seed={seed}"])
        assert (workdir.exists(), stopped.value.code) == (left, code)


class Broken(io.StringIO):
    """A standard output that nobody reads any more, or on a full disk."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        self.flush()

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self):
        return self.own


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_an_output_that_is_gone_ends_no_run(number, tmp_path, monkeypatch, capsys):
    stream, done = Broken(number), []
    with (tmp_path / "output").open("w") as file:
        stream.own = file.fileno()
        monkeypatch.setattr(sys, "stdout", stream)

        def act(config):
            print("lost", flush=True)
            done.append(config)

        command_line.main(*run_of(act), None, [])
        assert sys.stdout is stream
    assert done
    assert "no more output" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", None)  # closed before the program began
    command_line.main(*run_of(lambda config: print("lost", flush=True)), None, [])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["| head -c 1", "> /dev/full", ">&-", "2>&1 | head -c 1"])
def test_in_a_shell_a_run_with_a_broken_output_ends_well(how, tmp_path):
    flags = "--preset=smoke --steps=3 --long=2 --short=2 --runs=1 --cells=8"
    command = f"{sys.executable} -m experiments.energy_plane {flags} --workdir={tmp_path}/run"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {how}"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_rows_that_the_devices_do_not_divide_are_refused():
    @dataclasses.dataclass
    class Training:
        batch_size: int

    mesh = make_mesh(data=2, fsdp=2, model=2)
    check_rows(mesh, Training(12), "batch_size", 3)
    with pytest.raises(ValueError, match=r"multiple of 12, got 8: 4 device\(s\).* 3 micro"):
        check_rows(mesh, Training(8), "batch_size", 3)


@pytest.mark.parametrize("num_steps", [*range(1, 12), 20, 100])
def test_every_length_of_the_schedule_reaches_its_peak(num_steps):
    @dataclasses.dataclass
    class Training:
        learning_rate: float = 0.5
        weight_decay: float = 0.0
        gradient_clip: float = 1.0

    import optax

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optax, "adamw", lambda schedule, **_: seen.append(schedule) or optax.sgd(1.0))
        decaying_adamw(Training(), num_steps)
    rates = np.array([float(seen[0](step)) for step in range(num_steps)])
    assert rates.max() == pytest.approx(0.5)
    assert (rates[num_steps // 10 :] > 0).all()
    assert num_steps >= 10 or rates[0] == 0.5


def parse(name, arguments):
    presets = importlib.import_module(f"experiments.{name}.config").PRESETS
    run, _ = run_of(None)
    return command_line.parse(run, presets, None, arguments)


FUZZ = int(os.environ.get("ZOO_FUZZ", "300"))
EXPERIMENTS = ("jose", "smooth_metrics", "weight_averaging", "conditional_text", "energy_model")
VALUES = (
    *("0", "-1", "1", "1e400", "nan", "inf", "-inf", "", " ", "None", "True", "x", "1 2", "a b c"),
    *("99999999999999999999", "9" * 5000, "0x10", "1_0", "\ud800", "\x00", "~", "$HOME", "gs://a"),
    *("--", "-", "--preset", "smoke", "paper", "{}", "[]", "'", '"', "\n", "../..", "a" * 3000),
)


def test_fuzz_of_command_lines(capsys):
    """Every command line gives a config, or ends as a mistake of the user."""
    generator = np.random.default_rng(0)
    flags = {}
    for name in EXPERIMENTS:
        config = importlib.import_module(f"experiments.{name}.config").PRESETS["small"]
        flags[name] = [*_flags(config), "--preset", "--help", "--unknown", "--"]
    outcomes = {}
    for _ in range(max(10, FUZZ // 10)):
        name = EXPERIMENTS[generator.integers(len(EXPERIMENTS))]
        arguments = []
        for _ in range(generator.integers(0, 4)):
            flag = flags[name][generator.integers(len(flags[name]))]
            value = VALUES[generator.integers(len(VALUES))]
            if generator.random() < 0.3:
                number = generator.integers(0, 7)
                value = "".join(map(chr, generator.integers(1, 300, number)))
            kind = generator.integers(4)
            arguments += ([f"{flag}={value}"], [flag, value], [flag], [value])[kind]
        try:
            config = parse(name, arguments)
            command_line.check_numbers(config)
            outcome = "config"
        except (SystemExit, ValueError, TypeError, ImportError, OSError) as error:
            outcome = type(error).__name__
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        capsys.readouterr()
    assert outcomes["SystemExit"]


def _flags(config, prefix="--"):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
