"""How many files a stranger opens to follow one training step."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from golden_training import CODEBOOK_SIZE, NUM_IMAGES, SPACE, GoldenRunConfig, build_task

from nvg.records import RecordDataset, RecordLayout
from pipelines.batches.config import DataConfig
from pipelines.batches.order import Batch, BatchSource
from pipelines.batches.records import generator_source
from pipelines.train.launch import run_training

STEP = 3  # neither the first nor one that logs, validates, draws or saves


@dataclass
class Watched:
    """Batches of a source; the files of `pipelines` entered between asking for one batch and for the next."""

    source: BatchSource
    root: str
    files: set[str] = field(default_factory=set)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint

    @property
    def num_images(self) -> int:
        return self.source.num_images

    def batches(self, **given: Any) -> Iterator[Batch]:
        stream = self.source.batches(**given)
        for step in range(1, 1000):
            sys.setprofile(self._note if step == STEP else None)
            yield next(stream)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        for entered in (frame, frame.f_back):  # and from where
            if entered is not None and entered.f_code.co_filename.startswith(self.root):
                self.files.add(Path(entered.f_code.co_filename).relative_to(self.root).as_posix())


def records() -> RecordDataset:
    """Forty made-up records held in memory."""
    stream = np.random.Generator(np.random.Philox(key=[0, 0]))
    num_positions = SPACE["num_positions"]
    shard = np.zeros(NUM_IMAGES, RecordLayout(num_positions).dtype)
    shard["image"] = np.arange(NUM_IMAGES)
    shard["label"] = stream.integers(0, 10, NUM_IMAGES)
    shard["content_ids"] = stream.integers(0, CODEBOOK_SIZE, (NUM_IMAGES, 2 * num_positions - 1))
    shard["structure"] = np.stack([stream.permutation(num_positions) for _ in range(NUM_IMAGES)])
    return RecordDataset(
        folder=Path("memory"),
        manifest={"num_positions": num_positions},
        image=shard["image"],
        view=shard["view"],
        label=shard["label"],
        shards=[shard],
    )


def test_one_plain_step_is_followed_in_few_files(repository, tmp_path):
    watched = Watched(generator_source(records(), DataConfig()), root=f"{repository / 'pipelines'}/")
    config = GoldenRunConfig(kind="content", run_folder=str(tmp_path))
    config = replace(config, loop=replace(config.loop, log_every_steps=10, stop_after_steps=5))
    try:
        run_training(config, lambda config: replace(build_task(config), batches=watched))
    finally:
        sys.setprofile(None)
    assert sorted(watched.files) == [
        "batches/order.py",
        "batches/records.py",
        "train/engine.py",
        "train/interrupt.py",
        "train/loop.py",
        "train/report.py",
        "train/step.py",
    ]  # eight at most
