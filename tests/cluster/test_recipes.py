"""The recipes for Docker, Kubernetes, Slurm and hostfiles: what their own tools find, and what they do."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from nvg.errors import UserError
from pipelines.cli.main import app
from pipelines.configuration import load_config
from pipelines.entry import guard
from pipelines.train.generator import GeneratorRunConfig

RECIPES = Path(__file__).parents[2] / "cluster"
KUBERAY = sorted((RECIPES / "kuberay").glob("*.yaml"))
SCRIPTS = [*sorted(RECIPES.rglob("*.sh")), *sorted(RECIPES.rglob("*.sbatch"))]
KUBERNETES = "1.37"
# Options of sbatch that the recipes may use, and what their values look like (sbatch's manual, Slurm 25.05).
SBATCH = {
    "--job-name": r"[\w-]+",
    "--nodes": r"\d+(-\d+)?",
    "--ntasks-per-node": r"\d+",
    "--gpus-per-node": r"(\w+:)?\d+",
    "--cpus-per-task": r"\d+",
    "--exclusive": r"|user|mcs|topo",
    "--time": r"(\d+-)?\d+(:\d+){0,2}",
    "--requeue": "",
    "--open-mode": "append|truncate",
    "--signal": r"([RB]{1,2}:)?[A-Z0-9]+(@\d+)?",
    "--output": r"[\w%./-]+",
}


def tool(name: str) -> str:
    """A program that a package of `dev` brings."""
    return str(Path(sys.executable).with_name(name))


def test_hadolint_finds_nothing():
    done = subprocess.run(
        [tool("hadolint"), str(RECIPES / "docker" / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_finds_nothing(repository):
    assert len(SCRIPTS) >= 3
    scripts = [*SCRIPTS, *(repository / "tools").glob("*.sh"), repository / ".ci" / "run"]
    done = subprocess.run([tool("shellcheck"), *map(str, scripts)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# --- Kubernetes


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def check_kubernetes(document: dict[str, Any]) -> None:
    """By the schema of Kubernetes; KubeRay's resources by that of their fields, and their templates as pods."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.Draft202012Validator(json.loads(Path(__file__).with_name("kuberay_schema.json").read_text())).validate(
        document
    )
    for group in groups(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.stem)
def test_a_resource_of_kubernetes_has_only_fields_that_there_are(file):
    for document in documents(file):
        check_kubernetes(document)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("storage", lambda spec: spec.update(accessMode="ReadWriteMany")),
        ("network", lambda spec: spec["ingress"][1]["ports"][0].update(protocol=8265)),
        ("rayjob", lambda spec: spec.update(entryPoint="nvg run")),
        ("rayjob", lambda spec: spec.update(submissionMode="Kubernetes")),
        ("rayjob", lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 2})),
        ("raycluster", lambda spec: spec["authOptions"].update(mode="on")),
        ("raycluster", lambda spec: spec["workerGroupSpecs"][0].pop("minReplicas")),
        ("raycluster", lambda spec: spec["headGroupSpec"]["template"]["spec"].update(volume=[])),
    ],
)
def test_a_mistake_in_a_resource_would_be_found(name: str, change: Callable[[dict[str, Any]], object]):
    (document,) = documents(RECIPES / "kuberay" / f"{name}.yaml")
    change(document["spec"])
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_kubernetes(document)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_every_pod_has_shared_storage_shared_memory_and_few_rights(name, repository):
    (claim,) = documents(RECIPES / "kuberay" / "storage.yaml")
    (document,) = documents(RECIPES / "kuberay" / f"{name}.yaml")
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    assert spec["authOptions"]["mode"] == "token"
    assert f"ray=={spec['rayVersion']}" in (repository / "requirements.lock").read_text().split()
    for group in groups(document):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert paths == {"shared": "/shared", "shm": "/dev/shm"}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert {entry["name"]: entry["value"] for entry in container["env"]}["RAY_JOB_STOP_WAIT_TIME_S"] == "120"


def test_the_job_runs_on_the_cluster_that_the_other_recipe_keeps():
    (cluster,) = documents(RECIPES / "kuberay" / "raycluster.yaml")
    (job,) = documents(RECIPES / "kuberay" / "rayjob.yaml")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


# --- every nvg line


def nvg_lines(text: str) -> Iterator[list[str]]:
    """Arguments of each `nvg` command in a text, comments and continued lines as well."""
    text = re.sub(r"\\\n[#\s]*", "", text)
    for found in re.findall(r"(?:^[#\s]*|: |-- |\$ |`|nvg:\S+ )nvg ((?!--)[^\n`&|<>]+)", text, flags=re.MULTILINE):
        yield shlex.split(found, comments=True)


