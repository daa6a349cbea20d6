"""The frame of `nvg`: help, dry runs, exit codes and how mistakes are shown."""

from __future__ import annotations

import errno
import subprocess
import sys
from functools import partial

import pytest
from typer.testing import CliRunner

from nvg.errors import UserError
from pipelines.cli.frame import EXIT_USER_ERROR, run_app
from pipelines.cli.main import app

COMMANDS = [
    ["demo"],
    ["train", "tokenizer"],
    ["train", "content"],
    ["train", "structure"],
    ["train", "generators"],
    ["precompute"],
    ["sample"],
    ["eval", "generator"],
    ["eval", "tokenizer"],
    ["eval", "images"],
    ["eval", "reference"],
    ["eval", "sweep"],
    ["eval", "follow"],
    ["eval", "report"],
    ["ablate"],
    ["inspect"],
    ["verify"],
    ["submit"],
    ["import-release"],
    ["export-release"],
    ["doctor"],
]


def run_nvg(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_teaches_with_an_example(command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"nvg {' '.join(command)}" in " ".join(result.output.split())


def test_help_imports_no_heavy_library():
    program = (
        "import sys, pipelines.cli.main; heavy = ('torch', 'ray', 'deepspeed', 'sklearn', 'omegaconf'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dry_run_shows_configuration_and_plan():
    done = run_nvg("precompute", "tokenizer=runs/tok", "output=out/vgs", "num_actors=3", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "num_actors: 3" in done.stdout
    assert "3 actor(s)" in done.stdout
    assert "manifest in out/vgs" in done.stdout


def test_unknown_key_is_one_block_and_exit_code_2():
    done = run_nvg("precompute", "tokenizer=a", "output=b", "num_actor=3")
    assert done.returncode == EXIT_USER_ERROR
    assert "Did you mean 'num_actors'?" in done.stderr
    assert "Traceback" not in done.stderr


def raiser(error: Exception):
    def fail() -> None:
        raise error

    return fail


def test_error_of_a_worker_is_shown_without_its_trace(capsys):
    class Wrapped(UserError):
        cause = UserError("the class folder 'cats' is empty")

    with pytest.raises(SystemExit) as stopped:
        run_app(raiser(Wrapped("a long remote trace")))
    assert stopped.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err == "nvg: the class folder 'cats' is empty\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenizer.optimizer.lrr=1"], "lrr"),
        (["tokenizer.optimizer.lr=fast"], "tokenizer.optimizer.lr"),
        (["evaluation.pool.num_actors=0"], "num_actors"),
        (["--data", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input_of_the_demo_is_one_block(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run_app(partial(app, ["demo", f"folder={tmp_path}", *arguments]))
    assert stopped.value.code == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("nvg: ")
    assert message in error


def test_full_disk_is_one_block(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_app(raiser(OSError(errno.ENOSPC, "No space left on device", "runs/x")))
    assert stopped.value.code == EXIT_USER_ERROR
    assert "No space is left on the disk at runs/x" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), ValueError("a bug of ours")])
def test_other_errors_keep_their_trace(error):
    with pytest.raises(type(error)):
        run_app(raiser(error))


def test_submit_dry_run_passes_the_command_through():
    done = run_nvg("submit", "--dry-run", "--env", "A=0123", "--", "nvg", "precompute", "--dry-run", "output=b c")
    assert done.returncode == 0, done.stderr
    assert "A: '0123'" in done.stdout
    assert "nvg precompute --dry-run 'output=b c'" in done.stdout


def test_submit_without_a_value_for_a_variable_is_refused():
    done = run_nvg("submit", "--env", "A", "--", "nvg", "doctor")
    assert done.returncode == EXIT_USER_ERROR
    assert "NAME=VALUE" in done.stderr


@pytest.mark.cluster
@pytest.mark.slow
def test_submit_starts_a_cluster_and_returns_the_commands_exit_code(tmp_path):
    good = run_nvg("submit", "--", "nvg", "doctor", timeout_s=240)
    assert good.returncode == 0, good.stderr
    assert "/dev/shm" in good.stdout
    bad = run_nvg("submit", "--", "nvg", "precompute", "nonsense=1", timeout_s=240)
    assert bad.returncode == EXIT_USER_ERROR, bad.stderr
    assert "'nonsense'" in bad.stdout
