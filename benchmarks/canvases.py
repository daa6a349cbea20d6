"""Canvases from ids: the dequantiser's one pass against the obvious loop with one-hot matrices.

    .venv/bin/python benchmarks/canvases.py --batch 16

Both give the same canvases (checked first). The loop is what the definition says: a one-hot matrix of the ids times the
codebook, a one-hot matrix of the map times the codes, for every stage.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from device_clock import seconds_of
from torch import Tensor

from nvg.granularity import stage_map
from nvg.tokenizer import Dequantizer, DequantizerConfig


def one_hot_canvases(dequantizer: Dequantizer, ids_BT: Tensor, structure_BL: Tensor) -> Tensor:
    """The slow reference, (B, K + 1, L, C)."""
    layout = dequantizer.layout
    canvas_BLC = torch.zeros(*structure_BL.shape, dequantizer.config.latent_channels, device=ids_BT.device)
    canvases = []
    for stage in range(layout.num_stages):
        ids_BU = ids_BT[:, layout.tokens(stage)]
        codes_BUC = F.one_hot(ids_BU, dequantizer.config.codebook_size).float() @ dequantizer.codebook
        map_BL = stage_map(structure_BL, stage, layout.last_stage)
        painted_BLC = F.one_hot(map_BL, 1 << stage).float() @ codes_BUC
        canvas_BLC = canvas_BLC + dequantizer.refiners[stage](painted_BLC)
        canvases.append(canvas_BLC)
    return torch.stack(canvases, dim=1)


def main() -> None:
    """Prints milliseconds of both and their ratio, and the same as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--codebook", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.manual_seed(0)
    config = DequantizerConfig(num_positions=given.positions, codebook_size=given.codebook)
    dequantizer = Dequantizer(config).to(given.device)
    torch.nn.init.normal_(dequantizer.codebook)
    ids_BT = torch.randint(0, given.codebook, (given.batch, 2 * given.positions - 1), device=given.device)
    maps = [torch.randperm(given.positions, device=given.device) for _ in range(given.batch)]
    structure_BL = torch.stack(maps)

    def clock(call: Callable[[], Tensor]) -> float:
        return statistics.median(seconds_of(call, given.device) for _ in range(given.repeats))

    with torch.no_grad():
        fast = dequantizer.canvases(ids_BT, structure_BL)
        torch.testing.assert_close(fast, one_hot_canvases(dequantizer, ids_BT, structure_BL), rtol=1e-4, atol=1e-4)
        one_pass = clock(lambda: dequantizer.canvases(ids_BT, structure_BL))
        loop = clock(lambda: one_hot_canvases(dequantizer, ids_BT, structure_BL))
    sys.stdout.write(
        f"one pass {1000 * one_pass:8.1f} ms\none-hot loop {1000 * loop:8.1f} ms\n{loop / one_pass:.1f} times\n"
    )
    facts = {**vars(given), "torch": torch.__version__, "threads": torch.get_num_threads()}
    sys.stdout.write(json.dumps({"settings": facts, "one_pass_s": one_pass, "loop_s": loop}) + "\n")


if __name__ == "__main__":
    main()
