"""The chain's steps as real Ray jobs: tokenizer training, precompute and one step of a generator."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_networks import ON_DIGITS

from cluster.submit import JobConfig, submit

TOKENIZER = [
    *ON_DIGITS,
    "source.split=train",
    "optimizer.total_images=32",
    "loop.engine=plain",
]


def run_job(address: str, *command: str) -> str:
    chunks: list[str] = []
    code = submit(["nvg", *command], JobConfig(address=address), write=chunks.append)
    assert code == 0, "".join(chunks)
    return "".join(chunks)


@pytest.mark.cluster
@pytest.mark.slow
def test_precompute_and_a_training_step_go_through_the_job_server(ray_session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = ray_session.dashboard_url
    run_job(address, "train", "tokenizer", "run_folder=runs/tokenizer", *TOKENIZER)
    source = [setting for setting in TOKENIZER if setting.startswith("source.")]
    run_job(address, "precompute", "tokenizer=runs/tokenizer", "output=records", "images_per_unit=512", *source)
    assert (tmp_path / "records" / "manifest.json").is_file()
    run_job(
        address,
        "train",
        "content",
        "run_folder=runs/content",
        "data.path=records",
        "content.depth=1",
        "optimizer.global_batch=8",
        "optimizer.total_images=8",
    )
    assert list(Path("runs/content/checkpoints").glob("step-*/model.safetensors"))
