"""How fast a generator trains, and how much of a step is not its transformer.

    .venv/bin/python benchmarks/generator_step.py --depth 6 --width 384 --batch 8            # a CPU
    python benchmarks/generator_step.py --kind content --depth 16 --batch 24 --compile       # a GPU
    python benchmarks/generator_step.py --kind both --depth 16 --batch 24 --feed both        # records beside online

The real loop runs on made-up records of the published size (L = 256, 32 channels, 4096 codes) with the plain engine.
The overhead is everything of a step but the network's forward pass, the backward pass and the update: data, noise,
canvases, rotary tables' inputs, token logits, losses, metrics and the moving average. `--feed online` trains as the
release does: every step encodes, clusters and quantises images of 256 x 256, runs DINOv2 ViT-B/14 on them where content
is trained, and reads the loss of every stage back. Weights are random, which costs what trained ones do; images are
made up, so their reading and decoding costs nothing on either side. `--feed both` trains in turns from records and
online, in one run, and gives the ratio of images a second.

mfu = images/s · operations of an image, forward and backward / dense bf16 peak of the device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.tokenizer import Dequantizer, DequantizerConfig, Tokenizer, TokenizerConfig
from nvg.training import ContentObjective, GeneratorLossConfig, PlainEngine, StructureObjective
from pipelines.batches.order import ArraySource
from pipelines.run_folder import read_metrics
from pipelines.train.config import LoopConfig, OptimizerConfig
from pipelines.train.costs import flops_per_image, tokens_per_image
from pipelines.train.generator import ComputeConfig, ContentRun, GeneratorRunConfig, StructureRun, prepare_network
from pipelines.train.launch import run_training
from pipelines.train.task import TrainingTask

NUM_RECORDS = 256
WARM_UP = 2


def main() -> None:
    """Prints speed and overhead, or the ratio of two ways to feed, and the same as JSON."""
    given = _arguments()
    device = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    facts = {**vars(given), "device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    kinds = ["content", "structure"] if given.kind == "both" else [given.kind]
    if given.feed == "both":
        numbers: dict[str, Any] = {kind: compare(given, kind) for kind in kinds}
    else:
        numbers = {kind: describe(given, kind) for kind in kinds}
    sys.stdout.write(json.dumps({"settings": facts, **numbers}) + "\n")


def compare(given: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Seconds of a step from records and online, in turns, and how many times as fast records are."""
    step_s: dict[str, list[float]] = {"records": [], "online": []}
    for _ in range(given.rounds):
        for feed, seconds in step_s.items():
            seconds += [row["step_s"] for row in _train(given, kind, feed, None)]
    medians = {feed: statistics.median(seconds) for feed, seconds in step_s.items()}
    ratio = medians["online"] / medians["records"]
    for feed, seconds in medians.items():
        sys.stdout.write(f"{kind:10s} {feed:8s} {seconds:8.3f} s a step {given.batch / seconds:10.4g} images/s\n")
    sys.stdout.write(f"{kind:10s} from records {ratio:.2f} times the images/s of online\n")
    return {"step_s": step_s, "images_per_s_ratio": ratio}


def describe(given: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Speed of one way to feed, and on a CPU the parts of a step."""
    watch = Stopwatch()
    # Only a CPU is timed in parts: to wait for a GPU would slow the step that is measured.
    rows = _train(given, kind, given.feed, watch if given.device == "cpu" else None)
    step_s = statistics.median(row["step_s"] for row in rows)
    parts = {name: statistics.median(seconds[WARM_UP:]) for name, seconds in watch.seconds.items()}
    watch.restore()
    if parts:
        parts["everything else"] = step_s - sum(parts.values())
    for name, seconds in parts.items():
        sys.stdout.write(f"{name:24s} {1000 * seconds:10.1f} ms {seconds / step_s:7.1%}\n")
    speed = {name: rows[-1][name] for name in ("images_per_s", "tokens_per_s", "mfu", "memory_gib") if name in rows[-1]}
    speed |= {name: statistics.median(row[name] for row in rows) for name in speed if name != "memory_gib"}
    sys.stdout.write(" ".join(f"{name} {value:.4g}" for name, value in speed.items()) + "\n")
    return {"step_s": step_s, "parts_s": parts, **speed}


def _train(given: argparse.Namespace, kind: str, feed: str, watch: Stopwatch | None) -> list[dict[str, Any]]:
    """Metrics of the steps of one training, without the first ones."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(given, kind, folder)
        run_training(config, lambda config: build_task(config, online=feed == "online", watch=watch))
        return read_metrics(Path(folder))[WARM_UP:]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=["content", "structure", "both"], default="content")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=None, help="of the model; the published one by default")
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--stages", type=int, default=None, help="stages of an image; all by default")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=None, help="bf16 on a GPU by default")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--feed", choices=["records", "online", "both"], default="records")
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each way with --feed both")
    given = parser.parse_args()
    given.device = "cuda" if torch.cuda.is_available() else "cpu"
    given.precision = given.precision or ("bf16" if given.device == "cuda" else "fp32")
    return given


