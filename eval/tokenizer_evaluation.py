"""One evaluation of a tokenizer: reconstruct a set of images, score them, and say how that was done.

The reference of every number is the set that is reconstructed: rFID compares the reconstructions of these images with
these images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from cluster.files import write_atomically
from cluster.manifest import library_versions
from eval.features.extractors import ExtractorConfig, ExtractorSpec, layers_of
from eval.image_files import ImageReader
from eval.pictures.paintings import paint_tokenized
from eval.pictures.sheets import tokenizer_sheet
from eval.pixels import ROUNDINGS
from eval.pool.jobs import ReconstructionJob
from eval.pool.pool import ChunkPoolConfig, PoolResult, run_chunks
from eval.results import threads, timed, write_results
from eval.scores.frechet import METHOD
from eval.scores.metrics import frechet_distance
from eval.scores.reconstruction import check_lpips
from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.granularity import StageLayout
from nvg.tokenizer import Tokenizer
from nvg.training.codebook_watch import CodebookWatch

SCHEMA_VERSION = 1
SHEET_FILE = "reconstructions.png"
LEAST_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class TokenizerEvaluationConfig(ExtractorConfig):
    """What is evaluated, and how.

    Attributes:
        tokenizer: folder of the tokenizer's weights, or its run.
        tokenizer_weights: which of them: `ema` or `model`.
        rounding: `release` (cut off) or `round` (nearest), from network output to bytes.
        vgg_weights: torchvision's `vgg16-397923af.pth`; empty leaves LPIPS (VGG) out.
        alex_weights: torchvision's `alexnet-owt-7be5be79.pth`; empty leaves LPIPS (Alex) out.
        num_pictures: columns of the picture sheet.
        pool: shape of the pool.
    """

    tokenizer: str = ""
    tokenizer_weights: str = "ema"
    rounding: str = "release"
    vgg_weights: str = ""
    alex_weights: str = ""
    num_pictures: int = 10
    pool: ChunkPoolConfig = field(default_factory=lambda: ChunkPoolConfig(chunk_size=256, batch_size=32))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokenizer", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name}: found nothing, expected a folder")
        if self.tokenizer_weights not in ("ema", "model"):
            raise ValueError(f"tokenizer_weights: found {self.tokenizer_weights!r}, expected 'ema' or 'model'")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding: found {self.rounding!r}, expected one of {', '.join(ROUNDINGS)}")
        if self.num_pictures < 1:
            raise ValueError(f"num_pictures: found {self.num_pictures}, expected at least 1")

    @property
    def lpips(self) -> dict[str, str]:
        """Trunk to file, for the trunks that have one."""
        files = {"vgg": self.vgg_weights, "alex": self.alex_weights}
        return {trunk: path for trunk, path in files.items() if path}


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """The images that are reconstructed.

    Attributes:
        images: reads them.
        labels: int64 (N,), their classes; the picture sheet shows one of each.
        check_unreadable: called with the indices of images that could not be read; refuses too many.
    """

    images: ImageReader
    labels: NDArray[np.int64]
    check_unreadable: Callable[[NDArray[np.int64]], None]


def evaluate_tokenizer(
    config: TokenizerEvaluationConfig,
    reference: ReferenceSet,
    extractor: Callable[[], ExtractorSpec],
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Reconstruct, score; write `results.json` and the picture sheet into the output folder.

    Every chunk already computed for the same weights, images and settings is taken from the output folder.

    Args:
        config: what is evaluated, and how.
        reference: real images.
        extractor: gives the extractor; called after everything else is checked, since it may train a network.
        console: where the progress bar is drawn.

    Returns:
        The results, as in `results.json`.

    Raises:
        UserError: weights are missing or do not fit the images.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    tokenizer = load_network(Tokenizer, config.tokenizer, name=config.tokenizer_weights)
    check_lpips(config.lpips, tokenizer.config.image_size)
    with timed(seconds, "picture sheet"), threads(config.pool.threads_per_actor):
        write_atomically(output / SHEET_FILE, _sheet(tokenizer, reference, config))
    with timed(seconds, "feature network"), threads(config.pool.threads_per_actor):
        extractor_spec = extractor()
    job = ReconstructionJob(
        images=reference.images,
        tokenizer=config.tokenizer,
        tokenizer_weights=config.tokenizer_weights,
        extractor=extractor_spec,
        lpips=config.lpips,
        rounding=config.rounding,
    )
    with timed(seconds, "reconstruction"):
        pool = run_chunks(
            job,
            len(reference.images),
            config=config.pool,
            folder=output / "pool",
            title="Reconstructing",
            console=console,
        )
    reference.check_unreadable(np.flatnonzero(~pool.arrays["readable_B"]))
    with timed(seconds, "scores"), threads(config.pool.threads_per_actor):
        scores = reconstruction_scores(pool.arrays, tokenizer.dequantizer.layout, tokenizer.config.codebook_size)
    results = {
        "schema_version": SCHEMA_VERSION,
        "scores": scores,
        "left_out": [
            f"LPIPS ({trunk}): {trunk}_weights names no file" for trunk in ("vgg", "alex") if trunk not in config.lpips
        ],
        "protocol": _protocol(pool, scores["num_images"], extractor_spec),
        "seconds": seconds,
    }
    write_results(output, results)
    return results


def reconstruction_scores(
    arrays: Mapping[str, NDArray[Any]], layout: StageLayout, codebook_size: int
) -> dict[str, Any]:
    """Scores of all readable images.

    Args:
        arrays: what `ReconstructionJob` computed.
        layout: stages of the tokenizer.
        codebook_size: V.

    Returns:
        `num_images`, `rfid`, means of PSNR, SSIM and LPIPS, and `codebook`: usage and perplexity overall and by stage.

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
        "rfid": frechet_distance(arrays["features_BF"][rows], arrays["original_features_BF"][rows]),
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


