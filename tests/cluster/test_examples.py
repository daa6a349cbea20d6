"""The example files for Kubernetes, Slurm and Docker are well formed and agree with the project."""

from __future__ import annotations

import re
import subprocess
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
    assert "-- nvg train generators" in text
    assert "RAY_AUTH_MODE" in text


def test_dockerfile_copies_what_the_package_needs(repository):
    text = (repository / "cluster" / "docker" / "Dockerfile").read_text()
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        folder = pattern.rstrip("*")
        assert f" {folder} ./{folder}\n" in text
    for line in re.findall(r"^COPY --chown=\S+ (.*)$", text, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (repository / source).exists(), source
    assert text.index("\nUSER nvg") < text.index("\nCMD")
