"""`nvg eval tokenizer`: reconstruct one split of a source, write `results.json` and the picture sheet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rich.console import Console

from cluster.files import write_atomically
from cluster.session import SessionConfig, cluster_session
from eval.features import ExtractorConfig
from eval.pages.page import caveat_notes, dagger, distance_name
from eval.pool.jobs import ReconstructionJob
from eval.pool.pool import ChunkPoolConfig, run_chunks
from eval.results import RESULTS_FILE, caveat, comparability, count_caveats, threads, timed, write_results
from eval.scores.reconstruction import check_lpips
from eval.tokenizer_evaluation import reconstruction_picture, reconstruction_protocol, reconstruction_scores
from nvg.bounds import at_least
from nvg.checkpoints import load_network
from nvg.checkpoints.runs import training_keys, weights_folder
from nvg.pixels import Rounding
from nvg.precision import resolve_precision
from nvg.tokenizer import Tokenizer
from pipelines.evaluate.config import Weights, make_folder, require
from pipelines.evaluate.images import (
    TOKENIZER_TRAINED_ON,
    SourceImages,
    check_readable,
    describe_features,
    describe_source,
    extractor_for,
    open_filled,
    why_seen,
)
from pipelines.evaluate.table import print_file, print_not_comparable, print_table, print_time
from pipelines.sources import SourceConfig

SCHEMA_VERSION = 1
_COMPARED = ("rfid", "rfd", "lpips_vgg", "lpips_alex", "psnr_db", "ssim")
_SHEET_FILE = "reconstructions.png"


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizerConfig(ExtractorConfig):
    """Which tokenizer is evaluated, and on which images.

    Attributes:
        tokenizer: folder of the tokenizer's weights, or its run.
        tokenizer_weights: which of them.
        rounding: `release` (cut off) or `round` (nearest), from network output to bytes.
        vgg_weights: torchvision's `vgg16-397923af.pth`; empty leaves LPIPS (VGG) out.
        alex_weights: torchvision's `alexnet-owt-7be5be79.pth`; empty leaves LPIPS (Alex) out.
        precision: of the tokenizer: `fp32`, or `tf32` on a GPU; that of its records. Scores are computed in fp32.
        num_pictures: columns of the picture sheet.
        pool: shape of the pool.
        source: the images; view 0 of each image of its split is reconstructed, and scores compare with these images.
            Where a feature network has to be trained, it learns from the `train` split.
        session: the Ray cluster to start or join.
    """

    tokenizer: str = ""
    tokenizer_weights: Weights = "ema"
    rounding: Rounding = "release"
    vgg_weights: str = ""
    alex_weights: str = ""
    precision: Literal["fp32", "tf32"] = "fp32"
    num_pictures: int = at_least(1, 10)
    pool: ChunkPoolConfig = field(default_factory=lambda: ChunkPoolConfig(chunk_size=256, batch_size=32))
    source: SourceConfig = field(default_factory=lambda: SourceConfig(split="test"))
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_precision(self.precision, self.pool.device)
        require(self, "a folder", "tokenizer", "output")
        self.source.keep_apart("output", self.output)

    @property
    def lpips(self) -> dict[str, str]:
        """Trunk to file, for the trunks that have one."""
        files = {"vgg": self.vgg_weights, "alex": self.alex_weights}
        return {trunk: path for trunk, path in files.items() if path}


def plan_evaluate_tokenizer(config: EvaluateTokenizerConfig) -> list[str]:
    """The steps of an evaluation, for a dry run: one line each."""
    pool = config.pool
    return [
        describe_source(config.source, config.source.split),
        describe_features(config, "the training images"),
        "LPIPS: " + (", ".join(config.lpips) or "left out, neither vgg_weights nor alex_weights names a file"),
        f"join or start Ray ({config.session.address}) and reconstruct on {pool.num_actors} worker(s), "
        f"{pool.chunk_size} per chunk, in {config.precision}",
        f"write {RESULTS_FILE} and {_SHEET_FILE} in {config.output}",
    ]


def run_evaluate_tokenizer(config: EvaluateTokenizerConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Reconstruct, score, write; print the scores and where the files are.

    Every chunk already computed for the same weights, images and settings is taken from the output folder.

    Returns:
        The results, as in `results.json`.

    Raises:
        UserError: images or weights are missing or do not belong together.
    """
    console = console or Console()
    output = make_folder(config.output)
    config = replace(config, output=str(output), tokenizer=str(weights_folder("tokenizer", config.tokenizer)))
    source = open_filled(config.source)
    images, num_threads = SourceImages(source), config.pool.threads_per_actor
    seconds: dict[str, float] = {}
    with cluster_session(config.session):
        tokenizer = load_network(Tokenizer, config.tokenizer, name=config.tokenizer_weights)
        check_lpips(config.lpips, tokenizer.config.image_size)
        with timed(seconds, "picture sheet"), threads(num_threads):
            picture = reconstruction_picture(
                tokenizer, images, source.labels, num_pictures=config.num_pictures, rounding=config.rounding
            )
            write_atomically(output / _SHEET_FILE, picture)
        with timed(seconds, "feature network"), threads(num_threads):  # last, since it may have to be trained
            extractor = extractor_for(config, replace(config.source, split="train"))
        job = ReconstructionJob(
            images=images,
            tokenizer=config.tokenizer,
            tokenizer_weights=config.tokenizer_weights,
            extractor=extractor,
            lpips=config.lpips,
            rounding=config.rounding,
            precision=config.precision,
        )
        with timed(seconds, "reconstruction"):
            pool = run_chunks(
                job, len(images), config=config.pool, folder=output / "pool", title="Reconstructing", console=console
            )
    check_readable(source, pool.arrays["readable_B"])
    with timed(seconds, "scores"), threads(num_threads):
        scores = reconstruction_scores(
            pool.arrays,
            tokenizer.dequantizer.layout,
            tokenizer.config.codebook_size,
            distance_key=extractor.distance_key,
        )
    seen = why_seen(source.keys, {TOKENIZER_TRAINED_ON: training_keys(config.tokenizer)})
    results = {
        "schema_version": SCHEMA_VERSION,
        "scores": scores,
        "caveats": [
            *(caveat([n for n in _COMPARED if n in scores], ["reconstructions"], reason) for reason in seen),
            *count_caveats(
                {"reconstructions": scores["num_images"]},
                scores=scores,
                num_features=pool.arrays["features_BF"].shape[1],
            ),
        ],
        **comparability(extractor),
        "left_out": [
            f"LPIPS ({trunk}): {trunk}_weights names no file" for trunk in ("vgg", "alex") if trunk not in config.lpips
        ],
        "protocol": {**reconstruction_protocol(pool, scores["num_images"], extractor), "precision": config.precision},
        "seconds": seconds,
    }
    path = write_results(output, results)
    _print_scores(results, console)
    print_file(console, "results ", path)
    print_file(console, "pictures", output / _SHEET_FILE)
    return results


