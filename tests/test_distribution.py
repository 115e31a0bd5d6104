"""What is installed: the command `zoo`, the programs inside the package, the extras by name."""

import ast
import configparser
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import pytest

import zoo
from zoo.__main__ import main

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ("experiments", "benchmarks")
RIVALS = ("softjax_accuracy", "torch_programs")  # need what may be absent
EXPERIMENTS = {file.parent.name for file in ROOT.glob("experiments/*/__main__.py")}
SOURCES = [file for top in ("zoo", *PROGRAMS) for file in sorted((ROOT / top).rglob("*.py"))]


def extras():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return set(config["options.extras_require"])


def test_list_has_a_line_for_every_experiment(capsys):
    assert main(["list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() >= EXPERIMENTS | {"jose.study", "pretraining.finetune"}
    assert all(line.endswith((".", "?")) or len(line) > 40 for line in lines.values()), lines


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 0, "zoo run NAME"),
        (["--help"], 0, "zoo bench"),
        (["--version"], 0, zoo.__version__),
        (["train"], 2, "zoo train: expected list, run, bench or data"),
        (["run"], 2, "no experiment ''; zoo list shows them"),
        (["run", "on_lstm_langage_model"], 2, "did you mean on_lstm_language_model?"),
        (["run", "../zoo"], 2, "no experiment '../zoo'"),
    ],
)
def test_command_line(capsys, words, status, said):
    assert main(words) == status
    out, err = capsys.readouterr()
    assert said in (err if status else out)


def test_run_hands_over_the_arguments_and_the_exit_status(monkeypatch):
    seen = []

    def run_module(name, **how):
        seen.append((name, how["run_name"], sys.argv[1:]))
        raise SystemExit(3)

    monkeypatch.setattr(runpy, "run_module", run_module)
    before = sys.argv
    with pytest.raises(SystemExit, match="3"):
        main(["run", "jose.study", "--preset", "smoke"])
    assert sys.argv is before
    [(name, run_name, arguments)] = seen
    assert name.endswith("experiments.jose.study")
    assert (run_name, arguments) == ("__main__", ["--preset", "smoke"])


@pytest.mark.parametrize(
    ("words", "said"), [(["bench", "--list"], "ordered.cumax/"), (["data"], "mnist")]
)
def test_bench_and_data_hand_over_the_arguments(capsys, words, said):
    assert main(words) == 0
    assert said in capsys.readouterr().out


def test_programs_import_each_other_relatively():
    """In an installed package they are ``zoo.experiments``, in a clone ``experiments``."""
    for file in (file for file in SOURCES if file.relative_to(ROOT).parts[0] in PROGRAMS):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not {name.partition(".")[0] for name in names} & {*PROGRAMS}, (
                f"{file}, line {node.lineno}: from . import"
            )


def test_every_extra_that_is_named_exists():
    known, required = extras(), set()
    for file in SOURCES:
        text = file.read_text()
        required |= set(re.findall(r'require\(\s*"[\w.]+",\s*"(\w+)"', text))
    assert {"data", "train", "plot", "bench"} <= required <= known
    documents = [file for file in ROOT.rglob("*.md") if "/." not in str(file)]
    for file in [*SOURCES, *documents, ROOT / ".ci" / "run"]:
        for name, named in re.findall(
            r"pip install .*?([-\w.]+)\[([\w,]+)\]", file.read_text().replace("{extra}", "data")
        ):
            assert name in ("kexue-zoo", "."), f"{file}: {name} is not this distribution"
            assert set(named.split(",")) <= known, f"{file}: {named}"


@pytest.mark.slow
def test_programs_run_inside_the_package(tmp_path):
    """As the wheel has them: no ``experiments`` and no ``benchmarks`` beside ``zoo``."""
    inside = tmp_path / "zoo"
    shutil.copytree(ROOT / "zoo", inside)
    for top in PROGRAMS:
        shutil.copytree(ROOT / top, inside / top, ignore=shutil.ignore_patterns("*.png"))
    code = f"""
import importlib, importlib.abc, pathlib, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in {PROGRAMS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from zoo.__main__ import main
for file in sorted(file for top in {PROGRAMS} for file in pathlib.Path("zoo", top).rglob("*.py")):
    if file.stem not in {RIVALS}:
        importlib.import_module(".".join(file.with_suffix("").parts))
main(["run", "energy_plane", "--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: zoo run energy_plane"), done.stdout
