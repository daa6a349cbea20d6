"""How many files a stranger opens to follow one training step."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import numpy as np
from golden_training import CODEBOOK_SIZE, NUM_IMAGES, SPACE, GoldenRunConfig, build_task

from nvg.records import RecordDataset, RecordLayout
from pipelines.batches.config import DataConfig
from pipelines.batches.records import generator_source
from pipelines.train.launch import run_training

FIRST, LAST = 3, 5  # steps that neither log, validate, draw nor save; the thread makes a whole input between them


@dataclass
class Watched:
    """Files of `pipelines` that any thread entered between the forward passes of two steps."""

    root: str
    num_steps: int = 0
    files: set[str] = field(default_factory=set)

    def note(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        self.num_steps += frame.f_code.co_qualname == "ContentObjective.forward"
        if not FIRST <= self.num_steps < LAST:
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
    watched = Watched(root=f"{repository / 'pipelines'}/")
    source = generator_source(records(), DataConfig())
    config = GoldenRunConfig(kind="content", run_folder=str(tmp_path))
    config = replace(config, loop=replace(config.loop, log_every_steps=10, stop_after_steps=6))
    threading.setprofile(watched.note)
    sys.setprofile(watched.note)
    try:
        run_training(config, lambda config: replace(build_task(config), batches=source))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    assert sorted(watched.files) == [
        "batches/order.py",
        "batches/records.py",
        "train/engine.py",
        "train/feed.py",
        "train/interrupt.py",
        "train/loop.py",
        "train/report.py",
        "train/step.py",
    ]  # eight at most
