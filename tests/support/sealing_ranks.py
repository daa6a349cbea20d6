"""One rank of a tiny training that notes which files it writes with torch and which it hashes: rank<N>.json.

torchrun --nproc-per-node 2 sealing_ranks.py FOLDER ZERO_STAGE
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tiny_training import build_task, tiny_config

from cluster.ranks import Ranks
from pipelines import checkpoints
from pipelines.train.config import DeepSpeedConfig
from pipelines.train.launch import run_training


def main(folder: Path, zero_stage: Any) -> None:
    notes: dict[str, list[str]] = {"written": [], "hashed": []}
    save, file_hash = torch.save, checkpoints.file_hash

    def noting_save(state: Any, path: str, **options: Any) -> None:
        notes["written"].append(Path(path).name)
        save(state, path, **options)

    def noting_hash(path: Path) -> str:
        notes["hashed"].append(path.name)
        return file_hash(path)

    config = tiny_config(folder, engine="deepspeed", checkpoint_every_steps=12)
    config = replace(config, deepspeed=DeepSpeedConfig(zero_stage=zero_stage))
    with mock.patch.object(torch, "save", noting_save), mock.patch.object(checkpoints, "file_hash", noting_hash):
        run_training(config, build_task)
    (folder / f"rank{Ranks.read().rank}.json").write_text(json.dumps(notes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