def _config(given: argparse.Namespace, kind: str, folder: str) -> GeneratorRunConfig:
    sizes = {"depth": given.depth, "width": given.width}
    common: dict[str, Any] = dict(  # noqa: C408
        run_folder=folder,
        loss=GeneratorLossConfig(stages_per_image=given.stages),
        compute=ComputeConfig(compile=given.compile, recompute_activations=given.recompute),
        optimizer=OptimizerConfig(total_images=given.steps * given.batch, global_batch=given.batch),
        loop=LoopConfig(
            engine="plain",
            precision=given.precision,
            log_every_steps=1,
            checkpoint_every_steps=given.steps,
            threads_per_rank=torch.get_num_threads(),
        ),
    )
    if kind == "content":
        return ContentRun(content=ContentGeneratorConfig(**sizes), **common)
    return StructureRun(structure=StructureGeneratorConfig(**sizes), **common)


class Stopwatch:
    """Seconds of the calls of some methods, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._replaced: list[tuple[Any, str, Any]] = []

    def around(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method."""
        real: Callable[..., Any] = getattr(owner, method)

        def timed(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = real(*given, **named)
            self.seconds.setdefault(name, []).append(time.perf_counter() - start)
            return result

        self._replaced.append((owner, method, real))
        setattr(owner, method, timed)

    def restore(self) -> None:
        """Leave the methods as they were."""
        for owner, method, real in reversed(self._replaced):
            setattr(owner, method, real)


def build_task(config: GeneratorRunConfig, *, online: bool, watch: Stopwatch | None) -> TrainingTask:
    """The real objective on made-up records.

    Args:
        config: a run; its records are not read.
        online: make the records from images in every step.
        watch: times the parts of a step.
    """
    dequantizer = Dequantizer(DequantizerConfig())
    nn.init.normal_(dequantizer.codebook, std=0.1)
    model = config.model
    network: Any
    objective: Any
    if config.kind == "content":
        network = ContentGenerator(model)
        objective = ContentObjective(network, dequantizer, config.loss)
    else:
        network = StructureGenerator(model)
        objective = StructureObjective(network, dequantizer, config.loss)
    prepare_network(network, config)
    if watch is not None:
        watch.around(network, "forward", "network, forward")
        watch.around(PlainEngine, "backward", "backward")
        watch.around(PlainEngine, "step", "clip and update")
    if online:
        objective = Online(objective, with_features=config.kind == "content")
    return TrainingTask(
        kind=config.kind,
        objective=objective,
        model_config=asdict(replace(model)),
        batches=ArraySource(np.arange(NUM_RECORDS).reshape(-1, 1), _fetch(online), {"name": "made up"}),
        tokens_per_image=tokens_per_image(network, config.loss.stages_per_image),
        count_flops=lambda: flops_per_image(model, config.loss.stages_per_image),
    )


def _fetch(online: bool) -> Callable[[np.ndarray], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    columns = {
        "label": torch.randint(0, 1000, (NUM_RECORDS,), generator=generator),
        "content_ids": torch.randint(0, 4096, (NUM_RECORDS, 511), generator=generator),
        "structure": torch.stack([torch.randperm(256, generator=generator) for _ in range(NUM_RECORDS)]),
    }
    if online:
        images = torch.rand(NUM_RECORDS, 3, 256, 256, generator=generator) * 2 - 1
        columns = {"label": columns["label"], "image": images}
    return lambda rows: {name: values[rows] for name, values in columns.items()}


class Online(nn.Module):
    """An objective that makes its records from images in every step, as the release does.

    Args:
        objective: the generator's.
        with_features: whether DINOv2 sees the images too, as for the alignment of the content generator.
    """

    def __init__(self, objective: Any, *, with_features: bool) -> None:
        super().__init__()
        self.objective, self.network = objective, objective.network
        self.host_noise, self.draw_noise = objective.host_noise, objective.draw_noise
        self.tokenizer = Tokenizer(TokenizerConfig()).eval().requires_grad_(False)
        self.features: Any = None
        if with_features:
            import timm

            vit = timm.create_model("vit_base_patch14_dinov2", pretrained=False, img_size=224, num_classes=0)
            self.features = vit.eval().requires_grad_(False)

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's loss of the records of these images, its numbers read back."""
        with torch.no_grad():
            with torch.autocast(batch["image"].device.type, enabled=False):
                ids_BT, structure_BL = self.tokenizer.tokenize(batch["image"])
            if self.features is not None:
                small = nn.functional.interpolate(batch["image"], size=224, mode="bicubic")
                self.features.forward_features(small)
        records = {"label": batch["label"], "content_ids": ids_BT, "structure": structure_BL}
        loss, metrics = self.objective(records, noise)
        for value in metrics.values():
            value.detach().tolist()  # each a wait for the device
        return loss, metrics


if __name__ == "__main__":
    main()
