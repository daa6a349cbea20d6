"""Images taken apart into what every stage painted, for pictures.

Shapes: images uint8 (H, W, C); maps int64 (side, side); S = K + 1 stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eval.pool.pool import PoolConfig
from eval.pool.samplers import GeneratorSpec
from nvg.checkpoints import load_network
from nvg.granularity import StageLayout, stage_map
from nvg.pixels import ImageArray, to_model_range, to_uint8
from nvg.sampling import SampledSequence
from nvg.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Painting:
    """One image, stage by stage.

    Attributes:
        label: its class.
        stages_SHWC: uint8 image decoded from the canvas after every stage.
        maps_Sss: int64 structure map of every stage, 2^i different values at stage i.
        original_HWC: the image it was made from; None for a sample.
    """

    label: int
    stages_SHWC: ImageArray
    maps_Sss: NDArray[np.int64]
    original_HWC: ImageArray | None = None


def paint_samples(spec: GeneratorSpec, pool: PoolConfig, *, count: int) -> list[Painting]:
    """Take the first samples of the pool apart, drawn in its own first batch, so that they are the same.

    Args:
        spec: what is drawn from.
        pool: its batch size.
        count: how many samples; at most one batch.

    Raises:
        UserError: weights are missing or do not fit.
    """
    sampler = spec.build(pool.device)
    indices_B = torch.arange(pool.batch_size)
    labels_B = indices_B % spec.num_classes
    drawn = sampler.draw_sequences(labels_B, indices_B)
    return paint_sequences(sampler.tokenizer, drawn, labels_B, spec.rounding, count=count)


def paint_sequences(
    tokenizer: Tokenizer, drawn: SampledSequence, labels_B: torch.Tensor, rounding: str, *, count: int
) -> list[Painting]:
    """Take `count` samples apart that are already drawn, from the front; there may be fewer."""
    return [
        _painting(tokenizer, drawn.canvases_BSLC[row], drawn.structure_BL[row], int(labels_B[row]), rounding)
        for row in range(min(count, len(labels_B)))
    ]


def paint_images(
    spec: GeneratorSpec, images_BHWC: ImageArray, labels_B: NDArray[np.integer], *, count: int
) -> list[Painting]:
    """Take real images apart: the sequence the tokenizer makes of them.

    Args:
        spec: names the tokenizer and the rounding.
        images_BHWC: uint8 images.
        labels_B: their classes.
        count: how many, of as many different classes as there are.

    Raises:
        UserError: the tokenizer is missing or takes images of another size.
    """
    tokenizer = load_network(Tokenizer, spec.tokenizer, name=spec.tokenizer_weights)
    first_rows = np.unique(labels_B, return_index=True)[1]
    rows = np.resize(first_rows[:: max(1, len(first_rows) // count)], min(count, len(images_BHWC)))
    return paint_tokenized(tokenizer, images_BHWC[rows], labels_B[rows], spec.rounding)


@torch.inference_mode()
def paint_records(tokenizer: Tokenizer, batch: dict[str, NDArray[np.int64]], rounding: str) -> list[Painting]:
    """Take stored records apart: nothing is encoded, ids and maps are decoded.

    Args:
        tokenizer: the one that wrote the records, in evaluation mode.
        batch: from `RecordDataset.batch`.
        rounding: see `nvg.pixels.to_uint8`.
    """
    structure_BL = torch.from_numpy(batch["structure"])
    canvases_BSLC = tokenizer.dequantizer.canvases(torch.from_numpy(batch["content_ids"]), structure_BL)
    return [
        _painting(tokenizer, canvases_BSLC[row], structure_BL[row], int(label), rounding)
        for row, label in enumerate(batch["label"])
    ]


@torch.inference_mode()
def paint_tokenized(
    tokenizer: Tokenizer, images_BHWC: ImageArray, labels_B: NDArray[np.integer], rounding: str
) -> list[Painting]:
    """Take images apart with a tokenizer at hand, each with its original beside it.

    Raises:
        UserError: the images are not of the tokenizer's size.
    """
    ids_BT, structure_BL = tokenizer.tokenize(to_model_range(images_BHWC))
    canvases_BSLC = tokenizer.dequantizer.canvases(ids_BT, structure_BL)
    return [
        _painting(tokenizer, canvases_BSLC[row], structure_BL[row], int(labels_B[row]), rounding, images_BHWC[row])
        for row in range(len(images_BHWC))
    ]


@torch.inference_mode()
def _painting(
    tokenizer: Tokenizer,
    canvases_SLC: torch.Tensor,
    structure_L: torch.Tensor,
    label: int,
    rounding: str,
    original_HWC: ImageArray | None = None,
) -> Painting:
    layout = StageLayout(len(structure_L))
    maps = [
        stage_map(structure_L[None], stage, layout.last_stage)[0].reshape(layout.side, layout.side)
        for stage in range(layout.num_stages)
    ]
    return Painting(
        label=label,
        stages_SHWC=to_uint8(tokenizer.decode(canvases_SLC), rounding),
        maps_Sss=torch.stack(maps).cpu().numpy(),
        original_HWC=original_HWC,
    )
