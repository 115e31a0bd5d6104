"""What the tests of every experiment do: run its smoke preset, and give it a mistaken command."""

import importlib
import json
import pathlib

import pytest

from experiments import command_line

EXPERIMENTS = pathlib.Path(command_line.__file__).parent


def main(name, *flags):
    """Runs ``python -m experiments.NAME`` in this process."""
    presets = importlib.import_module(f"experiments.{name}.config").PRESETS
    run = importlib.import_module(f"experiments.{name}.train").run
    command_line.main(run, presets, None, [*flags])


@pytest.fixture
def smoke(tmp_path):
    """A function of an experiment and its pictures: the summary, and what it must reach."""

    def check(name, *pictures):
        main(name, "--preset=smoke", f"--workdir={tmp_path}")
        for picture in pictures:
            assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        summary = json.loads((tmp_path / "summary.json").read_text())
        return summary, json.loads((EXPERIMENTS / name / "expected.json").read_text())

    return check


@pytest.fixture
def refused(tmp_path, capsys):
    """A function of an experiment, flags and a message: the run ends with it, without a folder."""

    def check(name, flags, message):
        workdir = tmp_path / "workdir"
        with pytest.raises(SystemExit) as stopped:
            main(name, f"--workdir={workdir}", *flags.split())
        assert stopped.value.code == 2
        said = " ".join("".join(capsys.readouterr()).split())  # the parser breaks long lines
        assert message in said
        assert "Traceback" not in said
        assert not workdir.exists()  # where the corrected command begins

    return check
