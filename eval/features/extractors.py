"""Which network features come from, built from a file that is there or trained for it, and the features themselves.

Four kinds: Inception (`inception-v3-compat`, the network behind every published FID), the small image network
(`nvg-small-image`), trained on data sets that Inception knows nothing about, and two trained elsewhere that are at hand
or far better: `efficientnet-lite0` and `dinov2-vitl14`. No weights are ever fetched silently. The first two are
extractors as torch-fidelity knows them; its registry lives in one process, so every worker registers for itself.
Shapes: images_BHWC uint8, features_NF float32, logits_NV float32, spatial_NG float32.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from eval.features.inception import (
    INCEPTION,
    LOGIT_LAYER,
    NUM_POOL_FEATURES,
    POOL_LAYER,
    SPATIAL_CHANNELS,
    InceptionExtractor,
    check_inception_file,
    load_inception,
)
from eval.features.pretrained import (
    DINOV2,
    DINOV2_SIDE,
    EFFICIENTNET,
    EFFICIENTNET_SIDE,
    NUM_DINOV2_FEATURES,
    another_way,
    check_dinov2_file,
    load_dinov2,
    load_efficientnet,
)
from eval.features.small_network import (
    WEIGHTS_NAME,
    FeatureNetworkConfig,
    FeatureTrainingConfig,
    load_feature_network,
    save_feature_network,
    train_feature_network,
)
from eval.image_sets import Features, ImageSet
from nvg.bounds import check_fields, refuse
from nvg.checkpoints import file_hash, find_efficientnet_weights
from nvg.errors import UserError
from nvg.pixels import ImageArray, check_images
from nvg.precision import without_tf32
from nvg.tokenizer.efficientnet import NUM_FEATURES as NUM_EFFICIENTNET_FEATURES

SMALL_IMAGE: Final = "nvg-small-image"
ExtractorKind = Literal["nvg-small-image", "inception-v3-compat", "efficientnet-lite0", "dinov2-vitl14"]
FID = "FID"


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What is known of an extractor before it is built.

    Attributes:
        layers: which the scores use, as they stand in the protocol: `feature_layer` (Fréchet distance, precision,
            recall), `logit_layer` (Inception score) and `spatial_layer` (sFID) of those that have them.
        arrays: of a chunk of features, in order of the layers.
        num_features: F.
        distance: what the Fréchet distance of these features is called.
        input_side: of images, where the network is not one that takes any, in pixels.
    """

    layers: dict[str, str]
    arrays: tuple[str, ...]
    num_features: int
    distance: str = FID
    input_side: int | None = None

    @property
    def distance_key(self) -> str:
        """The key of that score: `fid`, or `fd` where it is not called FID."""
        return "fid" if self.distance == FID else "fd"


_KINDS = {
    SMALL_IMAGE: _Kind(
        layers={"feature_layer": "penultimate", "logit_layer": "logits"},
        arrays=("features_BF", "logits_BV"),
        num_features=FeatureNetworkConfig.num_features,
    ),
    INCEPTION: _Kind(
        layers={
            "feature_layer": POOL_LAYER,
            "logit_layer": LOGIT_LAYER,
            "spatial_layer": f"mixed_6/conv, channels 0-{SPATIAL_CHANNELS - 1}",
        },
        arrays=("features_BF", "logits_BV", "spatial_BG"),
        num_features=NUM_POOL_FEATURES,
    ),
    EFFICIENTNET: _Kind(
        layers={"feature_layer": "pooled output of the last convolution"},
        arrays=("features_BF",),
        num_features=NUM_EFFICIENTNET_FEATURES,
        distance="FD (EfficientNet-Lite0)",
        input_side=EFFICIENTNET_SIDE,
    ),
    DINOV2: _Kind(
        layers={"feature_layer": "normalised class token"},
        arrays=("features_BF",),
        num_features=NUM_DINOV2_FEATURES,
        distance="FD (DINOv2)",
        input_side=DINOV2_SIDE,
    ),
}

_registry_lock = threading.Lock()
_LARGEST_FEATURE_SIDE = 64


