"""What every program of the project shares, `nvg` and `python -m pipelines.train.…`: its arguments and its end.

| exit code | means |
|---|---|
| 0 | done |
| 1 | a mistake of ours, with its trace; `nvg doctor`: something needed is missing |
| 2 | a mistake, a file, a disk or a missing package, of which the message says what to do |
| 143 | ended early as asked; the same command goes on |

Heavy libraries, OmegaConf among them, are imported inside the functions, so that `nvg --help` is quick.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from cluster.session import ClusterError
from cluster.versions import say_missing
from nvg.errors import UserError

if TYPE_CHECKING:
    from pipelines.configuration import Setting

T = TypeVar("T")

EXIT_USER_ERROR = 2
EXIT_STOPPED = 128 + signal.SIGTERM
_NO_RIGHT = "change its rights, or name another place"
_ADVICE = {
    errno.EEXIST: "a file is where a folder is wanted: move it, or name another place",
    errno.ENOTDIR: "a file is where a folder is wanted: move it, or name another place",
    errno.EISDIR: "a folder is where a file is wanted: name another place",
    errno.ENOENT: "it is not there and cannot be made: name another place",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _NO_RIGHT,
    errno.ENAMETOOLONG: "choose shorter names",
    errno.EMFILE: "raise the limit of open files, `ulimit -n`",
}

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="YAML file, or a name below configs/ such as demo/digits.yaml."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...", help="Single values that win over the file: training.seed=1 widths='[32, 64]'."
    ),
]
SamplingPreset = Annotated[
    str | None,
    typer.Option(
        "--sampling",
        metavar="NAME",
        help="Sampling preset: paper, release, or a YAML file. Wins over the file's sampling section.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and the plan; run nothing.")]
LocalRank = Annotated[int | None, typer.Option("--local_rank", hidden=True)]


class TrainingStopped(Exception):  # noqa: N818  nothing went wrong
    """A training ended early because it was asked to; its checkpoint is whole."""


def execute(
    schema: type[T],
    plan: Callable[[T], Sequence[str]],
    run: Callable[[T], object],
    config: str | None,
    settings: Sequence[Setting] | None,
    dry_run: bool,
    *,
    sampling: str | None = None,
    quiet: bool = False,
) -> None:
    """One command: resolve its configuration, then show the plan or run.

    Args:
        schema: the command's dataclass.
        plan: one line per step, for `--dry-run`.
        run: its result, where that is a path or several, is printed; a number is the exit code.
        config: value of `--config`.
        settings: what wins over the file, see `load_config`.
        sampling: value of `--sampling`: a name of `configs/sampling/` or a file, for the section `sampling`.
        quiet: the run says itself where its results are.

    Raises:
        ConfigError: anything in the configuration is wrong.
    """
    from pipelines.configuration import load_config

    sections = {}
    if sampling:
        sections["sampling"] = sampling if sampling.endswith((".yaml", ".yml")) else f"sampling/{sampling}.yaml"
    resolved = load_config(schema, config, settings or [], sections=sections)
    if dry_run:
        _show_plan(resolved, plan(resolved))
        return
    result = run(resolved)
    if isinstance(result, int):
        raise typer.Exit(result)
    for path in result if isinstance(result, tuple) else [result]:
        if isinstance(path, Path) and not quiet:
            typer.echo(path)


def program(
    schema: type[T], run: Callable[[T], object], arguments: Sequence[str] | None = None, *, description: str
) -> int:
    """Command line of a training's module, under any launcher: `--config FILE key=value …`.

    Args:
        schema: the run's dataclass.
        run: called with the run; a mistake begins a line of its own with "error: ", below a training's progress.
        arguments: None reads `sys.argv`.
        description: for `--help`.

    Returns:
        Exit code.
    """
    from pipelines.configuration import load_config

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help=description)
    def train(config: ConfigFile = None, overrides: Overrides = None, local_rank: LocalRank = None) -> None:
        del local_rank  # given by the deepspeed launcher; ranks read their environment
        run(load_config(schema, config, overrides or []))

    return guard(lambda: app(arguments), start="\nerror: ")


def guard(run: Callable[[], object], *, start: str = "nvg: ") -> int:
    """Run a program; what its user can mend or has asked for becomes one block on stderr.

    Args:
        run: the program.
        start: what the block begins with where stderr is no terminal.

    Returns:
        Exit code.
    """
    try:
        _require_utf8()
        run()
    except SystemExit as end:  # typer's way to end
        return int(end.code or 0)
    except (UserError, ClusterError) as error:
        _show_error(str(_original(error)), start)
        return EXIT_USER_ERROR
    except ModuleNotFoundError as error:
        message = say_missing(error)
        if message is None:
            raise
        _show_error(message, start)
        return EXIT_USER_ERROR
    except TrainingStopped as stopped:
        sys.stderr.write(f"nvg: {stopped}\n")
        return EXIT_STOPPED
    except OSError as error:
        message = _explain(_original(error))
        if message is None:
            raise
        _show_error(message, start)
        return EXIT_USER_ERROR
    return 0


def _require_utf8() -> None:
    """Names and texts are UTF-8 all through: a name that this process cannot spell would be trouble much later."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise UserError(
            f"the encoding of file names is {encoding!r} here; expected 'utf-8'; set LC_ALL=C.UTF-8 or PYTHONUTF8=1 in "
            "the environment"
        )
    for argument in sys.argv[1:]:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise UserError(
                f"an argument is {argument!a}; expected text in UTF-8; rename the file or folder, or give a link to it "
                "that has a name in UTF-8"
            )


def _explain(error: BaseException) -> str | None:
    """What a file or a disk did not let a program do, and what helps; None for what has to do with neither."""
    assert isinstance(error, OSError)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        return (
            f"No space is left on the disk{where}. Finished work is intact: free some space and start the same command "
            "again."
        )
    path = error.filename2 or error.filename
    if error.errno is None or not isinstance(path, str | bytes | os.PathLike):
        return None
    advice = _ADVICE.get(error.errno, "name another place, or mend this one")
    return f"{os.fsdecode(path)}: {error.strerror}; {advice}. Finished work is intact."


def _show_plan(config: object, steps: Sequence[str]) -> None:
    from pipelines.configuration import dump_config

    console = Console(soft_wrap=True, highlight=False)
    console.print("# resolved configuration", style="bold")
    console.print(dump_config(config).rstrip(), markup=False)
    console.print("\n# plan (dry run: nothing was started)", style="bold")
    for number, step in enumerate(steps, start=1):
        console.print(f"{number}. {step}", markup=False)


def _show_error(message: str, start: str) -> None:
    """In a frame on a terminal, as plain lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        console.print(Panel(Text(message), title="nvg", title_align="left", border_style="red"))
    else:
        sys.stderr.write(f"{start}{message}\n")


def _original(error: Exception) -> BaseException:
    """The exception raised in a Ray worker, without the trace Ray wraps around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
