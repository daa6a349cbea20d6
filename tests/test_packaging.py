"""A built wheel carries the packages and configs/ and works outside the clone; the tooling files agree."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from tiny_networks import save_generators, save_tokenizer

from cluster.versions import MODULES
from tools.house import HOUSES


def plain_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def built(repository, tmp_path_factory):
    """Folder of the sdist, and of the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"  # a copy, since setuptools leaves its build folders beside the sources
    for name in ("nvg", "pipelines", "cluster", "eval", "configs", "tests"):
        shutil.copytree(repository / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, tree)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(tree)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


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


LOADS = """
import sys
from importlib.metadata import version

import nvg

drawn = nvg.load(sys.argv[1], settings=nvg.SamplingConfig(num_flow_steps=1)).sample(3)
print(nvg.__file__, version("nvg"), drawn.images.shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_what_is_built_installs_into_a_clean_environment(built, repository, tmp_path, kind):
    """Into a virtual environment that has the packages of this one to look into, and no nvg of its own."""
    venv.create(tmp_path / "env", symlinks=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(
        sysconfig.get_path("purelib")
    )  # its own nvg is found through a .pth: not by this
    python, nvg = (str(tmp_path / "env" / "bin" / name) for name in ("python", "nvg"))
    packed = next(built.glob(kind))
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    subprocess.run([*install, str(packed)], check=True, capture_output=True, text=True, timeout=240)
    save_tokenizer(tmp_path / "run" / "tokenizer")
    save_generators(tmp_path / "run")

    def said(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout

    number = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    assert said(python, "-c", LOADS, "run").split(maxsplit=2) == [
        str(site / "nvg" / "__init__.py"),
        number,
        "(1, 16, 16, 1)\n",
    ]
    if kind == "*.whl":  # the other one holds the same
        assert said(nvg, "--version").startswith(f"nvg {number}, torch ")
        assert "image_size: 16" in said(nvg, "demo", "folder=mine", "--dry-run")


@pytest.fixture(scope="module")
def asked(repository, tmp_path_factory):
    """Extra ("" for the core) to the distributions it asks for, by the report of pip's dry run."""
    folder = tmp_path_factory.mktemp("asked")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, folder)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--ignore-installed", "--report", str(folder / "report.json"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    (found,) = json.loads((folder / "report.json").read_text())["install"]
    requirements = [Requirement(text) for text in found["metadata"]["requires_dist"]]
    return {
        extra: {
            plain_name(requirement.name)
            for requirement in requirements
            if (marker := requirement.marker) is None or (extra and marker.evaluate({"extra": extra}))
        }
        for extra in ("", *found["metadata"]["provides_extra"])
    }


def brought(names: Iterable[str]) -> set[str]:
    """Distributions that come with these, by what is installed; extras of dependencies left out."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = plain_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        with suppress(metadata.PackageNotFoundError):  # for another system
            requirements = map(Requirement, metadata.requires(name) or [])
            waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def test_the_core_is_what_the_method_needs(asked):
    assert asked[""] == {"torch", "numpy", "einops", "safetensors"}
    heavy = {"ray", "deepspeed", "mosaicml-streaming", "matplotlib", "omegaconf", "typer", "rich", "pillow", "gradio"}
    everything = brought(asked[""])
    assert len(everything) > 6
    assert everything & heavy == set()
    assert heavy - {"gradio"} <= brought(asked["train"] | asked["eval"])


def test_all_holds_every_extra_but_that_of_developers(repository):
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == "nvg"
    assert everything.extras == extras.keys() - {"all", "dev"}


def imported(repository: Path) -> set[str]:
    """Top names of all modules that the houses import, at the top of a file or later."""
    found: set[str] = set()
    for file in (file for house in HOUSES for file in (repository / house).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(HOUSES)


def test_every_import_has_an_extra_that_brings_it(repository, asked):
    """A module that is missing is named with what brings it, and that brings it."""
    distributions = metadata.packages_distributions()
    carried = {
        "yaml": "omegaconf",
        "tensorboardX": "ray",
        "triton": "torch",
    }  # by a package we ask for, for its own use
    named = {module: extras for extras, modules in MODULES.items() for module in modules}
    core = {module for module in imported(repository) if plain_name(carried.get(module, module)) in asked[""]}
    assert imported(repository) - core - named.keys() == set()
    for module, extras in named.items():
        ways = {carried[module]} if module in carried else distributions.get(module, [module.replace("_", "-")])
        asked_for = set[str]().union(*(asked[extra] for extra in extras.split(",")))
        assert {plain_name(way) for way in ways} & asked_for, module


WITHOUT = """
import sys

