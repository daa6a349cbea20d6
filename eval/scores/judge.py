"""The judge: an independent classifier that says which class a generated image shows.

Two kinds. `svm-rbf` is a support vector machine with a Gaussian kernel on pixels, another family of model than the
convolutional feature network. `linear-probe` is a logistic regression on the features of EfficientNet-Lite0, which was
trained on ImageNet: for pictures whose pixels say little. Either learns from images that neither the tokenizer nor the
generators have seen, so a generator cannot please it by having learned the same images.
Shapes: images_BHWC uint8, labels_B int64, features_BF float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from eval.features.extractors import ExtractorSpec, build_extractor, extract
from eval.features.pretrained import EFFICIENTNET, another_way
from eval.image_sets import check_labels
from nvg.bounds import at_least, between, check_fields, positive
from nvg.checkpoints import find_efficientnet_weights
from nvg.pixels import ImageArray, check_images

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

PROBE = "linear-probe"
_OF_PIXELS = ("image_size", "shift", "penalty", "sharpness")
_WEIGHTS_KEY = "judge.feature_weights"

_TRUSTED_SKILL = 0.8  # of the way from always naming the most frequent class to no mistake
_DEVIATIONS = 2.0
_NUM_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What the judge looks at and how soft it is.

    Attributes:
        kind: `svm-rbf` or `linear-probe`; the next four settings are the former's, the last two the latter's.
        image_size: images are averaged down to this side at most before they are compared, in pixels.
        shift: every training image is also shown shifted by this fraction of the side in eight directions
            (rounded to whole pixels, at least one); 0 switches that off.
        penalty: C of the support vector machine.
        sharpness: width of the Gaussian kernel: gamma times pixels times variance of the pixels. The default
            read best on six random divisions of the bundled digits (98.4 % on average; 98.2 % at 2, 97.9 %
            at 1).
        feature_weights: EfficientNet-Lite0's file; empty takes that of the installed package.
        probe_penalty: C of the logistic regression, on features of variance one.
    """

    kind: Literal["svm-rbf", "linear-probe"] = "svm-rbf"
    image_size: int = at_least(4, 32)
    shift: float = between(0, 0.25, 0.06)
    penalty: float = positive(10.0)
    sharpness: float = positive(4.0)
    feature_weights: str = ""
    probe_penalty: float = positive(0.01)

    def __post_init__(self) -> None:
        check_fields(self, "judge")

    def extractor(self) -> ExtractorSpec | None:
        """Where the features of the probe come from; None for a judge of pixels.

        Raises:
            UserError: there is no such weight file; says how to come by it.
        """
        if self.kind != PROBE:
            return None
        path = find_efficientnet_weights(self.feature_weights, key=_WEIGHTS_KEY, without=another_way(_WEIGHTS_KEY))
        return ExtractorSpec(kind=EFFICIENTNET, path=str(path))


class Judge:
    """A fitted classifier; build it with `train_judge`."""

    def __init__(
        self,
        machine: BaseEstimator,
        *,
        config: JudgeConfig,
        num_channels: int,
        num_images: int,
        extractor: ExtractorSpec | None,
    ) -> None:
        self._machine: Any = machine
        self.config = config
        self.num_channels = num_channels
        self.num_images = num_images
        self.extractor = extractor

    def protocol(self) -> dict[str, Any]:
        """What decides its answers beside its images, as JSON values."""
        facts = {"kind": self.config.kind, "images": self.num_images}
        if self.extractor is None:
            return {**{name: getattr(self.config, name) for name in _OF_PIXELS}, **facts}
        return {**facts, "penalty": self.config.probe_penalty, "features": self.extractor.identity()}

    def looks_with(self, extractor: ExtractorSpec) -> bool:
        """Whether features of this extractor are the ones it reads by."""
        return self.extractor is not None and self.extractor.identity() == extractor.identity()

    def read(self, images_BHWC: ImageArray, features_BF: NDArray[np.float32] | None = None) -> NDArray[np.int64]:
        """Say which class each image shows, int64 (B,).

        Args:
            images_BHWC: uint8 images.
            features_BF: theirs, where the judge's own extractor has looked at them already.

        Raises:
            ValueError: not uint8 images of the channels the judge was trained on.
        """
        check_images(images_BHWC, "images to judge")
        if images_BHWC.shape[-1] != self.num_channels:
            raise ValueError(
                f"images to judge: found {images_BHWC.shape[-1]} channels, the judge was trained on {self.num_channels}"
            )
        if self.extractor is None:
            features_BF = _rows(_small(images_BHWC, self.config))
        elif features_BF is None:
            features_BF = extract(build_extractor(self.extractor), images_BHWC).features_NF
        return self._machine.predict(features_BF).astype(np.int64)


