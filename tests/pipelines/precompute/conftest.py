"""A small precompute job with a real, randomly initialised tokenizer, and a way to run it without Ray."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nvg.checkpoints import load_network, save_weights, weights_hash
from nvg.tokenizer import Tokenizer, TokenizerConfig
from pipelines.precompute.beside import RepaStream
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.merge import merge_parts
from pipelines.precompute.plan import DatasetFolder, Plan, make_plan
from pipelines.precompute.unit import encode_unit
from pipelines.sources import ImageSource, SourceConfig, open_source


def write_tokenizer(folder: Path, *, seed: int = 0, codebook_size: int = 64, image_size: int = 16) -> Path:
    """16x16 grey images to a 4x4 grid."""
    torch.manual_seed(seed)
    config = TokenizerConfig(
        image_size=image_size,
        image_channels=1,
        base_width=32,
        width_multipliers=[1, 1, 1],
        num_res_blocks=1,
        latent_channels=8,
        codebook_size=codebook_size,
    )
    tokenizer = Tokenizer(config)
    torch.nn.init.normal_(tokenizer.dequantizer.codebook, std=0.3)
    save_weights(folder, tokenizer.state_dict(), asdict(config), kind="tokenizer", name="ema")
    return folder


def job(folder: Path, **changes) -> PrecomputeConfig:
    """297 digits, two views each, in six units whose last batch is not full."""
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder / "tokenizer")
    values = {
        "source": SourceConfig(split="test", view_policy="shift", num_views=2),
        "tokenizer": str(folder / "tokenizer"),
        "output": str(folder / "records"),
        "batch_size": 32,
        "images_per_unit": 50,
        "shard_bytes": 1 << 12,
    }
    return PrecomputeConfig(**{**values, **changes})


class Prepared:
    """What the driver prepares before it starts actors."""

    def __init__(
        self, config: PrecomputeConfig, source: ImageSource | None = None, repa: RepaStream | None = None
    ) -> None:
        self.config, self.repa = config, repa
        self.source = source or open_source(config.source)
        self.tokenizer = load_network(Tokenizer, config.tokenizer)
        described = None if repa is None else repa.description
        self.plan: Plan = make_plan(config, self.source, weights_hash(config.tokenizer, "ema"), repa=described)
        self.folder = DatasetFolder(Path(config.output))
        self.folder.adopt(self.plan)

    def encode(self, unit: int) -> dict:
        torch.set_num_threads(self.config.threads_per_actor)
        return encode_unit(
            unit,
            self.plan.units[unit],
            source=self.source,
            tokenizer=self.tokenizer,
            config=self.config,
            folder=self.folder,
            plan_fingerprint=self.plan.fingerprint,
            repa=self.repa,
            stamps=self.source.stamps(),
        )

    def merge(self) -> Path:
        parts = self.folder.committed(self.plan)
        return merge_parts(self.folder, self.plan, parts, source=self.source, tokenizer=self.tokenizer)

    def run(self) -> Path:
        for unit in range(len(self.plan.units)):
            self.encode(unit)
        return self.merge()


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative path; the lock holds nothing but its owner."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".precompute.lock"
    }


@pytest.fixture(scope="session")
def case() -> SimpleNamespace:
    """The functions of this file, for tests that build several jobs."""
    return SimpleNamespace(
        NUM_UNITS=6, Prepared=Prepared, file_hashes=file_hashes, job=job, write_tokenizer=write_tokenizer
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Prepared:
    """The job done once, for tests that only read it."""
    prepared = Prepared(job(tmp_path_factory.mktemp("finished")))
    prepared.run()
    return prepared
