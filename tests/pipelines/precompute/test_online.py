"""Offline = online: a record is what the tokenizer says of the image now, in batches of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvg.checkpoints import load_network
from nvg.granularity import cluster_mean
from nvg.pixels import to_model_range
from nvg.records import RecordDataset
from nvg.tokenizer import Dequantizer, Tokenizer, quantize_for_training

NEAR_TIE = 1e-5  # relative difference of two distances that rounding may turn round


def first_gap(
    latent_LC: torch.Tensor,
    structure_L: torch.Tensor,
    ids_T: torch.Tensor,
    other_T: torch.Tensor,
    dequantizer: Dequantizer,
) -> float:
    """Relative difference of the distances to two ids, at the first token that differs."""
    token = int((ids_T != other_T).nonzero()[0])
    stage = (token + 1).bit_length() - 1
    canvas_LC = torch.zeros_like(latent_LC)
    if stage:
        canvas_LC = dequantizer.canvases(ids_T[None], structure_L[None])[0, stage - 1]
    features_UC = cluster_mean((latent_LC - canvas_LC)[None], structure_L[None], stage)[0]
    feature_C = features_UC[token + 1 - (1 << stage)].double()
    one, other = ((feature_C - dequantizer.codebook[ids[token]].double()).square().sum() for ids in (ids_T, other_T))
    return float((one - other).abs() / torch.maximum(one, other))


@pytest.mark.parametrize("batch_size", [1, 7, 297])
@torch.no_grad()
def test_records_are_the_online_sequences(finished, batch_size):
    """Equal ids mean equal canvases; different ids are near-ties; at least 99 in 100 records are equal."""
    records = RecordDataset.open(finished.folder.root)
    tokenizer = load_network(Tokenizer, finished.config.tokenizer)
    stored = load_network(Dequantizer, finished.folder.root, "dequantizer")
    rows = np.flatnonzero(records.view == 1)
    num_different = 0
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        pixels = np.stack([finished.source.read(int(image), 1) for image in records.image[chosen]])
        latent_BLC = tokenizer.encode(to_model_range(pixels, planes=True))
        batch = {name: torch.from_numpy(array) for name, array in records.batch(chosen).items()}
        structure_BL = tokenizer.structure_maps(latent_BLC)
        online = quantize_for_training(
            latent_BLC, structure_BL, tokenizer.dequantizer, commitment_weight=0.25, soft_assignment=False
        )
        decoded_BLC = stored.canvases(batch["content_ids"], batch["structure"])[:, -1]
        same_maps_B = (structure_BL == batch["structure"]).all(1)
        same_B = same_maps_B & (online.content_ids_BT == batch["content_ids"]).all(1)
        torch.testing.assert_close(decoded_BLC[same_B], online.canvas_BLC[same_B], rtol=0, atol=1e-5)
        num_different += int((~same_B).sum())
        for row in (same_maps_B & ~same_B).nonzero().flatten().tolist():
            ids_T, other_T = online.content_ids_BT[row], batch["content_ids"][row]
            assert first_gap(latent_BLC[row], structure_BL[row], ids_T, other_T, stored) < NEAR_TIE
    assert num_different <= 0.01 * len(rows)
