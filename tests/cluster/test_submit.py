"""Commands go through the real job server and come back with their output and exit code."""

from __future__ import annotations

import shlex
import sys
import zipfile

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.session import ClusterError
from cluster.submit import JobConfig, job_entrypoint, job_environment, submit


def test_arguments_with_blanks_and_quotes_reach_the_program():
    command = ["nvg", "precompute", "name=it's a run", "$HOME"]
    line = job_entrypoint(command, folder="/some where")
    assert line.startswith("cd '/some where' && exec ")
    assert shlex.split(line.partition("exec ")[2]) == command
    assert shlex.split(job_entrypoint(command, folder=None)) == command


def test_environment_of_a_shared_machine_finds_this_installation():
    local = job_environment(JobConfig(env_vars={"A": "b"}))
    assert local["PATH"].split(":")[0] in sys.executable
    assert local["A"] == "b"
    assert int(local["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    assert "PATH" not in job_environment(JobConfig(working_dir="."))


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="working_dir"):
        JobConfig(working_dir=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="num_cpus"):
        JobConfig(num_cpus=-1)
    with pytest.raises(ValueError, match="no command"):
        submit([])


def test_the_upload_of_the_project_is_small(repository, tmp_path):
    """Below 5 MB as Ray packs it, stored without compression; code and configurations are in it."""
    package = tmp_path / "package.zip"
    create_package(str(repository), package, include_gitignore=True, excludes=JobConfig().excludes)
    assert package.stat().st_size < 5e6
    names = zipfile.ZipFile(package).namelist()
    assert {"nvg/models/content.py", "pipelines/cli/main.py", "configs/demo/digits.yaml"} <= set(names)
    assert not [name for name in names if name.startswith((".git/", ".venv", "runs/", "tests/data/"))]


@pytest.mark.cluster
def test_output_and_exit_code_come_back(ray_session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = JobConfig(address=ray_session.dashboard_url, env_vars={"NVG_WORD": "granular"})
    program = "import os, pathlib; print(os.environ['NVG_WORD']); pathlib.Path('made').write_text('x')"
    chunks: list[str] = []
    assert submit(["python", "-c", program], config, write=chunks.append) == 0
    assert "granular" in "".join(chunks)
    assert (tmp_path / "made").exists()
    assert submit(["python", "-c", "raise SystemExit(7)"], config, write=chunks.append) == 7


@pytest.mark.cluster
def test_uploaded_folder_is_where_the_job_runs(ray_session, tmp_path):
    (tmp_path / "word.txt").write_text("carried")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "left_behind.txt").write_text("not code")
    config = JobConfig(address=ray_session.dashboard_url, working_dir=str(tmp_path))
    chunks: list[str] = []
    program = "import os; print(open('word.txt').read(), os.path.exists('runs/left_behind.txt'))"
    assert submit([sys.executable, "-c", program], config, write=chunks.append) == 0
    assert "carried False" in "".join(chunks)


@pytest.mark.cluster
def test_used_submission_id_is_refused(ray_session):
    config = JobConfig(address=ray_session.dashboard_url, submission_id="nvg-twice")
    assert submit(["true"], config) == 0
    with pytest.raises(ClusterError, match="nvg-twice"):
        submit(["true"], config)


def test_no_job_server_is_one_clear_error():
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1"):
        submit(["true"], JobConfig(address="http://127.0.0.1:1"))
