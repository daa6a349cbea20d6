"""A record data set of a 4×4 grid as `nvg precompute` leaves it, its content made up: no Ray, no images."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvg.checkpoints import save_weights
from nvg.records import RecordLayout, ShardWriter
from nvg.tokenizer import Dequantizer, DequantizerConfig

NUM_IMAGES, NUM_POSITIONS, CODEBOOK_SIZE = 40, 16, 16


def write_records(folder: Path, **manifest: Any) -> Path:
    """Ids follow the class, maps are shuffled; `manifest` overrides its entries."""
    stream = np.random.Generator(np.random.Philox(key=[7, 0]))
    layout = RecordLayout(NUM_POSITIONS)
    writer = ShardWriter(folder, layout.columns, shard_bytes=1 << 20)
    for image in range(NUM_IMAGES):
        label = int(stream.integers(0, 10))
        ids = label + stream.integers(0, 2, layout.num_tokens)
        structure = stream.permutation(NUM_POSITIONS).astype(layout.structure_dtype)
        writer.write(
            {"image": image, "view": 0, "label": label, "content_ids": ids.astype(np.uint16), "structure": structure}
        )
    writer.finish()
    config = DequantizerConfig(num_positions=NUM_POSITIONS, latent_channels=4, codebook_size=CODEBOOK_SIZE)
    torch.manual_seed(0)
    dequantizer = Dequantizer(config)
    torch.nn.init.normal_(dequantizer.codebook, std=0.3)
    save_weights(folder, dequantizer.state_dict(), asdict(config), "dequantizer", name="dequantizer")
    entries = {
        "kind": "vgs-records",
        "schema_version": 1,
        "plan": "0" * 64,
        "tokenizer_hash": "1" * 64,
        "source_fingerprint": "2" * 64,
        "num_images": NUM_IMAGES,
        "num_views": 1,
        "num_records": NUM_IMAGES,
        "num_positions": NUM_POSITIONS,
        "latent_channels": 4,
        "codebook_size": CODEBOOK_SIZE,
        "num_classes": 10,
        "class_names": [str(label) for label in range(10)],
        "canvas_scales": [1.0] * 6,
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(entries))
    return folder
