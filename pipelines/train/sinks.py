"""Places besides metrics.jsonl for the rows and pictures of a training: Weights & Biases, TensorBoard."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cluster.files import write_atomically
from nvg.errors import UserError
from pipelines.run_folder import read_metrics
from pipelines.train.config import WandbConfig

_WANDB_ID_FILE = "wandb-id.txt"
_TENSORBOARD_FOLDER = "tensorboard"
logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes rows and pictures."""

    def row(self, values: dict[str, Any]) -> None:
        """Numbers of one step, JSON values; "step" is among them."""
        ...

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG file of a step."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


def open_sinks(
    run_folder: Path, *, wandb: WandbConfig, tensorboard: bool, settings: dict[str, Any], first_step: int
) -> list[Sink]:
    """Open the sinks that a run asks for (main rank); the closing is the caller's.

    Args:
        settings: for the run's page.
        first_step: steps already done; what a killed session wrote after them is hidden.

    Raises:
        UserError: one needs a library that is not installed.
    """
    sinks: list[Sink] = []
    if wandb.enabled and (page := _open_wandb(wandb, run_folder, settings, first_step)) is not None:
        sinks.append(page)
    if tensorboard:
        sinks.append(_Tensorboard(run_folder / _TENSORBOARD_FOLDER, first_step))
    return sinks


class _Wandb:
    def __init__(self, run: Any, image: Any) -> None:
        self._run, self._image = run, image

    def row(self, values: dict[str, Any]) -> None:
        self._run.log({key: value for key, value in values.items() if key != "step"}, step=values["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        self._run.log({name: self._image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


class _Tensorboard:
    """Event files by tensorboardX, which Ray brings along."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        suffix = f".after-step-{first_step}"  # two sessions may begin in the same second
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1, flush_secs=30, filename_suffix=suffix)

    def row(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and name not in ("step", "time"):
                self._writer.add_scalar(name, value, values["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def _open_wandb(config: WandbConfig, run_folder: Path, settings: dict[str, Any], first_step: int) -> _Wandb | None:
    """The run's page, or None with a warning when the service refuses: metrics.jsonl has the same numbers."""
    try:
        import wandb  # optional dependency
        import wandb.errors
    except ImportError as error:
        raise UserError(
            "loop.wandb.enabled=true but wandb is not installed: pip install wandb, or switch it off"
        ) from error
    try:
        run = wandb.init(
            project=config.project,
            group=config.group or None,
            name=run_folder.name,
            id=_wandb_id(run_folder),
            job_type="train",
            resume="allow",
            mode="online" if config.mode == "online" else "offline",
            dir=str(run_folder),
            config=settings,
        )
    except wandb.errors.Error as error:
        logger.warning("wandb could not be started, training without it: %s", error)
        return None
    page = _Wandb(run, wandb.Image)
    if config.mode == "offline":
        _tell_again(page, run_folder, first_step)
    return page


def _tell_again(page: _Wandb, run_folder: Path, first_step: int) -> None:
    """Rows and pictures of the sessions before: each session has a folder of its own, and the newest one is whole."""
    rows = {row["step"]: row for row in read_metrics(run_folder)}
    pictures: dict[int, list[Path]] = {}
    for path in sorted(run_folder.glob("*/step-*.png")):
        pictures.setdefault(int(path.stem.removeprefix("step-")), []).append(path)
    for step in sorted(step for step in {*rows, *pictures} if step <= first_step):
        for path in pictures.get(step, []):
            page.picture(path.parent.name, path, step)
        if step in rows:
            page.row(rows[step])


def _wandb_id(run_folder: Path) -> str:
    """Id of this run on its page, drawn once and kept: run folders of the same name are different runs."""
    file = run_folder / _WANDB_ID_FILE
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex.encode())
    return file.read_text().strip()