ABSENT = set(sys.argv.pop(1).split(","))


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
from pipelines.cli.__main__ import main

main()
"""
STEPS = 'this command; pip install "nvg[train,eval]"\n'


@pytest.mark.parametrize(
    ("absent", "command", "says"),
    [
        ("typer,rich,omegaconf,ray", [], f"'typer' is missing; expected it for {STEPS}"),
        ("rich", ["--help"], f"'rich' is missing; expected it for {STEPS}"),
        ("omegaconf", ["demo", "--dry-run"], f"'omegaconf' is missing; expected it for {STEPS}"),
        ("torch_fidelity", ["eval", "images", "--dry-run"], f"'torch_fidelity' is missing; expected it for {STEPS}"),
    ],
)
def test_a_missing_package_is_named_with_what_brings_it(repository, absent, command, says):
    program = [sys.executable, "-c", WITHOUT, absent, *command]
    done = subprocess.run(program, cwd=repository, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (2, f"nvg: the Python package {says}")


def test_a_missing_module_that_no_extra_brings_is_a_mistake_of_ours(repository):
    program = [sys.executable, "-c", WITHOUT, "nvg", "--help"]
    done = subprocess.run(program, cwd=repository, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def pins_of(lock: Path) -> dict[str, Requirement]:
    """Requirements of a lock by name: each once, exact, without an address."""
    text = lock.read_text()
    pins = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in pins)
    assert not re.search(r"https?:|file:|@", text)
    named = {plain_name(pin.name): pin for pin in pins}
    assert len(named) == len(pins)
    return named


def test_locks_pin_every_dependency_exactly_and_without_addresses(repository):
    """The page's lock is what differs: Gradio, what it alone asks for, and the Pillow that it takes."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    first, page = (pins_of(repository / name) for name in ("requirements.lock", "requirements-app.lock"))
    assert page.keys() & first.keys() == {"pillow"}
    asked = [*project["dependencies"], *chain(*(extras[name] for name in extras if name != "app"))]
    for locked, wanted in ((first, asked), ({**first, **page}, [*asked, *extras["app"]])):
        for requirement in map(Requirement, wanted):
            if requirement.name != "nvg":
                version = str(locked[plain_name(requirement.name)].specifier).removeprefix("==")
                assert requirement.specifier.contains(version, prereleases=True), requirement


def test_ci_runs_the_readmes_test_command(repository):
    script = repository / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "exec make test" in script.read_text()
    planned = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "test"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.match(r"tools/preflight\.sh \S+ browser\n", planned.stdout)
    asked = re.findall(r"(\.venv\S*)/bin/python -m pytest (?:-n 2 )?(.*)", planned.stdout)
    assert asked == [  # together every test but those of `make long`
        (".venv", '-m "not cluster and not long and not page"'),
        (".venv", '-m "cluster and not long"'),
        (".venv-app", "tests/pipelines/app"),
    ]


def test_all_that_needs_gradio_is_run_where_it_is(repository):
    marked = [
        file.relative_to(repository)
        for file in (repository / "tests").rglob("test_*.py")
        if "mark.page" in file.read_text() and file != Path(__file__)
    ]
    assert marked
    assert all(file.is_relative_to("tests/pipelines/app") for file in marked)


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


