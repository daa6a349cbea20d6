"""The frame of `nvg`: help, dry runs, exit codes and how mistakes are shown."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from image_sources import write_class_folders
from typer.testing import CliRunner

from cluster.files import write_atomically
from cluster.versions import commit, library_versions
from nvg.errors import UserError
from pipelines.cli.evaluate import networks_of
from pipelines.cli.main import app
from pipelines.configuration import dump_config, load_config
from pipelines.entry import EXIT_STOPPED, EXIT_USER_ERROR, TrainingStopped, guard, program
from pipelines.experiment.steps import ExperimentConfig

COMMANDS = [
    ["run"],
    ["plan"],
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


def run_program(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`nvg` as its console script starts it."""
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_version_names_the_checkout_and_torch():
    done = run_program("--version")
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"nvg (\S+)(?:, commit ([0-9a-f]{40}))?, torch (\S+)\n", done.stdout)
    assert found, done.stdout
    assert found[1] == library_versions()["nvg"]
    assert found[2] == commit()
    assert found[3] == library_versions()["torch"]


def test_a_repository_further_up_is_somebody_elses(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "site" / "cluster").mkdir(parents=True)
    monkeypatch.setattr("cluster.versions.__file__", str(tmp_path / "site" / "cluster" / "versions.py"))
    assert commit() is None


@pytest.mark.parametrize(
    ("typed", "offers"),
    [
        ("nvg tr", ["train"]),
        ("nvg train ", ["content", "generators", "structure", "tokenizer"]),
        ("nvg sample --structure-m", ["--structure-mask"]),
        ("nvg --vers", ["--version"]),
    ],
)
def test_a_shell_completes_commands_and_options(typed, offers):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = run_program(_NVG_COMPLETE="complete_bash", **words)
    assert sorted(done.stdout.split()) == offers, done.stderr


def test_completion_is_installed_for_the_name_nvg(tmp_path):
    shell = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    done = run_program("--install-completion", "bash", **shell)
    assert done.returncode == 0, done.stderr
    (script,) = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".bashrc"]
    assert "_NVG_COMPLETE=complete_bash" in script.read_text()
    assert script.read_text().rstrip().endswith("_nvg_completion nvg")
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_help_takes_a_quarter_of_a_second():
    """Of CPU time, where Python itself starts in a sixtieth of a second; here 0.14."""

    def seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    times = [(seconds("-m", "pipelines.cli", "--help"), seconds("-c", "pass")) for _ in range(5)]
    help_s, bare_s = map(min, zip(*times, strict=True))
    assert help_s <= 0.25 * 60 * bare_s


SETTINGS = {
    "run": ["demo/digits.yaml"],
    "train tokenizer": ["source.image_size=256", "source.image_channels=3"],
    "precompute": ["tokenizer=runs/tok", "output=out"],
    "eval generator": ["--model", "runs/demo", "--sampling", "paper", "output=out"],
    "eval tokenizer": ["tokenizer=runs/tok", "output=out"],
    "eval images": ["samples=s.npz", "reference=r.npz", "extractor_path=i.pth", "output=out"],
    "eval reference": ["output=out"],
    "eval sweep": ["--model", "runs/demo", "reference=r.npz", "output=out", "top_p_last=[0.5, 1]"],
    "eval follow": ["--model", "runs/demo", "reference=r.npz", "output=out"],
    "eval report": ["results=[runs/a]", "output=out"],
    "submit": ["--", "nvg", "doctor"],
    "import-release": ["--autoencoder", "ae.ckpt", "--output", "out"],
    "export-release": ["runs/d16", "--output", "d16.ckpt"],
}
SECTIONS = ("# resolved configuration\n", "\n# plan (dry run: nothing was started)\n1. ")


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command not in (["plan"], ["verify"], ["doctor"])]
)
def test_every_command_shows_configuration_and_plan_and_starts_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*command, "--dry-run", *SETTINGS.get(" ".join(command), [])])
    assert result.exit_code == 0, (result.output, result.exception)
    assert all(section in result.output for section in SECTIONS)
    assert not list(tmp_path.iterdir())


def test_options_and_single_values_win_over_the_file_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("run_folder: from-file\nloop: {seed: 3}\n")
    shown = CliRunner().invoke(app, ["train", "structure", "--dry-run", "--config", "own.yaml", "loop.seed=4"]).output
    assert "\nkind: structure\n" in shown
    assert "\nrun_folder: from-file\n" in shown
    assert "\n  seed: 4\n" in shown
    given = ["--structure-mask", "a: ${b}.png", "--mask-foreground", "0", "control.mask_foreground=1"]
    shown = CliRunner().invoke(app, ["sample", "--dry-run", *given]).output
    assert "structure_mask: 'a: \\${b}.png'" in shown  # as a file must have it
    assert "mask_foreground: 1" in shown


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("structure", "kind is 'structure'; expected the other generator's here; use nvg train structure"),
        ("contents", "kind is 'contents'; expected content or structure"),
    ],
)
def test_a_file_of_another_generator_is_refused(kind, message, tmp_path):
    (tmp_path / "own.yaml").write_text(f"kind: {kind}\n")
    done = run_nvg("train", "content", "--config", str(tmp_path / "own.yaml"), "--dry-run")
    assert done.returncode == 2
    assert message in done.stderr


