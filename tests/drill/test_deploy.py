"""The files of ``deploy/``: what their READMEs promise, as far as it shows without a cluster."""

import importlib
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from experiments import command_line

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"
if not DEPLOY.is_dir():
    pytest.skip("deploy/ is not beside these tests", allow_module_level=True)
SCRIPTS = sorted([*DEPLOY.glob("*/*.sh"), *DEPLOY.glob("*/*.sbatch")])
JOBSET = yaml.safe_load((DEPLOY / "kubernetes" / "jobset.yaml").read_text())
JOB = JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]
POD = JOB["template"]["spec"]
README = (DEPLOY / "README.md").read_text()
DEVICES = 16  # in all three


def command_of(path):
    """The arguments of the experiment that a script starts."""
    text = path.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"python\"? -m zoo\.(experiments\..*)", text)
    return shlex.split(line)


COMMANDS = {path.name: command_of(path) for path in SCRIPTS if path.name != "create.sh"}
COMMANDS["jobset.yaml"] = [
    POD["containers"][0]["command"][2].removeprefix("zoo."),
    *POD["containers"][0]["command"][3:],
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_correct_bash(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_those_of_the_experiment(name, monkeypatch):
    monkeypatch.setenv("workdir", "/shared/run")
    package, *flags = COMMANDS[name]
    presets = importlib.import_module(f"{package}.config").PRESETS
    run = importlib.import_module(f"{package}.train").run
    config = command_line.parse(run, presets, None, flags)
    assert config.workdir.startswith(("/shared/run", "/runs/"))
    assert (config.loop.log_every, config.loop.checkpoint_every) == (20, 500)
    rows = (config.training.batch_size, config.training.evaluation_batch_size)
    assert all(number % DEVICES == 0 for number in rows)
    joined = config.distributed.coordinator_address
    assert joined == (None if name == "jobset.yaml" else "auto")
    for field in ("heartbeat_timeout", "initialization_timeout"):
        flag, seconds = field.replace("_", "-"), getattr(config.distributed, field)
        assert f"`--distributed.{flag}` seconds ({seconds})" in " ".join(README.split())


def test_pods_of_a_jobset_find_each_other():
    (container,) = POD["containers"]
    environment = {item["name"]: item for item in container["env"]}
    workers, name = JOBSET["spec"]["replicatedJobs"][0]["name"], JOBSET["metadata"]["name"]
    host, port = environment["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert host == f"{name}-{workers}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    count = int(environment["JAX_NUM_PROCESSES"]["value"])
    assert JOB["completionMode"] == "Indexed"
    assert JOB["completions"] == JOB["parallelism"] == count
    field = environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert count * container["resources"]["limits"]["nvidia.com/gpu"] == DEVICES
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in POD["volumes"]}


def test_pods_of_a_jobset_end_as_the_readme_says():
    (container,) = POD["containers"]
    assert container["command"][:2] == ["python", "-m"]  # a shell would not pass SIGTERM on
    assert f"`terminationGracePeriodSeconds: {POD['terminationGracePeriodSeconds']}`" in README
    assert (POD["restartPolicy"], JOB["backoffLimit"]) == ("Never", 0)
    (rule,) = JOB["podFailurePolicy"]["rules"]
    exits = {"containerName": container["name"], "operator": "In", "values": [2]}
    assert rule == {"action": "FailJob", "onExitCodes": exits}
    policy = JOBSET["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_slurm_gives_every_process_a_gpu_and_time_to_save():
    text = (DEPLOY / "slurm" / "train.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert int(options["nodes"]) * int(options["gpus-per-node"]) == DEVICES
    assert f"`--signal={options['signal']}`" in README
    assert options.keys() >= {"requeue", "open-mode", "time", "output"}
    branches = re.search(r"case \$code in\n(.*?)esac", text, re.DOTALL)[1]
    assert "2) echo" in branches
    assert "exit 2" in branches
    assert 'scontrol requeue "$SLURM_JOB_ID"' in branches


@pytest.mark.parametrize(
    ("codes", "end"),
    [([0], "done"), ([2], "not tried again"), ([143, -9, 0], "requeued 1"), ([9] * 3, "ended 9")],
)
def test_a_slurm_job_is_run_until_it_is_done(codes, end, tmp_path):
    """The script with an srun that ends with these codes, one after the other."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    (tmp_path / "srun").write_text("#!/bin/sh\nexit $CODE\n")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/requeued"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    for number, code in enumerate(codes):
        done = subprocess.run(
            ["bash", DEPLOY / "slurm" / "train.sbatch"],
            env={
                **{"PATH": f"{tmp_path}:/usr/bin:/bin", "VENV": str(tmp_path / "venv")},
                **{"CODE": str(code % 256), "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "zoo"},
                **{"SLURM_SUBMIT_DIR": str(tmp_path), "MOST_RESTARTS": "2"},
                "SLURM_RESTART_COUNT": str(number),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    requeued = tmp_path / "requeued"
    times = len(requeued.read_text().splitlines()) if requeued.exists() else 0
    assert {"done": "done", "not tried again": "not tried"}.get(end, "") in done.stdout
    assert (times, done.returncode) == {
        "done": (0, 0),
        "not tried again": (0, 2),
        "requeued 1": (2, 0),
        "ended 9": (2, 9),
    }[end]


def test_a_tpu_host_saves_before_it_is_taken_away():
    text = (DEPLOY / "tpu" / "startup.sh").read_text()
    properties = dict(re.findall(r"--property=(\w+)=(\S+)", text))
    assert int(properties["TimeoutStopSec"]) < 30  # what a spot host has
    assert properties["Restart"] == "on-failure"
    assert (properties["SuccessExitStatus"], properties["RestartPreventExitStatus"]) == ("143", "2")
    created = (DEPLOY / "tpu" / "create.sh").read_text()
    given = set(re.search(r"--metadata \"(.*?)\"", created)[1].replace(",", "=").split("=")[::2])
    assert given == set(re.findall(r"\$\(attribute (\w+)\)", text))