def tools_in(folder: Path, **scripts: str) -> Path:
    """A folder for PATH with these commands, and what a shell script of ours calls beside them."""
    folder.mkdir()
    for name in ("bash", "dirname", "env", "sh", "true"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("system", "browsers", "missing"),
    [
        ("ID=debian\n", [], " chromium chromium-driver\n"),
        ("ID=ubuntu\n", [], " chromium-browser chromium-chromedriver\n"),
        ("ID=debian\n", ["chromium"], " chromium-driver\n"),
        ("ID=ubuntu\n", ["google-chrome", "chromedriver"], ""),
    ],
)
def test_preflight_of_the_tests_alone_looks_for_a_browser(repository, tmp_path, system, browsers, missing):
    there = dict.fromkeys(["git", "make", "g++", "python", *browsers], 'case "$2" in *print*) echo 3.11 ;; esac')
    path = tools_in(tmp_path / "bin", **there)
    (tmp_path / "os-release").write_text(system)
    environment = {"PATH": str(path), "OS_RELEASE": str(tmp_path / "os-release")}
    for wants, says in (([], ""), (["browser"], missing)):
        command = ["/bin/sh", "tools/preflight.sh", "python", *wants]
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == bool(says)
        assert done.stderr.endswith(says)
        assert bool(says) == ("apt-get install -y" in done.stderr)


INSTALL = "apt-get install -y --no-install-recommends chromium chromium-driver"


@pytest.mark.parametrize(
    ("user", "there", "does"),
    [
        ("0", [], ["apt-get update", INSTALL, "make test"]),
        ("1000", ["sudo"], ["sudo", "apt-get update", "sudo", INSTALL, "make test"]),
        ("1000", [], None),
        ("1000", ["chromium", "chromedriver"], ["make test"]),
    ],
)
def test_ci_installs_the_browser_where_it_is_missing(repository, tmp_path, user, there, does):
    log = tmp_path / "log"
    scripts = {name: f'echo "{name} $*" >> {log}' for name in ("apt-get", "make")}
    scripts |= {"id": f"echo {user}", **dict.fromkeys(there, "true")}
    if "sudo" in there:
        scripts["sudo"] = f'echo sudo >> {log}\n"$@"'
    path = tools_in(tmp_path / "bin", **scripts)
    command = [str(path / "bash"), str(repository / ".ci" / "run")]
    done = subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)
    if does is None:
        assert done.returncode == 1
        assert "neither root nor sudo to install them: apt-get install -y chromium chromium-driver" in done.stderr
        assert not log.exists()
    else:
        assert done.returncode == 0, done.stderr
        assert log.read_text().splitlines() == does


def test_pre_commit_downloads_nothing(repository):
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())
    assert [entry["repo"] for entry in hooks["repos"]] == ["local"]


def test_the_version_is_one_wherever_it_stands(repository):
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    heading = re.search(r"^## (\S+) \((.+)\)$", (repository / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading.groups() == (citation["version"], str(citation["date-released"]))
    images = [re.findall(r"nvg:([\d.]+)", file.read_text()) for file in (repository / "cluster").rglob("*.*file")]
    images += [re.findall(r"nvg:([\d.]+)", file.read_text()) for file in (repository / "cluster").rglob("*.yaml")]
    assert set(chain(*images)) == {project["version"]}


def test_the_citation_has_what_its_format_asks_for(repository):
    """Citation File Format 1.2.0; its authors, and the paper's."""
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    paper = citation["preferred-citation"]
    for entry in (citation, paper):
        assert entry["title"]
        assert all(set(author) in ({"name"}, {"family-names", "given-names"}) for author in entry["authors"])
    assert (paper["type"], len(paper["authors"]), paper["year"]) == ("article", 6, 2025)
    assert paper["url"].removeprefix("https://arxiv.org/abs/") == paper["identifiers"][0]["value"].removeprefix(
        "arXiv:"
    )