def test_dry_run_shows_configuration_and_plan():
    done = run_nvg("precompute", "tokenizer=runs/tok", "output=out/vgs", "num_actors=3", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "num_actors: 3" in done.stdout
    assert "3 actor(s)" in done.stdout
    assert "manifest in out/vgs" in done.stdout


def test_unknown_key_is_one_block_and_exit_code_2():
    done = run_nvg("precompute", "tokenizer=a", "output=b", "num_actor=3")
    assert done.returncode == EXIT_USER_ERROR
    assert "did you mean num_actors?" in done.stderr
    assert "Traceback" not in done.stderr


def raiser(error: Exception):
    def fail() -> None:
        raise error

    return fail


def test_error_of_a_worker_is_shown_without_its_trace(capsys):
    class Wrapped(UserError):
        cause = UserError("the class folder 'cats' is empty")

    assert guard(raiser(Wrapped("a long remote trace"))) == EXIT_USER_ERROR
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
    assert guard(partial(app, ["demo", f"folder={tmp_path}", *arguments])) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("nvg: ")
    assert message in error


def test_full_disk_is_one_block(capsys):
    assert guard(raiser(OSError(errno.ENOSPC, "No space left on device", "runs/x"))) == EXIT_USER_ERROR
    assert "No space is left on the disk at runs/x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "file").mkdir(), "file: File exists; a file is where a folder is wanted"),
        (lambda folder: (folder / "file" / "x").mkdir(parents=True), "x: Not a directory; a file is where a folder"),
        (lambda folder: write_atomically(folder / "folder", b""), "folder: Is a directory; a folder is where a file"),
        (lambda _: Path("/proc/nope").mkdir(), "/proc/nope: No such file or directory; it is not there and cannot be"),
        (lambda folder: (folder / ("n" * 300)).touch(), "File name too long; choose shorter names"),
        (lambda folder: open(folder / "none"), "none: No such file or directory"),  # noqa: SIM115
    ],
)
def test_a_file_that_is_in_the_way_or_cannot_be_made_is_one_block(make, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert guard(lambda: make(tmp_path)) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("nvg: ")
    assert message in error
    assert ".tmp" not in error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), ValueError("a bug of ours")])
def test_other_errors_keep_their_trace(error):
    with pytest.raises(type(error)):
        guard(raiser(error))


def test_a_stop_by_request_has_a_code_of_its_own(capsys):
    assert guard(raiser(TrainingStopped("content: stopped after step 6 of 12"))) == EXIT_STOPPED == 143
    assert capsys.readouterr().err == "nvg: content: stopped after step 6 of 12\n"
    assert guard(lambda: None) == 0


@dataclass(frozen=True, kw_only=True)
class Run:
    seed: int = 0


@pytest.mark.parametrize(
    ("arguments", "code", "out", "error"),
    [
        (["--local_rank=1", "seed=3"], 0, "Run(seed=3)\n", ""),
        (["--help"], 0, "Trains nothing.", ""),
        (["seed=4"], EXIT_STOPPED, "", "nvg: at step 4\n"),
        (["seed=5"], EXIT_USER_ERROR, "", "\nerror: not five\n"),
        (["sed=3"], EXIT_USER_ERROR, "", "\nerror: the command line: sed is an unknown key"),
        (["--nonsense"], EXIT_USER_ERROR, "", "Usage:"),
    ],
)
def test_modules_share_arguments_and_exit_codes_with_the_commands(capsys, arguments, code, out, error):
    def run(given: Run) -> None:
        if given.seed == 4:
            raise TrainingStopped("at step 4")
        if given.seed == 5:
            raise UserError("not five")
        sys.stdout.write(f"{given}\n")

    assert program(Run, run, arguments, description="Trains nothing.") == code
    said = capsys.readouterr()
    assert said.err.startswith(error)
    assert out in said.out


def test_a_model_is_its_three_folders(tmp_path):
    (tmp_path / "structure").mkdir()
    assert networks_of(str(tmp_path))["structure"] == f"{tmp_path}/structure"
    (tmp_path / "structure").rmdir()
    folders = {"tokenizer": f"{tmp_path}/tokenizer", "content": f"{tmp_path}/content"}
    assert networks_of(str(tmp_path)) == {**folders, "structure": ""}
    assert networks_of(None) == {}


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
    assert "remove nonsense" in bad.stdout


@pytest.mark.parametrize("name", ["😀 smile", "Würfel 猫 [x] #1", "a: b, {c}"])
def test_ones_own_images_may_lie_in_a_folder_of_any_name(tmp_path, name, monkeypatch):
    seconds = dict.fromkeys(("tokenizer", "content", "structure"), 0.001)
    monkeypatch.setattr("pipelines.experiment.own_images._seconds_an_image", lambda config: seconds)
    write_class_folders(tmp_path / name, {"a": 60, "b": 60})
    result = CliRunner().invoke(app, ["demo", "--data", str(tmp_path / name), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert f"the folder source {tmp_path / name} for" in result.output
    file = tmp_path / "demo.yaml"  # each step is given its configuration in a file
    file.write_text(dump_config(ExperimentConfig(data=str(tmp_path / name))), encoding="utf-8")
    assert load_config(ExperimentConfig, file).data == str(tmp_path / name)


@pytest.mark.parametrize(
    ("variables", "argument", "says"),
    [
        (
            {"LC_ALL": "POSIX", "PYTHONUTF8": "0"},
            "run=é",
            "the encoding of file names is 'ascii' here; expected 'utf-8'",
        ),
        ({"LC_ALL": "C.UTF-8"}, b"run=caf\xe9", r"an argument is 'run=caf\udce9'; expected text in UTF-8"),
    ],
)
def test_names_that_this_process_cannot_spell_are_refused(variables, argument, says):
    command = [sys.executable, "-m", "pipelines.cli.main", "sample", argument, "--dry-run"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, check=False, timeout=60)
    assert done.returncode == EXIT_USER_ERROR
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr
