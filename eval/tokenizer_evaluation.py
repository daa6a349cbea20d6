"""Scores of a tokenizer from what its pool computed, how they were made, and the picture beside them.

The reference of every number is the set that is reconstructed: rFID compares the reconstructions of these images with
these images. The pool's job is `eval.pool.jobs.ReconstructionJob`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.versions import library_versions
from eval.features.extractors import ExtractorSpec
from eval.image_files import ImageReader
from eval.pictures.paintings import paint_tokenized
from eval.pictures.sheets import tokenizer_sheet
from eval.pool.pool import PoolResult
from eval.scores.frechet import METHOD
from eval.scores.metrics import frechet_distance
from nvg.errors import UserError
from nvg.granularity import StageLayout
from nvg.tokenizer import Tokenizer
from nvg.training.codebook_watch import CodebookWatch

LEAST_IMAGES = 2


def reconstruction_scores(
    arrays: Mapping[str, NDArray[Any]], layout: StageLayout, codebook_size: int, *, distance_key: str = "fid"
) -> dict[str, Any]:
    """Scores of all readable images.

    Args:
        arrays: what `ReconstructionJob` computed.
        layout: stages of the tokenizer.
        codebook_size: V.
        distance_key: `fid` or `fd`, as the extractor says.

    Returns:
        `num_images`, `rfid` (or `rfd`), means of PSNR, SSIM and LPIPS, and `codebook`: usage and perplexity overall and
        by stage.

    Raises:
        UserError: fewer than two images.

    Paper: Table 3
    """
    rows = np.flatnonzero(arrays["readable_B"])
    if len(rows) < LEAST_IMAGES:
        raise UserError(f"images: found {len(rows)} that can be read, expected at least {LEAST_IMAGES}; change source")
    watch = CodebookWatch(layout, codebook_size)
    watch.add(torch.from_numpy(arrays["content_ids_BT"][rows].astype(np.int64)))
    use = watch.close()
    names = {"psnr_B": "psnr_db", "ssim_B": "ssim", "lpips_vgg_B": "lpips_vgg", "lpips_alex_B": "lpips_alex"}
    return {
        "num_images": len(rows),
        f"r{distance_key}": frechet_distance(arrays["features_BF"][rows], arrays["original_features_BF"][rows]),
        **{title: float(arrays[name][rows].mean()) for name, title in names.items() if name in arrays},
        "codebook": {
            "size": codebook_size,
            "usage": use["codebook_usage"],
            "perplexity": use["codebook_perplexity"],
            "stages": [
                {
                    "tokens_per_image": 1 << stage,
                    "usage": use[f"codebook_{stage}_usage"],
                    "perplexity": use[f"codebook_{stage}_perplexity"],
                }
                for stage in range(layout.num_stages)
            ],
        },
    }


def reconstruction_protocol(pool: PoolResult, num_images: int, extractor: ExtractorSpec) -> dict[str, Any]:
    """Everything that a score depends on beside the tokenizer."""
    return {
        "reference": {**pool.identity["images"], "num_images": num_images, "is": "the images that are reconstructed"},
        **{name: value for name, value in pool.identity.items() if name != "images"},
        "extractor": {
            name: value
            for name, value in extractor.description().items()
            if name not in ("logit_layer", "spatial_layer")  # which no score of a tokenizer looks at
        },
        f"r{extractor.distance_key}": f"{METHOD}, reconstructions against their originals",
        "psnr": "8-bit peak, mean over images, an image without error counting as 1/12 grey level²",
        "ssim": "torchmetrics, Gaussian window of deviation 1.5, range 255, float64, mean over images",
        "lpips": "version 0.1, bytes as x / 127.5 - 1, grey repeated to three channels, mean over images",
        "codebook": "usage: share of entries drawn at least once; perplexity: exp of the entropy, in nats",
        "libraries": library_versions(),
    }


def reconstruction_picture(
    tokenizer: Tokenizer, images: ImageReader, labels_N: NDArray[np.int64], *, num_pictures: int, rounding: str
) -> bytes:
    """The first readable image of each class, classes spread over all, then the next of each, as a PNG.

    Raises:
        UserError: none of them can be read, or they are of another size than the tokenizer's.
    """
    order = np.argsort(labels_N, kind="stable")
    _, starts = np.unique(labels_N[order], return_index=True)
    turn = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    candidates = order[np.argsort(turn, kind="stable")]
    if len(starts) > num_pictures:
        candidates = candidates[np.linspace(0, len(starts) - 1, num_pictures).astype(int)]
    chosen = candidates[:num_pictures]
    images_BHWC, readable_B = images.read(chosen)
    if not readable_B.any():
        raise UserError(f"images: found none that can be read among {len(readable_B)}; check source")
    shown, labels_B = images_BHWC[readable_B], labels_N[chosen][readable_B]
    return tokenizer_sheet(paint_tokenized(tokenizer, shown, labels_B, rounding))
