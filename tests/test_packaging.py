"""A built wheel carries the packages and configs/ and works outside the clone; the tooling files agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"  # a copy, since setuptools leaves its build folders beside the sources
    for name in ("nvg", "pipelines", "cluster", "eval", "configs", "tests"):
        shutil.copytree(repository / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, tree)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(tree)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_code_and_configs_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "nvg",
        "pipelines",
        "cluster",
        "eval",
        "configs",
    }
    assert "configs/deepspeed/zero1.json" in names
    assert "cluster/kuberay/rayjob.yaml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_wheel_finds_its_configs_outside_the_clone(wheel, repository, tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True, timeout=240)
    shipped = sorted((repository / "configs").rglob("*.yaml"))
    assert shipped
    names = [str(path.relative_to(repository / "configs")) for path in shipped]
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "from pipelines.configuration import find_config\n"
        f"for name in {names!r}: print(find_config(name))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(target / "configs" / name) for name in names]


def test_lock_pins_every_dependency_exactly_and_without_addresses(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    lines = (repository / "requirements.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"], *extras["wandb"]]:
        requirement = Requirement(text)
        version = locked[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version, prereleases=True), text
    assert not re.search(r"https?:|file:|@", (repository / "requirements.lock").read_text())


def test_ci_runs_the_readmes_test_command(repository):
    script = repository / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "exec make test" in script.read_text()
    planned = subprocess.run(["make", "--dry-run", "test"], cwd=repository, capture_output=True, text=True, check=True)
    marks = re.findall(r"\.venv/bin/python -m pytest .*-m \"?([a-z ]+)", planned.stdout)
    assert marks == ["not cluster and not long", "cluster and not long"]  # together every test but those of `make long`


def test_the_workflow_checks_every_python_that_the_package_names(repository):
    job = yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["check"]
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    named = [text.split(" :: ")[-1] for text in project["classifiers"] if re.search(r":: 3\.\d", text)]
    assert job["strategy"]["matrix"]["python"] == named
    assert job["env"]["PYTHON"] == "python${{ matrix.python }}"  # of the Makefile
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-2:] == ["make setup", "make check"]


@pytest.mark.parametrize(
    ("system", "python"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "python3.11"),
        ('ID=debian\nVERSION_ID="13"\n', "python3.13"),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', "python3.12"),
        ('ID=ubuntu\nVERSION_ID="22.04"\n', "python3.11"),
    ],
)
def test_preflight_names_the_missing_packages_of_the_system(repository, tmp_path, system, python):
    (tmp_path / "git").symlink_to("/bin/true")
    (tmp_path / "os-release").write_text(system)
    done = subprocess.run(
        ["/bin/sh", "tools/preflight.sh", "python-that-is-not-there"],
        cwd=repository,
        env={"PATH": str(tmp_path), "OS_RELEASE": str(tmp_path / "os-release")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"apt-get install -y make g++ {python} {python}-venv\n" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_pre_commit_downloads_nothing(repository):
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())
    assert [entry["repo"] for entry in hooks["repos"]] == ["local"]


def test_citation_has_the_version_of_the_package(repository):
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
