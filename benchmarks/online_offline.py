"""Compares a finished record data set with what its tokenizer says of the same views now, in batches of several sizes.

    .venv/bin/python benchmarks/online_offline.py --config runs/demo/configs/precompute.yaml

Printed for each batch size: the share of records with another structure map, the share with other ids on the same map
(both are near-ties that rounding turned round), and the largest difference of canvases where everything is equal.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from nvg.checkpoints import load_network
from nvg.checkpoints.runs import weights_folder
from nvg.pixels import to_model_range
from nvg.records import RecordDataset
from nvg.tokenizer import Tokenizer, quantize_for_training
from pipelines.configuration import load_config
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sources import ImageSource, open_source


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True, help="of the precompute job")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 7, 64])
    parser.add_argument("--records", type=int, default=2000, help="how many are compared, spread over the data set")
    parser.add_argument("overrides", nargs="*", help="key=value")
    given = parser.parse_args()
    config = load_config(PrecomputeConfig, given.config, given.overrides)
    records = RecordDataset.open(Path(config.output), mapped=True)
    folder = weights_folder("tokenizer", config.tokenizer)
    tokenizer = load_network(Tokenizer, folder, name=config.tokenizer_weights).to(config.device)
    source = open_source(config.source)
    rows = np.linspace(0, len(records) - 1, min(given.records, len(records))).astype(np.int64)
    results = {
        str(size): compare(records, source, tokenizer.requires_grad_(False), rows, size) for size in given.batches
    }
    report = {"command": "python " + " ".join(sys.argv), "records_compared": len(rows), "by_batch_size": results}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def compare(
    records: RecordDataset, source: ImageSource, tokenizer: Tokenizer, rows: np.ndarray, batch_size: int
) -> dict[str, float]:
    """Shares of records that differ, and the largest difference of canvases among the others."""
    device = tokenizer.dequantizer.codebook.device
    num_maps, num_ids, largest = 0, 0, 0.0
    for chosen in np.split(rows, range(batch_size, len(rows), batch_size)):
        views = zip(records.image[chosen].tolist(), records.view[chosen].tolist(), strict=True)
        pixels = np.stack([source.read(image, view) for image, view in views])
        latent_BLC = tokenizer.encode(to_model_range(pixels, planes=True).to(device))
        structure_BL = tokenizer.structure_maps(latent_BLC)
        online = quantize_for_training(
            latent_BLC, structure_BL, tokenizer.dequantizer, commitment_weight=0.25, soft_assignment=False
        )
        batch = {name: torch.from_numpy(array).to(device) for name, array in records.batch(chosen).items()}
        decoded_BLC = tokenizer.dequantizer.canvases(batch["content_ids"], batch["structure"])[:, -1]
        same_maps_B = (structure_BL == batch["structure"]).all(1)
        same_B = same_maps_B & (online.content_ids_BT == batch["content_ids"]).all(1)
        num_maps += int((~same_maps_B).sum())
        num_ids += int((same_maps_B & ~same_B).sum())
        if bool(same_B.any()):
            largest = max(largest, float((decoded_BLC - online.canvas_BLC)[same_B].abs().max()))
    return {
        "share_other_maps": num_maps / len(rows),
        "share_other_ids": num_ids / len(rows),
        "largest_canvas_difference": largest,
    }


if __name__ == "__main__":
    main()