def parse(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Names of the command and its parameters, as the real command line reads them; a name alone is a mention."""
    is_mention = len(arguments) == 1
    command: Any = typer.main.get_command(app)
    names: list[str] = []
    context = None
    while hasattr(command, "resolve_command"):  # a group
        context = command.make_context("nvg", list(arguments), parent=context)
        arguments = [*context._protected_args, *context.args]
        name, found, arguments = command.resolve_command(context, arguments)
        assert name
        assert found
        names, command = [*names, name], found
    return names, command.make_context(names[-1], list(arguments), parent=context, resilient_parsing=is_mention).params


PAGES = [RECIPES.parent / "docs" / "clusters.md", RECIPES / "docker" / "Dockerfile", *KUBERAY, *SCRIPTS]
LINES = [(page.name, line) for page in PAGES for line in nvg_lines(page.read_text())]


def test_the_recipes_hold_commands():
    assert {"clusters.md", "raycluster.yaml", "rayjob.yaml", "Dockerfile"} <= {name for name, _ in LINES}


@pytest.mark.parametrize(
    ("page", "line"), LINES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_every_nvg_line_is_one_of_the_real_command_line(page, line, tmp_path, monkeypatch, capsys):
    names, parameters = parse(line)
    if names == ["submit"] and len(line) > 1:
        assert parameters["command"][0] == "nvg"
        line = parameters["command"][1:]
        names, parameters = parse(line)
    if names == ["run"] and len(line) > 1:  # all that it does but the work, with an experiment that there is
        settings = [word for word in line[2:] if "=" in word and not word.startswith("folder=")]
        monkeypatch.chdir(tmp_path)
        assert guard(partial(app, ["run", "demo/digits.yaml", "folder=made", *settings, "--dry-run"])) == 0
        assert "tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize("line", [["runn"], ["run", "x.yaml", "--onli", "y"], ["submit", "--addres", "x"]])
def test_a_line_with_a_mistake_would_be_found(line):
    with pytest.raises(Exception, match="No such"):
        parse(line)


def test_trainings_in_recipes_have_configurations_that_load():
    text = "\n".join(file.read_text() for file in [*SCRIPTS, RECIPES / "deepspeed" / "hostfile.example"])
    found = re.findall(r"pipelines\.train\.generator --config (\S+\.yaml)", text)
    assert len(found) >= 2
    assert {load_config(GeneratorRunConfig, name).kind for name in found} == {"content"}
    with pytest.raises(UserError):
        load_config(GeneratorRunConfig, "content/d17.yaml")


# --- Slurm


@pytest.mark.parametrize("script", sorted((RECIPES / "slurm").glob("*.sbatch")), ids=lambda script: script.stem)
def test_options_of_sbatch_are_known_and_well_formed(script):
    lines = re.findall(r"^#SBATCH (.*)$", script.read_text(), flags=re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        name, _, value = line.partition("=")
        assert re.fullmatch(SBATCH[name], value), line


def slurm_here(folder: Path, **stubs: str) -> dict[str, str]:
    """The environment of a batch script on one node, with stand-ins for Slurm's commands that run everything here."""
    commands = folder / ".venv" / "bin"  # the scripts' first place to look
    commands.mkdir(parents=True)
    programs = {
        "scontrol": """if [ "$1" = requeue ]; then echo "$*" >> told; else echo node0; sleep 0.2; echo node1; fi""",
        **stubs,
    }
    for name, body in programs.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_NUM_NODES": "2"}
    return {**os.environ, **job, "SLURM_SUBMIT_DIR": str(folder)}


def wait_for(file: Path, job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_before_its_end_a_slurm_job_has_its_driver_save_and_queues_up_again(tmp_path):
    environment = slurm_here(
        tmp_path,
        srun="""[[ "$*" == *hostname* ]] && exec echo 10.0.0.1
        echo "$RAY_ADDRESS $RAY_AUTH_MODE $(wc -c < "$RAY_AUTH_TOKEN_PATH") $*" > ray
        while [ "$1" != -- ]; do shift; done; shift; "$@" """,
        nvg="""trap 'echo saved >> told; exit 143' TERM
        printf '%s\\n' "$@" > started; while true; do sleep 0.05; done""",
    )
    script = RECIPES / "slurm" / "experiment.sbatch"
    job = subprocess.Popen(["bash", str(script), "experiment.yaml", "folder=a b"], env=environment)
    wait_for(tmp_path / "started", job)
    job.terminate()
    assert job.wait(30) == 0
    assert (tmp_path / "told").read_text().splitlines() == ["saved", "requeue 7"]
    line = (tmp_path / "started").read_text().splitlines()
    assert line == ["run", "experiment.yaml", "session.address=auto", "folder=a b"]
    assert parse(line)[0] == ["run"]
    ray = (tmp_path / "ray").read_text()
    assert ray.startswith("10.0.0.1:20007 token 64 --kill-on-bad-exit=1 ray symmetric-run --address 10.0.0.1:20007")
    assert "--min-nodes 2" in ray
    token = tmp_path / "slurm-7.token"
    assert token.stat().st_mode & 0o077 == 0  # nobody else may read it; the next start of the job takes it again


def test_before_its_end_a_slurm_job_of_the_launcher_saves_and_queues_up_again(tmp_path):
    environment = slurm_here(
        tmp_path,
        srun="""shift; trap '' TERM; (SLURM_NODEID=0 "$@") & (SLURM_NODEID=1 "$@") & wait""",
        deepspeed="""echo "$*" > "launched-$NODE_RANK"
        while [ ! -e runs/content/stop ]; do sleep 0.05; done; exit 143""",
    )
    (tmp_path / "cluster").symlink_to(RECIPES)
    (tmp_path / "runs" / "content").mkdir(parents=True)
    script = RECIPES / "slurm" / "deepspeed.sbatch"
    words = ["runs/content", "pipelines.train.generator", "--config", "content/d16.yaml", "loop.seed=3"]
    job = subprocess.Popen(["bash", str(script), *words], env=environment)
    for rank in range(2):
        wait_for(tmp_path / f"launched-{rank}", job)
    job.terminate()
    assert job.wait(30) == 0
    assert (tmp_path / "told").read_text().splitlines() == ["requeue 7"]
    hosts = tmp_path / "slurm-7.hosts"
    assert hosts.read_text() == "node0 slots=8\nnode1 slots=8\n"
    assert (tmp_path / "launched-1").read_text().strip() == (
        f"--master_port 20007 --hostfile {hosts} --no_ssh --node_rank 1 --master_addr node0 --module "
        "pipelines.train.generator --config content/d16.yaml loop.seed=3 run_folder=runs/content loop.engine=deepspeed "
        "launch.launcher=process"
    )


# --- deepspeed


@pytest.fixture
def deepspeed_train(tmp_path):
    """Runs the script where the launcher prints its arguments and ssh reaches every host but those called dead."""
    programs = {"deepspeed": 'echo "$@"', "ssh": '[[ "$*" != *dead* ]]', "pdsh": "true"}
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def start(hosts=None, **variables):
        hostfile = tmp_path / "hostfile"
        if hosts is not None:
            hostfile.write_text(hosts)
        path = f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin"
        script = RECIPES / "deepspeed" / "train.sh"
        return subprocess.run(
            ["bash", str(script), "pipelines.train.generator", "kind=content"],
            env={**os.environ, "PATH": path, "HOSTFILE": str(hostfile), **variables},
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
    assert "--no_ssh" not in done.stdout


TWO = "one slots=8\ntwo slots=8\n"


@pytest.mark.parametrize(
    ("hosts", "variables", "said"),
    [
        ("one slots=8\ndead-1 slots=8\ndead-2 slots=8\n", {}, r"of the 3 hosts .*: dead-1 dead-2\. Try 'ssh dead-1"),
        ("# none\n", {}, "names no host"),
        (None, {}, "found no file"),
        (TWO, {"NODE_RANK": "2", "MASTER_ADDR": "one"}, "NODE_RANK is '2', expected 0 to 1"),
        (TWO, {"NODE_RANK": "one", "MASTER_ADDR": "one"}, "NODE_RANK is 'one', expected 0 to 1"),
        (TWO, {"NODE_RANK": "0"}, "MASTER_ADDR is not set, expected the first host's address"),
    ],
)
def test_hosts_that_are_dead_or_missing_are_named(deepspeed_train, hosts, variables, said):
    done = deepspeed_train(hosts, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(said, done.stderr)


def test_a_launch_over_hosts_without_pdsh_says_what_is_missing(deepspeed_train, tmp_path):
    (tmp_path / "pdsh").unlink()
    done = deepspeed_train(TWO)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"found 2 hosts .* and no program pdsh, .*install it .*or start this on each host", done.stderr)


# --- Docker


def test_dockerfile_copies_what_the_package_needs_and_pins_what_it_is_made_of(repository):
    text = (RECIPES / "docker" / "Dockerfile").read_text()
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        folder = pattern.rstrip("*")
        assert f"\nCOPY {folder} ./{folder}\n" in text
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (repository / source).exists(), source
    assert re.search(r"^ARG PYTHON=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", text, flags=re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)) == {"${PYTHON}"}
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert len(installs) == 4
    assert all("-c requirements.lock" in line or "--no-deps" in line for line in installs)
    last = text.rpartition("\nFROM ")[2]
    assert last.index("\nUSER 1000:1000\n") < last.index("\nCMD")