class _SmallImageExtractor(FeatureExtractorBase):
    """The small image network in torch-fidelity's clothes.

    Layers: `penultimate` (FID, precision, recall) and `logits` (Inception score). Input is uint8
    (B, 1 or 3, H, W) of any side, so torch-fidelity's own RGB data sets work as well.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise UserError(f"{SMALL_IMAGE}: found no weights path, expected the folder the network was saved in")
        self.network = load_feature_network(Path(feature_extractor_weights_path))

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the requested layers of a uint8 tensor (B, 1 or 3, H, W): float32, in the order of the request.

        Raises:
            ValueError: not such a tensor.
        """
        if input.dtype != torch.uint8 or input.ndim != 4 or input.shape[1] not in (1, 3):
            raise ValueError(f"images: found {input.dtype} {tuple(input.shape)}, expected uint8 (B, 1 or 3, H, W)")
        features, logits = self.network(self.network.prepare(input))
        layers = {"penultimate": features, "logits": logits}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers."""
        return "penultimate", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The layer a metric uses unless told otherwise."""
        return "logits" if metric == "isc" else "penultimate"

    @staticmethod
    def can_be_compiled() -> bool:
        """The network resizes by the shape of its input, so it is left uncompiled."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> torch.Tensor:
        """An input of the right kind."""
        return torch.zeros((1, 3, 16, 16), dtype=torch.uint8)


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    """Which extractor, and the file or folder of its weights; small enough to send to every worker.

    Attributes:
        kind: which network.
        path: the weight file, or the folder of a small image network.
    """

    kind: ExtractorKind
    path: str

    def __post_init__(self) -> None:
        check_fields(self, "extractor")

    @property
    def weights_file(self) -> Path:
        """The file whose hash stands in the protocol."""
        path = Path(self.path)
        return path / f"{WEIGHTS_NAME}.safetensors" if self.kind == SMALL_IMAGE else path

    @property
    def num_features(self) -> int:
        """F of its features, a small image network's as it is by default."""
        return _KINDS[self.kind].num_features

    @property
    def distance(self) -> str:
        """What the Fréchet distance of its features is called: FID is that of Inception, or of one's own network."""
        return _KINDS[self.kind].distance

    @property
    def distance_key(self) -> str:
        """The key of that score: `fid`, or `fd` where it is not called FID."""
        return _KINDS[self.kind].distance_key

    def identity(self) -> dict[str, Any]:
        """What decides its features, as JSON values; raises as `check` does."""
        side = _KINDS[self.kind].input_side
        return {"kind": self.kind, "sha256": self.weights_hash(), **({} if side is None else {"input_side": side})}

    def description(self) -> dict[str, Any]:
        """Its identity, its layers and the name of its distance where that is not FID, for protocols."""
        named = {} if self.distance == FID else {"distance": self.distance}
        return {**self.identity(), **layers_of(self.kind), **named}

    def weights_hash(self) -> str:
        """SHA-256 of the weights file, as hex; raises as `check` does."""
        self.check()
        return file_hash(self.weights_file)

    def check(self) -> None:
        """Make sure the weights are there.

        Raises:
            UserError: says which file is missing, where it can be had and where to put it.
        """
        if self.kind == INCEPTION:
            check_inception_file(self.weights_file)
        elif self.kind == EFFICIENTNET:
            find_efficientnet_weights(self.path, key="extractor_path", without=another_way("extractor_path"))
        elif self.kind == DINOV2:
            check_dinov2_file(self.path)
        elif not self.weights_file.is_file():
            raise UserError(
                f"Feature network: found no file {self.weights_file}. Expected a folder written by an evaluation "
                "run; set extractor_path to one, or leave it empty to train the network anew (seconds)."
            )


def register_extractors() -> None:
    """Make `nvg-small-image` known to torch-fidelity in this process; any number of calls is fine."""
    with _registry_lock:
        if SMALL_IMAGE not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(SMALL_IMAGE, _SmallImageExtractor)


def layers_of(kind: str) -> dict[str, str]:
    """Which layers the scores use, as they stand in the protocol of every result; see `_Kind`."""
    return _KINDS[kind].layers


def scores_of(kind: str) -> tuple[str, ...]:
    """Keys of the scores that compare features of a kind with those of other images."""
    known = _KINDS[kind]
    inception_score = ("inception_score",) if "logit_layer" in known.layers else ()
    return (known.distance_key, "precision", "recall", *inception_score)


def build_extractor(spec: ExtractorSpec, *, device: str = "cpu") -> nn.Module:
    """Build an extractor from its weights, in evaluation mode, giving the layers of `layers_of`.

    Raises:
        UserError: the weights are missing, are not weights, or belong to another network.
    """
    spec.check()
    if spec.kind == INCEPTION:
        return load_inception(Path(spec.path)).to(device)
    if spec.kind == EFFICIENTNET:
        return load_efficientnet(spec.path).to(device)
    if spec.kind == DINOV2:
        return load_dinov2(spec.path).to(device)
    register_extractors()
    layers = list(layers_of(spec.kind).values())
    extractor = create_feature_extractor(
        spec.kind, layers, cuda=False, feature_extractor_weights_path=spec.path, verbose=False
    )
    return extractor.to(device)