def train_judge(
    images_BHWC: ImageArray, labels_B: NDArray[np.integer], *, num_classes: int, config: JudgeConfig | None = None
) -> Judge:
    """Fit the judge on real images kept apart for it.

    There is no randomness in it: the same images give the same judge.

    Raises:
        UserError: the weights of the probe's features are missing.
        ValueError: images or labels do not fit, or one of the classes has no image.
    """
    config = config or JudgeConfig()
    check_images(images_BHWC, "judge images")
    check_labels(labels_B, len(images_BHWC), num_classes, "judge labels")
    missing = sorted(set(range(num_classes)) - set(labels_B.tolist()))
    if missing:
        raise ValueError(
            f"judge images: found none of the classes {missing[:10]}, expected at least one image of each of "
            f"{num_classes}; give the judge split more images"
        )
    labels_B, extractor = labels_B.astype(np.int64), config.extractor()
    if extractor is None:
        machine = _fit_to_pixels(_small(images_BHWC, config), labels_B, config)
    else:
        features_BF = extract(build_extractor(extractor), images_BHWC).features_NF
        machine = _fit_to_features(features_BF, labels_B, config)
    channels = images_BHWC.shape[-1]
    return Judge(machine, config=config, num_channels=channels, num_images=len(images_BHWC), extractor=extractor)


def _fit_to_pixels(images_BCHW: torch.Tensor, labels_B: NDArray[np.int64], config: JudgeConfig) -> BaseEstimator:
    from sklearn.svm import SVC  # nobody else of those who take the scores has a use for it

    step = max(1, round(config.shift * images_BCHW.shape[-1])) if config.shift else 0
    offsets = [(dy, dx) for dy in (-step, 0, step) for dx in (-step, 0, step)] if step else [(0, 0)]
    views = np.concatenate([_rows(_shifted(images_BCHW, dy, dx)) for dy, dx in offsets])
    variance = max(float(views.var()), 1e-12)
    gamma = config.sharpness / (views.shape[1] * variance)
    machine = SVC(C=config.penalty, kernel="rbf", gamma=gamma, cache_size=500)
    return machine.fit(views, np.tile(labels_B, len(offsets)))


def _fit_to_features(
    features_BF: NDArray[np.float32], labels_B: NDArray[np.int64], config: JudgeConfig
) -> BaseEstimator:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    machine = make_pipeline(StandardScaler(), LogisticRegression(C=config.probe_penalty, max_iter=1000))
    return machine.fit(features_BF, labels_B)


def why_no_judge(class_names: Sequence[str], labels_B: NDArray[np.integer]) -> str:
    """What keeps a judge from being trained on images of these classes, as a clause; empty where nothing does."""
    if len(class_names) < 2:
        return "there is one class only, so nothing to tell apart"
    missing = [name for label, name in enumerate(class_names) if label not in set(labels_B.tolist())]
    if not missing:
        return ""
    names = ", ".join(missing[:_NUM_NAMED]) + (", …" if len(missing) > _NUM_NAMED else "")
    return f"the judge's part has no image of {len(missing)} of {len(class_names)} classes ({names})"


def why_not_trusted(share: float, labels_M: NDArray[np.integer]) -> str:
    """What keeps a judge's answers from being trusted, as a clause; empty where nothing does.

    It is trusted where, two standard deviations to its disadvantage (Wilson's bound), it still reads so many real
    images right as lie 80 % of the way from always naming their most frequent class to no mistake at all.

    Args:
        share: of real held-out images that it reads right.
        labels_M: their classes.
    """
    count, chance = len(labels_M), float(np.bincount(labels_M).max() / len(labels_M))
    surely, needed = _least_share(share, count), chance + _TRUSTED_SKILL * (1 - chance)
    if surely >= needed and chance < 1:
        return ""
    return (
        f"the judge reads {share:.1%} of {count:,} real held-out images right (always the most frequent class: "
        f"{chance:.1%}), which shows {surely:.1%} for sure; it is trusted from {needed:.1%}"
    )


def _least_share(share: float, count: int) -> float:
    """Lower end of Wilson's interval of a share of `count`."""
    per_image = _DEVIATIONS**2 / count
    spread = _DEVIATIONS * math.sqrt(share * (1 - share) / count + per_image / (4 * count))
    return (share + per_image / 2 - spread) / (1 + per_image)


def class_accuracy(
    read_B: NDArray[np.integer], asked_B: NDArray[np.integer], num_classes: int
) -> tuple[float, list[float | None]]:
    """Share of images read as the class that was asked for.

    Returns:
        The share over all images and one share per class (None where no image was asked for).
    """
    hits_B = read_B == asked_B
    by_class = [
        float(hits_B[asked_B == label].mean()) if bool((asked_B == label).any()) else None
        for label in range(num_classes)
    ]
    return float(hits_B.mean()), by_class


def _small(images_BHWC: ImageArray, config: JudgeConfig) -> torch.Tensor:
    """Float images (B, C, S, S) in [0, 1], averaged down to the side the judge looks at."""
    images = torch.from_numpy(images_BHWC.copy()).permute(0, 3, 1, 2).to(torch.float32) / 255
    side = min(config.image_size, images.shape[-2], images.shape[-1])
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return images


def _shifted(images_BCHW: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Images moved by whole pixels, their border repeated."""
    reach = max(abs(dy), abs(dx))
    if reach == 0:
        return images_BCHW
    padded = F.pad(images_BCHW, (reach,) * 4, mode="replicate")
    height, width = images_BCHW.shape[-2:]
    return padded[:, :, reach + dy : reach + dy + height, reach + dx : reach + dx + width]


def _rows(images_BCHW: torch.Tensor) -> NDArray[np.float32]:
    """One row of pixels per image."""
    return images_BCHW.reshape(len(images_BCHW), -1).numpy()
