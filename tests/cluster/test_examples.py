"""The example files for Kubernetes, Slurm and Docker are well formed and agree with the project."""

from __future__ import annotations

import os
import re
import subprocess
import time
import tomllib

import pytest
import yaml


@pytest.fixture(scope="module")
def rayjob(repository):
    return yaml.safe_load((repository / "cluster" / "kuberay" / "rayjob.yaml").read_text())


def test_rayjob_runs_nvg_commands_on_the_locked_ray(rayjob, repository):
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec = rayjob["spec"]
    assert all(part.split()[0] == "nvg" for part in spec["entrypoint"].split("&&"))
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in (repository / "requirements.lock").read_text().split()
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]


def test_every_pod_has_shared_storage_and_shared_memory(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes["shared"]
        for container in pod["containers"]:
            paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert paths == {"shared": "/shared", "shm": "/dev/shm"}
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_sbatch_script_parses_and_starts_an_nvg_command(repository):
    script = repository / "cluster" / "slurm" / "demo.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    directives = re.findall(r"^#SBATCH (--\S+)$", text, flags=re.MULTILINE)
    assert len(directives) == text.count("\n#SBATCH")
    assert "exec nvg train generators" in text
    assert "RAY_AUTH_MODE" in text


STUBS = {
    "srun": """[[ "$*" == *hostname* ]] && exec echo 127.0.0.1; while [ "$1" != -- ]; do shift; done; shift; "$@" """,
    "scontrol": """if [ "$1" = requeue ]; then echo "$*" >> told; else echo node0; fi""",
    "nvg": """trap 'echo saved >> told; exit 143' TERM; touch started; while true; do sleep 0.05; done""",
}


def test_before_its_end_a_slurm_job_has_its_driver_save_and_queues_up_again(repository, tmp_path):
    commands = tmp_path / ".venv" / "bin"  # the script's first place to look
    commands.mkdir(parents=True)
    for name, body in STUBS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n",
        "SLURM_JOB_NUM_NODES": "1",
    }
    (tmp_path / "runs").mkdir()  # where Slurm writes the log
    script = repository / "cluster" / "slurm" / "demo.sbatch"
    job = subprocess.Popen(["bash", str(script), "generators.yaml"], env={**os.environ, **slurm})
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.terminate()
    assert job.wait(30) == 0
    assert (tmp_path / "told").read_text().splitlines() == ["saved", "requeue 7"]


@pytest.fixture
def deepspeed_train(repository, tmp_path):
    """Runs the script where the launcher prints its arguments and ssh reaches every host but those called dead."""
    for name, body in {"deepspeed": 'echo "$@"', "ssh": '[[ "$*" != *dead* ]]'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def start(hosts=None):
        hostfile = tmp_path / "hostfile"
        if hosts is not None:
            hostfile.write_text(hosts)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        script = repository / "cluster" / "deepspeed" / "train.sh"
        return subprocess.run(
            ["bash", str(script), "pipelines.train.generator", "kind=content"],
            env={**os.environ, "PATH": path, "HOSTFILE": str(hostfile)},
            capture_output=True,
            text=True,
            check=False,
        )

    return start


@pytest.mark.parametrize(
    "hosts", ["one slots=8\n", "dead slots=8\n", "# both\none slots=8\n\ntwo slots=8  # the second\n"]
)
def test_the_launcher_gets_a_hostfile_whose_hosts_answer(deepspeed_train, hosts):
    done = deepspeed_train(hosts)  # a single host may be this machine, which needs no ssh
    assert done.returncode == 0, done.stderr
    assert "--hostfile" in done.stdout


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ("one slots=8\ndead-1 slots=8\ndead-2 slots=8\n", r"of the 3 hosts .*: dead-1 dead-2\. Try 'ssh dead-1"),
        ("# none\n", "names no host"),
        (None, "found no file"),
    ],
)  # fmt: skip
def test_hosts_that_are_dead_or_missing_are_named(deepspeed_train, hosts, said):
    done = deepspeed_train(hosts)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(said, done.stderr)


def test_dockerfile_copies_what_the_package_needs(repository):
    text = (repository / "cluster" / "docker" / "Dockerfile").read_text()
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        folder = pattern.rstrip("*")
        assert f" {folder} ./{folder}\n" in text
    for line in re.findall(r"^COPY --chown=\S+ (.*)$", text, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (repository / source).exists(), source
    (needed,) = re.findall(r"^\$\(INSTALLED\): (.*)$", (repository / "Makefile").read_text(), flags=re.MULTILINE)
    assert all(f" {name.split('/')[0]} " in text for name in needed.split())
    assert text.index("\nUSER nvg") < text.index("\nCMD")
