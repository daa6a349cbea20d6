"""The demos on photographs and on figures in colour: cut short in every test run, whole in `make long`.

Both data sets are fetched by name; where that fails, so do these tests.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.experiment.status import read_status
from pipelines.experiment.steps import STEPS
from tools.datasets.avatars import make_avatars
from tools.datasets.fashion_mnist import FILES, find_fashion_mnist

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = [
    "tokenizer.model.base_width=8",
    *("tokenizer.optimizer.total_images=1024", "tokenizer.optimizer.warmup_images=128"),
    *("tokenizer.loss.soft_assignment_images=512", "tokenizer.optimizer.ema_half_life_images=128"),
    *("generators.content.content.depth=2", "generators.content.optimizer.total_images=256"),
    "generators.content.optimizer.warmup_images=64",
    *("generators.structure.structure.depth=2", "generators.structure.optimizer.total_images=256"),
    *("generators.structure.optimizer.warmup_images=64", "evaluation.guidance_one=false"),
    *("evaluation.pool.num_samples=100", "evaluation.pool.chunk_size=50", "evaluation.pool.batch_size=50"),
]
# Of a whole demo's shares, "over real" or "over reconstructions" as docs/results/pictures.md has them: what is asked
# for; and of the few that two cores miss in 90 minutes, what they reach, less two standard errors.
ASKED = {
    "fashion": {"reconstructions read": 0.98, "samples read": 0.95, "precision": 0.8, "recall": 0.8},
    "avatars": {"reconstructions read": 0.98, "samples read": 0.97, "precision": 0.8, "recall": 0.8},
}
MISSED = {
    "fashion": {"recall": 0.47},
    "avatars": {"precision": 0.46, "recall": 0.35},
}
NEAR_COPIES = 0.07


def run(file: str, folder: Path, *settings: str, timeout: float = 800) -> dict[str, Any]:
    """The scores of an experiment, run as a user does."""
    command = [sys.executable, "-m", "pipelines.cli.main", "run", file, f"folder={folder}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert [line.split()[:2] for line in read_status(folder)[1:]] == [[name, "finished"] for name in STEPS]
    return json.loads((folder / "evaluation" / "results.json").read_text())


def keep(file: Path, per_image: int, num_images: int) -> None:
    """Cut an IDX file off after so many images (or labels, of one byte)."""
    header = 16 if per_image > 1 else 8
    data = bytearray(gzip.decompress(file.read_bytes()))
    data[4:8] = num_images.to_bytes(4, "big")
    file.write_bytes(gzip.compress(bytes(data[: header + per_image * num_images]), 1))


def check_chain(folder: Path, results: dict[str, Any], channels: int) -> None:
    """What must be so however short a training was."""
    manifest = json.loads((folder / "records" / "manifest.json").read_text())
    assert (manifest["num_positions"], manifest["last_stage"], manifest["image_channels"]) == (64, 6, channels)
    assert results["protocol"]["extractor"]["kind"] == "efficientnet-lite0"
    assert results["protocol"]["judge"]["kind"] == "linear-probe"
    assert results["comparable"] is False
    scores = results["scores"]
    assert all("fd" in scores[name] and "fid" not in scores[name] for name in ("generated", "held_out"))
    assert scores["held_out"]["class_accuracy"] > 0.5
    assert scores["reconstructions"]["psnr_db"] > 9.5  # 32 steps
    assert "FD (EfficientNet-Lite0)" in (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def clothes(tmp_path_factory) -> Path:
    """The four files of Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("clothes") / "fashion-mnist"
    find_fashion_mnist(folder)
    return folder


def test_clothes_cut_short(clothes, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in FILES:
        (few / name).write_bytes((clothes / name).read_bytes())
        keep(few / name, 784 if "images" in name else 1, 1000 if "train" in name else 150)
    folder = tmp_path / "run"
    results = run("demo/fashion.yaml", folder, f"source.path={few}", *SHORT)
    check_chain(folder, results, channels=1)
    assert results["scores"]["reconstructions"]["class_accuracy"] > 0.15  # of ten classes
    assert results["caveats"], "150 held-out images carry no judgement, and nothing says so"
    picture = folder / "clothes.png"
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(picture)
    command = [sys.executable, "-m", "pipelines.cli.main", "sample", f"run={folder}", "num_per_class=1"]
    settings = [f"output={folder / 'drawn'}", "classes=[8, 0]", f"control.structure_from={picture}"]
    subprocess.run([*command, *settings], check=True, capture_output=True, timeout=300)
    assert len(list((folder / "drawn").rglob("*.png"))) >= 2


@pytest.mark.parametrize(("name", "size"), [("avatars", 32), pytest.param("avatars64", 64, marks=pytest.mark.long)])
def test_figures_cut_short(name, size, tmp_path):
    folder = tmp_path / "run"
    make_avatars(tmp_path / "figures", size=size, train=60, judge=12, test=20)
    results = run(f"demo/{name}.yaml", folder, f"source.path={tmp_path / 'figures'}", *SHORT)
    check_chain(folder, results, channels=3)


@pytest.mark.long
@pytest.mark.timeout(9000)
@pytest.mark.parametrize("name", ["fashion", "avatars"])
def test_whole(name, tmp_path):
    if name == "fashion":
        find_fashion_mnist(tmp_path / name)
    else:
        make_avatars(tmp_path / name)
    results = run(f"demo/{name}.yaml", tmp_path / "run", f"source.path={tmp_path / name}", timeout=8900)
    assert results["caveats"] == []
    generated, held_out, copies = (results["scores"][part] for part in ("generated", "held_out", "reconstructions"))
    shares = {
        "reconstructions read": copies["class_accuracy"] / held_out["class_accuracy"],
        "samples read": generated["class_accuracy"] / held_out["class_accuracy"],
        "precision": generated["precision"] / copies["precision"],
        "recall": generated["recall"] / copies["recall"],
    }
    below = {what: share for what, share in shares.items() if share < (ASKED[name] | MISSED[name])[what]}
    assert not below, f"lower than asked for, or than before where that is missed: {below}"
    assert generated["distance_to_training"]["share_nearer_than_95_percent_of_held_out"] <= NEAR_COPIES
    missed = {what: round(share, 3) for what, share in shares.items() if share < ASKED[name][what]}
    if missed:
        pytest.xfail(f"asked for and not reached, docs/results/pictures.md says why: {missed}")
