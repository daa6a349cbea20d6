"""What an evaluation is told, what it is given and what it gives back."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from eval.features.extractors import ExtractorConfig
from eval.pictures.paintings import Painting
from eval.pixels import ImageArray, check_images, check_labels
from eval.pool.pool import PoolConfig
from eval.pool.samplers import GeneratorSpec
from eval.scores.judge import JudgeConfig
from eval.scores.manifold import NEIGHBOURHOOD
from nvg.errors import UserError
from nvg.sampling import SamplingConfig

LEAST_IMAGES = NEIGHBOURHOOD + 1


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(ExtractorConfig):
    """What is evaluated, and how.

    Attributes:
        tokenizer: folder of the tokenizer's weights.
        content: folder of the content generator's weights.
        structure: folder of the structure generator's weights; empty for a tokenizer of spatial structure.
        weights: which weights of the generators: `ema` or `model`.
        tokenizer_weights: which weights of the tokenizer.
        rounding: `release` (cut off) or `round` (nearest), from network output to bytes.
        precision: of the generators' matrix products: `fp32` or `bf16`.
        guidance_one: also draw a pool with both guidance scales at 1, all else unchanged.
        sampling: guidance, top-p, flow steps.
        pool: size and shape of the sampling pool.
        judge: the independent classifier.
    """

    tokenizer: str = ""
    content: str = ""
    structure: str = ""
    weights: str = "ema"
    tokenizer_weights: str = "ema"
    rounding: Literal["release", "round"] = "release"
    precision: Literal["fp32", "bf16"] = "fp32"
    guidance_one: bool = True
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def generator_spec(self, num_classes: int) -> GeneratorSpec:
        """What the pool draws from.

        Args:
            num_classes: classes the generators know.
        """
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
            precision=self.precision,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """Real images, in memory.

    Attributes:
        class_names: names in order of the labels.
        train_images: uint8 (N, H, W, C): the reference of FID, precision and recall.
        train_labels: int64 (N,).
        held_out_images: images neither tokenizer nor generators nor judge were trained on.
        held_out_labels: their classes.
        judge_images: images for the judge alone; None leaves class accuracy out.
        judge_labels: their classes.
        train_views: every view of the training images that the generators saw, in which copies are looked for;
            None takes `train_images`.
        fingerprints: name of a split to its source's fingerprint, for the protocol.
    """

    class_names: list[str]
    train_images: ImageArray
    train_labels: np.ndarray
    held_out_images: ImageArray
    held_out_labels: np.ndarray
    judge_images: ImageArray | None = None
    judge_labels: np.ndarray | None = None
    train_views: ImageArray | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        splits = [
            ("training", self.train_images, self.train_labels),
            ("held-out", self.held_out_images, self.held_out_labels),
        ]
        if self.judge_images is not None and self.judge_labels is not None:
            splits.append(("judge", self.judge_images, self.judge_labels))
        for name, images, _ in splits[:2]:
            if len(images) < LEAST_IMAGES:
                raise UserError(
                    f"{name} images: found {len(images)}, expected at least {LEAST_IMAGES} for precision "
                    "and recall; give more images, or change source.test_fraction"
                )
        for name, images, labels in splits:
            check_images(images, f"{name} images")
            check_labels(labels, len(images), len(self.class_names), f"{name} labels")
            if images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(
                    f"{name} images: found {images.shape[1:]}, the training images are {self.train_images.shape[1:]}"
                )
        if self.judge_labels is not None:
            missing = sorted(set(range(len(self.class_names))) - set(self.judge_labels.tolist()))
            if missing:
                names = ", ".join(self.class_names[label] for label in missing[:5])
                raise UserError(
                    f"judge images: found none of {len(missing)} class(es) ({names}), expected at least one "
                    "of each; give these classes more images, or raise source.judge_fraction"
                )


@dataclass(frozen=True, kw_only=True)
class EvaluationMaterial:
    """Images the report shows.

    Attributes:
        class_names: names in order of the labels.
        generated: images drawn.
        generated_labels: classes asked for.
        held_out: real images.
        held_out_labels: their classes.
        reconstructions: of the held-out images.
        nearest: training image nearest to each generated one.
        nearest_distance: its distance, in grey levels.
        distance_threshold: distance that 95 % of held-out images exceed.
        paintings: samples after every stage.
        real_paintings: held-out images after every stage.
    """

    class_names: list[str]
    generated: ImageArray
    generated_labels: np.ndarray
    held_out: ImageArray
    held_out_labels: np.ndarray
    reconstructions: ImageArray
    nearest: ImageArray
    nearest_distance: np.ndarray
    distance_threshold: float
    paintings: list[Painting]
    real_paintings: list[Painting]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores as JSON values, and the images the report shows."""

    results: dict[str, Any]
    material: EvaluationMaterial
