"""50,000 samples of a finished demo, once undisturbed and once with an actor and the driver killed: the same files?

    .venv/bin/python benchmarks/fifty_thousand.py --run runs/demo --output runs/fifty-thousand
    .venv/bin/python benchmarks/fifty_thousand.py --run runs/demo --output /tmp/small --samples 1500 --inception 60

It makes a reference of the digits, draws with two actors, kills one actor after a third of the chunks and the driver
after two thirds, starts the driver again and compares every chunk and every score. Then Inception with random weights,
in the real file's format, looks at some of the samples. It ends with exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors import safe_open

from eval.features.inception import InceptionExtractor
from eval.image_files import read_npz_array
from nvg.checkpoints import file_hash

POLL_S = 0.2
NVG = str(Path(sys.executable).with_name("nvg"))


def main() -> None:
    """Runs everything and prints what was found as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--inception", type=int, default=1000, help="samples Inception looks at")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    extractor = next((given.run / "evaluation" / "feature-network").iterdir())
    nvg(["eval", "reference", "source.kind=digits", f"extractor_path={extractor}", f"output={given.output}/reference"])
    command = [
        "eval", "generator", "--config", str(given.run / "configs" / "evaluation.yaml"), "--model", str(given.run),
        f"extractor_path={extractor}", f"reference={given.output}/reference/reference.npz",
        f"pool.num_samples={given.samples}", "pool.num_actors=2",
    ]  # fmt: skip
    straight, disturbed = given.output / "straight", given.output / "disturbed"
    began = time.monotonic()
    nvg([*command, f"output={straight}", f"samples_file={given.output}/samples.npz"])
    found: dict[str, object] = {"undisturbed_s": round(time.monotonic() - began, 1)}
    found |= disturb(
        [*command, f"output={disturbed}", f"samples_file={given.output}/again.npz"], disturbed, given.samples
    )
    results = [json.loads((folder / "results.json").read_text()) for folder in (straight, disturbed)]
    chunks = [digests(folder) for folder in (straight, disturbed)]
    found["chunks"] = len(chunks[0])
    found["same_chunks"] = chunks[0] == chunks[1]
    found["same_scores"] = results[0]["scores"] == results[1]["scores"]
    found["same_samples"] = file_hash(given.output / "samples.npz") == file_hash(given.output / "again.npz")
    found["scores"] = results[0]["scores"]["generated"]
    found["inception"] = look_with_inception(given.output, given.inception)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    (given.output / "found.json").write_text(json.dumps(found, indent=2) + "\n")
    if not (found["same_chunks"] and found["same_scores"] and found["same_samples"]):
        sys.exit("the disturbed run differs from the undisturbed one")


def disturb(command: list[str], folder: Path, num_samples: int) -> dict[str, object]:
    """Run the command, kill an actor, then the driver, and run it to its end."""
    total = -(-num_samples // 250)
    began = time.monotonic()
    driver = subprocess.Popen([NVG, *command], start_new_session=True)
    wait_for(lambda: committed(folder) >= total // 3, driver)
    actor = next(process for process in tree(driver.pid) if "ChunkWorker" in " ".join(process.cmdline()))
    os.kill(actor.pid, signal.SIGKILL)
    at_actor = committed(folder)
    wait_for(lambda: committed(folder) >= 2 * total // 3, driver)
    at_driver = committed(folder)
    left = tree(driver.pid)
    driver.kill()
    driver.wait()
    psutil.wait_procs(left, timeout=60)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("pool/*/chunk-*")}
    nvg(command)
    kept = sum(path.stat().st_mtime_ns == written for path, written in finished.items())
    return {
        "disturbed_s": round(time.monotonic() - began, 1),
        "actor_killed_at_chunk": at_actor,
        "driver_killed_at_chunk": at_driver,
        "chunks_there_after_the_kill": len(finished),
        "of_these_computed_again": len(finished) - kept,
    }


def look_with_inception(folder: Path, count: int) -> dict[str, object]:
    """Scores of the first samples against as many later ones, by Inception with random weights."""
    torch.manual_seed(0)
    weights = folder / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(InceptionExtractor().state_dict(), weights)
    images = read_npz_array(str(folder / "samples.npz"), "arr_0")
    np.savez(folder / "first.npz", images[:count])
    np.savez(folder / "last.npz", images[-min(count, 500) :])
    began = time.monotonic()
    nvg(
        [
            "eval", "images", f"samples={folder}/first.npz", f"reference={folder}/last.npz",
            "extractor_kind=inception-v3-compat", f"extractor_path={weights}", f"output={folder}/inception",
            "pool.num_actors=2", "pool.chunk_size=100",
        ]
    )  # fmt: skip
    scores = json.loads((folder / "inception" / "results.json").read_text())["scores"]["generated"]
    return {"seconds": round(time.monotonic() - began, 1), "scores": scores}


def nvg(arguments: list[str]) -> None:
    """Run the command line; its failure is ours."""
    subprocess.run([NVG, *arguments], check=True)


def digests(folder: Path) -> dict[str, str]:
    """Chunk to the hash of its arrays; the bytes of a file also hold marks in no fixed order."""
    found = {}
    for path in folder.glob("pool/*/chunk-*"):
        with safe_open(path, framework="numpy") as stream:
            found[path.name] = stream.metadata()["digest"]
    return found


def committed(folder: Path) -> int:
    """Chunks on disk."""
    return len(list(folder.glob("pool/*/chunk-*")))


def tree(pid: int) -> list[psutil.Process]:
    """Everything a process started."""
    return psutil.Process(pid).children(recursive=True)


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    """Look again and again until it holds."""
    while not condition():
        if driver.poll() is not None:
            sys.exit(f"the driver ended by itself with exit code {driver.returncode}")
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
