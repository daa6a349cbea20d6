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


def manifest_of(num_records: int, num_positions: int = NUM_POSITIONS, num_classes: int = 10, **others: Any) -> dict:
    """A whole manifest; `others` override or join its entries."""
    last_stage = num_positions.bit_length() - 1
    return {
        "kind": "vgs-records",
        "schema_version": 1,
        "plan": "0" * 64,
        "tokenizer_hash": "1" * 64,
        "source_fingerprint": "2" * 64,
        "image_size": 16,
        "image_channels": 1,
        "view_policy": "center",
        "num_inputs": num_records,
        "num_images": num_records,
        "num_views": 1,
        "num_records": num_records,
        "num_positions": num_positions,
        "last_stage": last_stage,
        "latent_channels": 4,
        "codebook_size": CODEBOOK_SIZE,
        "num_classes": num_classes,
        "class_names": [str(label) for label in range(num_classes)],
        "class_histogram": [0] * num_classes,
        "canvas_scales": [1.0] * (last_stage + 2),
        "codebook_usage": [0.5] * (last_stage + 1),
        "skipped": [],
        "library_versions": {},
        **others,
    }


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
    (folder / "manifest.json").write_text(json.dumps(manifest_of(NUM_IMAGES, **manifest)))
    return folder