def _sheet(tokenizer: Tokenizer, reference: ReferenceSet, config: TokenizerEvaluationConfig) -> bytes:
    """The first readable image of each class, classes spread over all, then the next of each."""
    order = np.argsort(reference.labels, kind="stable")
    _, starts = np.unique(reference.labels[order], return_index=True)
    turn = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    candidates = order[np.argsort(turn, kind="stable")]
    if len(starts) > config.num_pictures:
        candidates = candidates[np.linspace(0, len(starts) - 1, config.num_pictures).astype(int)]
    images_BHWC, readable_B = reference.images.read(candidates[: config.num_pictures])
    if not readable_B.any():
        raise UserError(f"images: found none that can be read among {len(readable_B)}; check source")
    shown, labels_B = images_BHWC[readable_B], reference.labels[candidates[: config.num_pictures]][readable_B]
    return tokenizer_sheet(paint_tokenized(tokenizer, shown, labels_B, config.rounding))


def _protocol(pool: PoolResult, num_images: int, extractor: ExtractorSpec) -> dict[str, Any]:
    """Everything that a score depends on beside the tokenizer."""
    return {
        "reference": {**pool.identity["images"], "num_images": num_images, "is": "the images that are reconstructed"},
        **{name: value for name, value in pool.identity.items() if name != "images"},
        "extractor": {**pool.identity["extractor"], "feature_layer": layers_of(extractor.kind)["feature_layer"]},
        "rfid": f"{METHOD}, reconstructions against their originals",
        "psnr": "8-bit peak, mean over images, an image without error counting as 1/12 grey level²",
        "ssim": "torchmetrics, Gaussian window of deviation 1.5, range 255, float64, mean over images",
        "lpips": "version 0.1, bytes as x / 127.5 - 1, grey repeated to three channels, mean over images",
        "codebook": "usage: share of entries drawn at least once; perplexity: exp of the entropy, in nats",
        "libraries": library_versions(),
    }