def _print_scores(results: dict[str, Any], console: Console) -> None:
    """Print scores, codebook use by stage, what the reference is and what was left out."""
    scores, reference = results["scores"], results["protocol"]["reference"]
    distance = "rfd" if "rfd" in scores else "rfid"
    mark = dagger(results, "reconstructions", distance)
    rows = [(f"r{distance_name(results)} ↓", f"{scores[distance]:.3f}{mark}")]
    rows += [
        (f"LPIPS ({trunk}) ↓", f"{scores[name]:.4f}")
        for trunk in ("vgg", "alex")
        if (name := f"lpips_{trunk}") in scores
    ]
    rows += [("PSNR ↑", f"{scores['psnr_db']:.2f} dB"), ("SSIM ↑", f"{scores['ssim']:.4f}")]
    print_table(console, ("", ""), rows, notes=caveat_notes(results))
    codebook = scores["codebook"]
    stages = [
        (str(number), str(stage["tokens_per_image"]), f"{stage['usage']:.1%}", f"{stage['perplexity']:.1f}")
        for number, stage in enumerate(codebook["stages"])
    ]
    tokens = sum(stage["tokens_per_image"] for stage in codebook["stages"])
    stages.append(("all", str(tokens), f"{codebook['usage']:.1%}", f"{codebook['perplexity']:.1f}"))
    print_table(console, ("stage", "tokens", f"usage of {codebook['size']}", "perplexity"), stages)
    console.print(
        f"\nreference: {reference['num_images']:,} images, {reference['kind']} {reference['split']} "
        f"({reference['fingerprint'][:12]}…), features of {results['protocol']['extractor']['kind']}",
        highlight=False,
        soft_wrap=True,
    )
    print_not_comparable(console, results)
    for line in results["left_out"]:
        console.print(f"left out: {line}", highlight=False, soft_wrap=True)
    print_time(console, results)
