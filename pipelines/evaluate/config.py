"""New room."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.session import SessionConfig
from eval.evaluation_config import EvaluationConfig
from eval.features.extractors import ExtractorConfig
from eval.pool.pool import ChunkPoolConfig
from eval.reference import ScoreConfig
from pipelines.checkpoints import weights_folder
from pipelines.sources import SourceConfig

REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationConfig):
    """What is evaluated, on which images, and what the report shows besides.

    Attributes:
        source: the images; its parts `train`, `judge` and `test` are read, view 0 of each image, and for the search
            for copies every view of `train` that its `num_views` names. Not opened where there is a reference.
        reference: npz file of ADM's or of `nvg eval reference`: samples are scored against it alone, by the protocol
            of published tables. Empty compares with the images of the source.
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
        for name in ("tokenizer", "content", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name}: found nothing, expected a folder")
        if not self.reference and (self.samples_file or self.samples_folder):
            raise ValueError("samples_file, samples_folder: found them without a reference, expected them with one")


def resolve_paths(config: EvaluateConfig) -> EvaluateConfig:
    """The evaluation with absolute paths, runs replaced by their newest valid checkpoints.

    Args:
        config: as given.

    Raises:
        UserError: weights are missing.
    """
    return replace(
        config,
        output=str(Path(config.output).expanduser().absolute()),
        tokenizer=str(weights_folder("tokenizer", config.tokenizer)),
        content=str(weights_folder("content", config.content)),
        structure=config.structure and str(weights_folder("structure", config.structure)),
    )


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
        for name in ("samples", "reference", "extractor_path", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name}: found nothing, expected a path")
