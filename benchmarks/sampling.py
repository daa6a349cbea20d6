"""Images a second of Algorithm 2, and how much faster it is than a plain loop and than another checkout.

    .venv/bin/python benchmarks/sampling.py --preset demo --batch 250 --flow-steps 25 --baseline ../nvg-before
    python benchmarks/sampling.py --preset d16 --device cuda --precision bf16 --batch 250 --flow-steps 25

The plain loop is the algorithm as one would first write it: it runs both passes of guidance at every step, also where
the scale is 1, and recomputes rotations and embeddings each time. Both draw the same samples. With `--baseline` the
other checkout's sampler runs in a process of its own, in turn with this one's. Weights are random, which costs what
trained ones do. Seconds on a CPU are those of the processor, least of all repeats, so that neighbours disturb them
little; with several threads and on a GPU they are those of the clock. The share of matrix products is that of the
profiler's self time, in a run of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import torch
from device_clock import seconds_of, wait_for
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nvg.granularity import StageLayout, balanced_split, raster_split, structure_embedding
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.randomness import Purpose, per_sample_normals, per_sample_uniforms
from nvg.sampling import SamplingConfig, sample
from nvg.sampling.schedules import draw_tokens, flow_times, guide, top_p_filter
from nvg.tokenizer import Dequantizer, DequantizerConfig

SEED = 0
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "gemm", "attention", "conv")
DEMO = {"num_positions": 16, "latent_channels": 8, "num_classes": 10, "depth": 6, "width": 64}


def main() -> None:
    """Prints seconds of all, images a second, and the hours for 50,000."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="demo", help="demo, or a depth of the paper: d12, d16, d20, d24")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--flow-steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--baseline", type=str, default="", help="folder of another checkout to run beside this one")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    race = Race(given)
    if given.serve:
        _serve(race)
        return
    same = race.both_draw_the_same()
    sides = {"plain": lambda: race.seconds(race.plain), "ours": lambda: race.seconds(race.ours)}
    if given.baseline:
        before = _Other(given.baseline)
        sides["before"] = before.seconds
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.repeats):  # in turn, so that a disturbance meets all
        for name, run in sides.items():
            seconds[name].append(run())
    least = {name: min(values) for name, values in seconds.items()}
    rate = given.batch / least["ours"]
    lines = [f"{name:11s} {value:8.2f} s a batch of {given.batch}" for name, value in least.items()]
    lines += [f"ours is {least[name] / least['ours']:.2f} times as fast as {name}" for name in least if name != "ours"]
    lines += [
        f"{rate:.2f} images/s, {50_000 / rate / 3600:.2f} hours for 50,000",
        f"same samples as the plain loop: {same:.1%}; matrix products: {race.share_of_products():.0%} of the time",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    facts = {**vars(given), "machine": platform.processor(), "torch": torch.__version__}
    sys.stdout.write(json.dumps({"settings": facts, "seconds": seconds}) + "\n")


def _serve(race: Race) -> None:
    """Draws one batch for every line that is read, and prints the seconds."""
    race.ours()
    for _ in sys.stdin:
        sys.stdout.write(f"{race.seconds(race.ours)}\n")
        sys.stdout.flush()


class _Other:
    """This benchmark with the package of another checkout, in a process that waits for its turn."""

    def __init__(self, checkout: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--serve"],
            env={**os.environ, "PYTHONPATH": checkout},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self) -> float:
        """Of one batch."""
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        asked.write("\n")
        asked.flush()
        return float(answers.readline())


class Race:
    """Random networks of one size, and both ways to sample from them."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        self.device = torch.device(given.device)
        size: dict[str, Any] = DEMO if given.preset == "demo" else {"depth": int(given.preset.removeprefix("d"))}
        codebook: dict[str, Any] = {"codebook_size": 64} if given.preset == "demo" else {}
        self.content = ContentGenerator(ContentGeneratorConfig(**size, **codebook)).to(self.device).eval()
        self.structure = StructureGenerator(StructureGeneratorConfig(**size)).to(self.device).eval()
        space = self.content.config
        self.dequantizer = Dequantizer(
            DequantizerConfig(
                num_positions=space.num_positions,
                latent_channels=space.latent_channels,
                codebook_size=space.codebook_size,
            )
        ).to(self.device)
        self.config = SamplingConfig(num_flow_steps=given.flow_steps, gumbel_split=False)
        self.indices_B = torch.arange(given.batch)
        self.labels_B = self.indices_B % space.num_classes
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=given.precision == "bf16")

    def ours(self) -> Tensor:
        """`nvg.sampling.sample`: content ids."""
        with self.autocast:
            return sample(
                content=self.content,
                structure=self.structure,
                dequantizer=self.dequantizer,
                labels_B=self.labels_B,
                sample_indices_B=self.indices_B,
                seed=SEED,
                config=self.config,
            ).content_ids_BT

    @torch.no_grad()
    def plain(self) -> Tensor:
        """The plain loop: content ids."""
        layout = StageLayout(self.dequantizer.config.num_positions)
        labels_B = self.labels_B.to(self.device)
        structure_BL = torch.zeros(len(labels_B), layout.num_positions, dtype=torch.int64, device=self.device)
        canvas_BLC = torch.zeros(*structure_BL.shape, self.dequantizer.config.latent_channels, device=self.device)
        ids = []
        with self.autocast:
            for stage in range(layout.num_stages):
                ids_BU = self._plain_content(canvas_BLC, structure_BL, labels_B, stage)
                canvas_BLC = canvas_BLC + self.dequantizer.contribution(
                    self.dequantizer.codebook[ids_BU], structure_BL, stage
                )
                ids.append(ids_BU)
                if stage < layout.num_structure_stages:
                    score_BL = self._plain_flow(canvas_BLC, structure_BL, labels_B, stage)[..., stage]
                    structure_BL = balanced_split(structure_BL, score_BL, stage, layout.last_stage)
                elif stage < layout.last_stage:
                    structure_BL = raster_split(structure_BL, layout.last_stage)
        return torch.cat(ids, dim=1)

    def _plain_content(self, canvas_BLC: Tensor, structure_BL: Tensor, labels_B: Tensor, stage: int) -> Tensor:
        model, last_stage = self.content, self.content.layout.last_stage
        both = []
        for classes_B in (labels_B, torch.full_like(labels_B, model.null_class)):
            final = model(canvas_BLC, structure_BL, torch.full_like(labels_B, stage), classes_B)
            both.append(model.token_logits(final, canvas_BLC, structure_BL, stage))
        logits_BUV = guide(both[0], both[1], self.config.content_scale(stage, last_stage))
        probabilities_BUV = top_p_filter(logits_BUV, self.config.top_p(stage, last_stage))
        uniform_BU = per_sample_uniforms(SEED, self.indices_B, Purpose.TOKEN, stage, (1 << stage,))
        return draw_tokens(probabilities_BUV, uniform_BU.to(self.device))

    def _plain_flow(self, canvas_BLC: Tensor, structure_BL: Tensor, labels_B: Tensor, stage: int) -> Tensor:
        model, last_stage = self.structure, self.structure.layout.last_stage
        scale = self.config.structure_scale(stage, last_stage)
        clean_BLK = (structure_embedding(structure_BL, stage, last_stage) - 1).float()
        known_K = torch.arange(last_stage, device=self.device) < stage
        shape = (model.layout.num_positions, last_stage)
        noise_BLK = per_sample_normals(SEED, self.indices_B, Purpose.FLOW_NOISE, 0, shape).to(self.device)
        z_BLK = torch.where(known_K, clean_BLK, noise_BLK)
        stage_B = torch.full_like(labels_B, stage)
        for now, then in pairwise(flow_times(self.config.num_flow_steps, model.layout.num_positions)):
            time_B = torch.full((len(labels_B),), now, device=self.device)
            asked, free = (
                model(z_BLK, canvas_BLC, structure_BL, stage_B, time_B, classes_B)
                for classes_B in (labels_B, torch.full_like(labels_B, model.null_class))
            )
            z_BLK = torch.where(known_K, clean_BLK, z_BLK + (then - now) * guide(asked, free, scale))
        return z_BLK

    def seconds(self, run: Any) -> float:
        """Of one batch: processor time of a single thread, the clock's otherwise."""
        if self.device.type != "cpu" or torch.get_num_threads() > 1:
            return seconds_of(run, self.device)
        began = time.process_time()
        run()
        return time.process_time() - began

    def both_draw_the_same(self) -> float:
        """Share of samples with identical ids; also the warm-up."""
        return float((self.ours() == self.plain()).all(dim=1).float().mean())

    def share_of_products(self) -> float:
        """Self time of matrix products over all self time."""
        on_gpu = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
            self.ours()
            wait_for(self.device)
        times = {
            event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
            for event in found.key_averages()
        }
        products = sum(spent for key, spent in times.items() if any(word in key.lower() for word in PRODUCTS))
        return products / max(sum(times.values()), 1e-9)


if __name__ == "__main__":
    main()
