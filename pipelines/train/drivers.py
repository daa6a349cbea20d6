"""One training in a process of its own: started with its config file, ended with its starter, its failure in words."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.process import stop_process
from pipelines.configuration import dump_config
from pipelines.training_ray import CODE_ROOT

LOG_FILE = "driver.log"
DRIVER_CONFIG_FILE = "driver.yaml"
STOP_TIMEOUT_S = 120.0  # enough for a checkpoint
NUM_LOG_LINES = 20


def process_environment(**variables: str) -> dict[str, str]:
    """This process's environment, in which the project's packages can be imported.

    Args:
        variables: set besides.

    Returns:
        For `subprocess.Popen`.
    """
    environment = {**os.environ, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE_ROOT), os.environ.get("PYTHONPATH", "")]))
    return environment


@contextmanager
def training_process(
    module: str, config: object, run_folder: str, environment: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """One training in its own process, ended when the block is left (Ray then frees its workers).

    Args:
        module: with a command line that takes ``--config FILE``, such as "pipelines.train.generator".
        config: its configuration; written beside the log in the run folder.
        run_folder: the training's.
        environment: from :func:`process_environment`.
    """
    folder = Path(run_folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / DRIVER_CONFIG_FILE
    config_file.write_text(dump_config(config))
    command = [sys.executable, "-m", module, "--config", str(config_file)]
    with open(folder / LOG_FILE, "ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        stop_process(process, STOP_TIMEOUT_S)


def failure_text(what: str, run_folder: str, code: int) -> str:
    """The end of a failed training's log as a message.

    Args:
        what: is trained, such as "the content generator".
        run_folder: the training's.
        code: exit code of its process.

    Returns:
        The message; the caller adds what to do.
    """
    log = Path(run_folder).resolve() / LOG_FILE
    lines = log.read_text(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    end = lines[starts[-1] :] if starts else lines[-NUM_LOG_LINES:]
    return f"training {what} failed (exit code {code}):\n  " + "\n  ".join(end) + f"\nits whole log is {log}"
