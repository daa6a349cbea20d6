"""What every `nvg` command shares: its arguments, how a mistake is shown, and what a dry run prints.

Options of `nvg sample` that give it something to follow.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from cluster.session import ClusterError
from nvg.errors import UserError
from pipelines.train.interrupt import EXIT_STOPPED, TrainingStopped

T = TypeVar("T")

EXIT_USER_ERROR = 2

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="YAML file, or a name below configs/ such as demo/digits.yaml."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...",
        help="Single values that win over the file: training.seed=1 widths='[32, 64]'.",
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
StructureFrom = Annotated[
    str | None,
    typer.Option("--structure-from", metavar="IMAGE", help="Give this image's maps (or a .npy finest map)."),
]
StructureMask = Annotated[
    str | None,
    typer.Option("--structure-mask", metavar="MASK.png", help="Give a drawn mask, white on black, as first split."),
]
FixContentFrom = Annotated[
    str | None,
    typer.Option("--fix-content-from", metavar="IMAGE", help="Give this image's first contents and their maps."),
]
Stages = Annotated[
    int | None,
    typer.Option("--stages", metavar="M", help="How many splits (or stages of contents) are given; the rest is drawn."),
]
MaskForeground = Annotated[
    int | None,
    typer.Option("--mask-foreground", metavar="0|1", help="Child that the mask's foreground becomes; 1 by default."),
]


def resolve(
    schema: type[T],
    config: str | None,
    overrides: Sequence[str] | None,
    *,
    default: str | None = None,
    sampling: str | None = None,
) -> T:
    """Build a command's configuration.

    Args:
        schema: The command's dataclass.
        config: Value of `--config`.
        overrides: The trailing `key=value` texts.
        default: Config used where `--config` is not given.
        sampling: Value of `--sampling`: a name of `configs/sampling/` or a file, for the section `sampling`.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If anything in it is wrong.
    """
    from pipelines.configuration import load_config

    sections = {}
    if sampling:
        sections["sampling"] = sampling if sampling.endswith((".yaml", ".yml")) else f"sampling/{sampling}.yaml"
    return load_config(schema, config or default, overrides or [], sections=sections)


def show_plan(config: object, steps: Sequence[str]) -> None:
    """Print what a run would do: the resolved configuration as YAML, then its steps.

    Args:
        config: The resolved configuration.
        steps: One line per step, in order.
    """
    from pipelines.configuration import dump_config

    console = Console(soft_wrap=True, highlight=False)
    console.print("# resolved configuration", style="bold")
    console.print(dump_config(config).rstrip(), markup=False)
    console.print("\n# plan (dry run: nothing was started)", style="bold")
    for number, step in enumerate(steps, start=1):
        console.print(f"{number}. {step}", markup=False)


def run_app(app: Callable[[], object]) -> None:
    """Run the command line; a user's mistake becomes one block on stderr and exit code 2, a stop by request 143.

    Args:
        app: The typer application.
    """
    try:
        app()
    except (UserError, ClusterError) as error:
        show_error(str(_original(error)))
        sys.exit(EXIT_USER_ERROR)
    except TrainingStopped as stopped:
        sys.stderr.write(f"nvg: {stopped}\n")
        sys.exit(EXIT_STOPPED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" at {error.filename}" if error.filename else ""
        show_error(
            f"No space is left on the disk{where}. Finished work is intact: free some space and start the "
            "same command again."
        )
        sys.exit(EXIT_USER_ERROR)


def show_error(message: str) -> None:
    """Print a message on stderr: in a frame on a terminal, as plain lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        console.print(Panel(Text(message), title="nvg", title_align="left", border_style="red"))
    else:
        sys.stderr.write(f"nvg: {message}\n")


def _original(error: Exception) -> BaseException:
    """The exception raised in a Ray worker, without the trace Ray wraps around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def control_overrides(
    structure_from: str | None,
    structure_mask: str | None,
    fix_content_from: str | None,
    stages: int | None,
    mask_foreground: int | None,
) -> list[str]:
    """The options as `key=value` texts; those not given are left out.

    Args:
        structure_from, structure_mask, fix_content_from: files.
        stages: M.
        mask_foreground: 0 or 1.

    Returns:
        Overrides of the configuration's `control` section.
    """
    options = {
        "structure_from": structure_from,
        "structure_mask": structure_mask,
        "fix_content_from": fix_content_from,
        "stages": stages,
        "mask_foreground": mask_foreground,
    }
    return [f"control.{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
