"""The whole chain, as a user starts it: `nvg demo` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chain_kills import MARK, living
from PIL import Image

from pipelines.experiment.status import read_status
from pipelines.experiment.steps import STEPS

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

FEW_SAMPLES = ["evaluation.pool.num_samples=200", "evaluation.pool.chunk_size=100", "evaluation.pool.batch_size=100"]
TINY = [
    "tokenizer.model.base_width=8",
    "tokenizer.optimizer.total_images=1280",
    "tokenizer.optimizer.warmup_images=0",
    "generators.content.optimizer.total_images=640",
    "generators.content.optimizer.warmup_images=0",
    "generators.structure.optimizer.total_images=640",
    "generators.structure.optimizer.warmup_images=0",
    "evaluation.guidance_one=false",
    "evaluation.sampling.num_flow_steps=2",
    "evaluation.feature_training.num_steps=50",
    *FEW_SAMPLES,
]


def lengths(tokenizer: int, content: int, structure: int) -> list[str]:
    """Images of the three trainings, of which a third, a twelfth and a thirteenth warm up, as by default."""
    return [
        f"tokenizer.optimizer.total_images={tokenizer}",
        f"tokenizer.loss.soft_assignment_images={tokenizer // 3}",
        f"generators.content.optimizer.total_images={content}",
        f"generators.content.optimizer.warmup_images={content // 12}",
        f"generators.structure.optimizer.total_images={structure}",
        f"generators.structure.optimizer.warmup_images={structure // 13}",
        *FEW_SAMPLES,
    ]


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli.main", "demo", f"folder={folder}", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}, MARK: str(folder)},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output[-6000:]
    return output


def kill_when(process: subprocess.Popen[str], there: Path, how: signal.Signals) -> None:
    """Ends the demo as soon as a file exists, its driver alone or, as Ctrl-C does, all of it; nothing is left of it."""
    deadline = time.monotonic() + 400
    while not there.exists():
        assert process.poll() is None, process.communicate()[0][-6000:]
        assert time.monotonic() < deadline, f"{there} has not appeared"
        time.sleep(0.2)
    (os.kill if how == signal.SIGKILL else os.killpg)(process.pid, how)
    process.wait(timeout=120)
    assert process.returncode != 0
    folder = str(there.parents[1])
    while left := list(living(folder)):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("short", "killed_at", "how", "least_read"),  # 0.1 is read by chance; the default training reaches 0.95
    [
        ([*lengths(6_400, 24_000, 16_000), "evaluation.guidance_one=false"], "driver.yaml", signal.SIGKILL, 0.3),
        pytest.param(lengths(19_200, 38_400, 25_600), "metrics.jsonl", signal.SIGINT, 0.45, marks=pytest.mark.long),
    ],
    ids=["a-twelfth", "an-eighth"],
)
def test_digits_stopped_half_way_and_started_again(a_terminal, short, killed_at, how, least_read, tmp_path):
    """Enough training to read some of the digits, and to fail if a step of the chain were wrong."""
    folder = tmp_path / "demo"
    kill_when(start_demo(folder, *short), folder / "content" / killed_at, how)
    tokenizer_before = (folder / "tokenizer" / "checkpoints" / "latest").stat().st_mtime_ns
    records_before = (folder / "records" / "index.json").stat().st_mtime_ns
    output = finish(start_demo(folder, *short))

    assert (folder / "tokenizer" / "checkpoints" / "latest").stat().st_mtime_ns == tokenizer_before
    assert (folder / "records" / "index.json").stat().st_mtime_ns == records_before
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    scores = results["scores"]
    assert results["caveats"] == []
    assert scores["generated"]["num_images"] == 200
    assert scores["held_out"]["class_accuracy"] >= 0.97
    assert scores["reconstructions"]["class_accuracy"] >= 0.9
    assert scores["generated"]["class_accuracy"] >= least_read
    steps = [json.loads(line)["step"] for line in (folder / "content" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    report = (folder / "report.html").read_text()
    assert "data:image/png;base64," in report
    assert "http://" not in report and "https://" not in report  # noqa: PT018
    assert str(folder / "report.html") in output
    assert {path.stem for path in (folder / "configs").glob("*.yaml")} >= {"tokenizer", "content", "evaluation"}


def write_shapes(folder: Path) -> None:
    """Three classes of colour pictures of several sizes, and one file that is no image."""
    generator = np.random.default_rng(0)
    for name, colour in (("disc", (255, 80, 40)), ("bar", (60, 200, 90)), ("ring", (70, 90, 255))):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            side = int(generator.integers(20, 60))
            row, column = np.mgrid[0:side, 0:side] / side - 0.5
            radius = np.hypot(row, column - generator.uniform(-0.1, 0.1))
            inside = {"disc": radius < 0.3, "bar": abs(column) < 0.12, "ring": abs(radius - 0.3) < 0.08}[name]
            pixels = np.where(inside[..., None], colour, generator.integers(0, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    (folder / "disc" / "broken.png").write_bytes(b"no image at all")


def test_ones_own_class_folders(tmp_path):
    # names that YAML or Ray could stumble over
    images, folder = tmp_path / "😀 shapes", tmp_path / "Würfel 猫 😀 [x]"
    write_shapes(images)
    finish(start_demo(folder, "--data", str(images), *TINY))
    manifest = json.loads((folder / "records" / "manifest.json").read_text())
    assert manifest["class_names"] == ["bar", "disc", "ring"]
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert results["scores"]["generated"]["num_images"] == 200
    assert (folder / "report.html").is_file()
    assert [line.split()[:2] for line in read_status(folder)[1:]] == [[name, "finished"] for name in STEPS]
    assert all(f'href="{name}/' in (folder / "status.html").read_text() for name in ("tokenizer", "evaluation"))
    scored = (folder / "evaluation" / "results.json").stat().st_mtime_ns
    output = finish(start_demo(folder, "--data", str(images), *TINY))
    assert output.count("· finished earlier") == len(STEPS)
    assert (folder / "evaluation" / "results.json").stat().st_mtime_ns == scored