def extract(
    extractor: nn.Module,
    images_BHWC: ImageArray,
    *,
    batch_size: int = 64,
    on_images: Callable[[int], None] | None = None,
) -> Features:
    """Compute the layers of an extractor for images, in true fp32 whatever samples were drawn in.

    Args:
        extractor: from `build_extractor`.
        images_BHWC: uint8 images, grey or colour; grey ones are repeated to three channels for Inception.
        batch_size: images per pass.
        on_images: called with the number of images after each pass, for a progress bar.

    Returns:
        The arrays; logits and spatial ones only of an extractor that has these layers.

    Raises:
        ValueError: not such images.
    """
    check_images(images_BHWC, "images")
    device = next(extractor.parameters()).device
    layers: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode(), without_tf32():
        for start in range(0, len(images_BHWC), batch_size):
            batch = torch.from_numpy(images_BHWC[start : start + batch_size].copy()).permute(0, 3, 1, 2)
            if isinstance(extractor, InceptionExtractor) and batch.shape[1] == 1:
                batch = batch.expand(-1, 3, -1, -1)
            layers.append(tuple(layer.float().cpu() for layer in extractor(batch.contiguous().to(device))))
            if on_images is not None:
                on_images(len(batch))
    return Features(*(torch.cat(parts).numpy() for parts in zip(*layers, strict=True)))


def feature_names(kind: str) -> tuple[str, ...]:
    """Names of the arrays of `feature_arrays` by an extractor of a kind, in order."""
    return _KINDS[kind].arrays


def feature_arrays(extractor: nn.Module, images_BHWC: ImageArray, *, batch_size: int) -> dict[str, NDArray[np.float32]]:
    """What a chunk holds of images: the arrays of `feature_names` of the extractor's kind; see `extract`."""
    layers = zip(_KINDS[INCEPTION].arrays, extract(extractor, images_BHWC, batch_size=batch_size), strict=True)
    return {name: layer for name, layer in layers if layer is not None}


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Where features come from, and where an evaluation leaves its files.

    Attributes:
        output: folder for results, chunks and the feature network.
        extractor_kind: which network.
        extractor_path: the weight file, or the folder of a feature network. Empty takes EfficientNet's file from the
            installed package; a feature network is trained on the training images and kept in the output folder.
        feature_training: schedule of that training.
    """

    output: str = ""
    extractor_kind: ExtractorKind = SMALL_IMAGE
    extractor_path: str = ""
    feature_training: FeatureTrainingConfig = field(default_factory=FeatureTrainingConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.extractor_kind in (INCEPTION, DINOV2) and not self.extractor_path:
            name = "Inception's" if self.extractor_kind == INCEPTION else "DINOv2's"
            raise refuse("extractor_path", "", f"the file of {name} weights", "set extractor_path")


def given_extractor(config: ExtractorConfig) -> ExtractorSpec | None:
    """The extractor whose weights the configuration names; None where a feature network has to be trained.

    Raises:
        UserError: the weights are missing.
    """
    path = config.extractor_path
    if config.extractor_kind == EFFICIENTNET:
        key = "extractor_path"
        path = str(find_efficientnet_weights(path, key=key, without=another_way(key)))
    if not path:
        return None
    spec = ExtractorSpec(kind=config.extractor_kind, path=path)
    spec.check()
    return spec


def trained_extractor(config: ExtractorConfig, images: ImageSet, num_classes: int) -> ExtractorSpec:
    """A feature network trained on images, or the one an earlier run trained on them; kept in the output folder."""
    side, channels = images.images.shape[1], images.images.shape[3]
    network_config = FeatureNetworkConfig(
        image_size=min(side, _LARGEST_FEATURE_SIDE), image_channels=channels, num_classes=num_classes
    )
    what = hashlib.sha256(repr((network_config, config.feature_training)).encode())
    what.update(np.ascontiguousarray(images.images).tobytes())
    what.update(np.ascontiguousarray(images.labels, dtype=np.int64).tobytes())
    folder = Path(config.output) / "feature-network" / what.hexdigest()[:16]
    spec = ExtractorSpec(kind=SMALL_IMAGE, path=str(folder.resolve()))
    if not (spec.weights_file.is_file() and (folder / "config.json").is_file()):
        training = config.feature_training
        save_feature_network(
            train_feature_network(images.images, images.labels, config=network_config, training=training), folder
        )
    return spec
