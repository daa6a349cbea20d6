"""What an evaluation of generators, or of images made elsewhere, is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from cluster.session import SessionConfig
from eval.features import ExtractorConfig
from eval.features.extractors import scores_of
from eval.features.pretrained import EFFICIENTNET
from eval.pool.pool import ChunkPoolConfig, PoolConfig
from eval.pool.samplers import GeneratorSpec
from eval.reference import ScoreConfig
from eval.scores.judge import JudgeConfig
from eval.scores.manifold import LEAST_IMAGES
from nvg.bounds import at_least, refuse
from nvg.checkpoints.runs import generators, require_tokenizer, weights_folder
from nvg.pixels import Rounding
from nvg.precision import Precision, resolve_precision
from nvg.sampling import SamplingConfig
from pipelines.sources import SourceConfig

REPORT_FILE = "report.html"
Weights = Literal["ema", "model"]
_MANIFOLD_IMAGES = 2000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ExtractorConfig):
    """Which generators are evaluated, against what, and what is kept of it.

    With a reference, samples are scored against it alone, by the protocol of published tables. Without one they are
    compared with the images of the source, and the report shows what the last six settings name.

    Attributes:
        tokenizer: folder of the tokenizer's weights, or its run.
        content: folder of the content generator's weights, or its run.
        structure: likewise of the structure generator; empty for a tokenizer of spatial structure.
        weights: which weights of the generators.
        tokenizer_weights: which weights of the tokenizer.
        rounding: `release` (cut off) or `round` (nearest), from network output to bytes.
        precision: `bf16`, `tf32` or `fp32`, see `nvg.precision`; null is bf16 on a GPU and fp32 on a CPU. Features are
            always computed in fp32.
        compile: True compiles the generators' blocks on every worker; pays from some thousand samples on.
        guidance_one: without a reference: also draw a pool with both guidance scales at 1, all else unchanged.
        manifold_images: without a reference: precision and recall take so many images of either side; null is 2,000 in
            features of EfficientNet or DINOv2 and all images in others.
        sampling: guidance, top-p, flow steps.
        pool: size and shape of the sampling pool.
        judge: without a reference: the independent classifier.
        source: the images; its parts `train`, `judge` and `test` are read, view 0 of each image, and for the search
            for copies every view of `train` that its `num_views` names. Not opened where there is a reference.
        reference: npz file of ADM's or of `nvg eval reference`; empty compares with the images of the source.
        score: what is computed against a reference beside the scores.
        samples_file: npz file for the samples drawn against a reference, as ADM's evaluator takes it; may be empty.
        samples_folder: folder for them as PNG files; may be empty.
        records: record data set the generators were trained on; compared with the tokenizer, and its codebook
            usage is shown. Empty leaves both out.
        curves: name to run folder of the trainings whose loss curves are shown.
        times: name to seconds of the steps that went before, shown in the report.
        title: headline of the report.
        session: the Ray cluster to start or join.
    """

    tokenizer: str = ""
    content: str = ""
    structure: str = ""
    weights: Weights = "ema"
    tokenizer_weights: Weights = "ema"
    rounding: Rounding = "release"
    precision: Precision | None = None
    compile: bool = False
    guidance_one: bool = True
    manifold_images: int | None = at_least(LEAST_IMAGES, None)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    reference: str = ""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    samples_file: str = ""
    samples_folder: str = ""
    records: str = ""
    curves: dict[str, str] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    title: str = "Images, painted from coarse to fine"
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_precision(self.precision, self.pool.device)
        require(self, "a folder", "tokenizer", "content", "output")
        for name in ("output", "samples_folder"):
            self.source.keep_apart(name, getattr(self, name))
        for name in ("samples_file", "samples_folder"):
            if getattr(self, name) and not self.reference:
                raise refuse(name, getattr(self, name), "nothing without a reference", "set reference as well")

    @property
    def images_of_a_side(self) -> int:
        """How many images precision and recall take of either side; 0 takes all."""
        if self.manifold_images is not None:
            return self.manifold_images
        return 0 if "fid" in scores_of(self.extractor_kind) else _MANIFOLD_IMAGES

    def generator_spec(self, num_classes: int) -> GeneratorSpec:
        """What the pool draws from; `num_classes` is how many classes the generators know."""
        return GeneratorSpec(
            tokenizer=self.tokenizer,
            content=self.content,
            structure=self.structure,
            weights=self.weights,
            tokenizer_weights=self.tokenizer_weights,
            num_classes=num_classes,
            sampling=self.sampling,
            seed=self.pool.seed,
            rounding=self.rounding,
            precision=resolve_precision(self.precision, self.pool.device),
            compile=self.compile,
        )

    def resolved(self) -> Self:
        """The evaluation with absolute paths, runs replaced by their newest valid checkpoints.

        Raises:
            UserError: weights are missing, or the generators were trained with another tokenizer.
        """
        resolved = replace(
            self,
            output=str(Path(self.output).expanduser().absolute()),
            tokenizer=str(weights_folder("tokenizer", self.tokenizer)),
            content=str(weights_folder("content", self.content)),
            structure=self.structure and str(weights_folder("structure", self.structure)),
        )
        made_with = generators(resolved.content, resolved.structure)
        require_tokenizer("tokenizer", resolved.tokenizer, self.tokenizer_weights, made_with)
        return resolved


@dataclass(frozen=True, kw_only=True)
class EvaluateImagesConfig(ExtractorConfig, ScoreConfig):
    """Images made elsewhere, and what they are compared with.

    Attributes:
        samples: npz file with `arr_0`, uint8 (images, height, width, 3), or a folder of image files.
        reference: npz file of ADM's, or of `nvg eval reference`.
        class_ordered: True scores samples that come sorted by class all the same, permuted.
        pool: shape of the pool that computes their features.
        session: the Ray cluster to start or join.
    """

    samples: str = ""
    reference: str = ""
    class_ordered: bool = False
    pool: ChunkPoolConfig = field(default_factory=lambda: ChunkPoolConfig(chunk_size=1000, batch_size=50))
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "a path", "samples", "reference", "output")
        if self.extractor_kind != EFFICIENTNET:  # which a package may bring
            require(self, "a path", "extractor_path")


def make_folder(path: str) -> Path:
    """The absolute path of a folder, which is there afterwards."""
    folder = Path(path).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require(config: Any, expected: str, *names: str) -> None:
    """Refuse settings that are left empty.

    Raises:
        UserError: names the first one.
    """
    for name in names:
        if not getattr(config, name):
            raise refuse(name, getattr(config, name), expected, f"set {name}")
