"""Inception as every published FID uses it: torch-fidelity's port of the 2015 graph, and the layer sFID looks at.

The graph resizes inside, by TensorFlow 1's bilinear rule, to 299 pixels. Layers: `2048` (pool_3: FID, precision,
recall), `logits_unbiased` (softmax layer without its bias: Inception score) and the first seven channels of
TensorFlow's `mixed_6/conv`, which the port calls `Mixed_6d.branch1x1`, after its ReLU: 17×17 positions, flattened by
row, column, channel, as `mu_s` of ADM's reference files is.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from nvg.errors import UserError

INCEPTION: Final = "inception-v3-compat"
POOL_LAYER, LOGIT_LAYER = "2048", "logits_unbiased"
NUM_POOL_FEATURES = 2048
SPATIAL_SIDE, SPATIAL_CHANNELS = 17, 7
NUM_SPATIAL_FEATURES = SPATIAL_SIDE * SPATIAL_SIDE * SPATIAL_CHANNELS
FILE_NAME = URL_INCEPTION_V3.rsplit("/", 1)[1]


class InceptionExtractor(FeatureExtractorInceptionV3):
    """The port with the weights it was initialised with; `load_inception` fills in those of a file."""

    def __init__(self) -> None:
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        self._loaded = False
        super().__init__(INCEPTION, [POOL_LAYER, LOGIT_LAYER], feature_extractor_weights_path=nothing)
        self._loaded = True
        self._spatial: Tensor | None = None
        self.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def load_state_dict(self, *given: Any, **options: Any) -> Any:
        """As of any module; what the parent's constructor loads (nothing) is passed over."""
        return super().load_state_dict(*given, **options) if self._loaded else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute all three layers, without TF32.

        Args:
            x: uint8 (B, 3, H, W), any side.

        Returns:
            Float32 (B, 2048), (B, 1008) and (B, 2023).
        """
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            pool_BF, logits_BV = super().forward(x)
        spatial_BCHW, self._spatial = self._spatial, None
        assert spatial_BCHW is not None
        return pool_BF, logits_BV, spatial_BCHW.permute(0, 2, 3, 1).flatten(1).float()

    def _keep_spatial(self, module: torch.nn.Module, given: Any, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].clone()


def load_inception(path: Path) -> InceptionExtractor:
    """Build the network from torch-fidelity's weight file, without running anything pickled in it.

    Returns:
        The extractor in evaluation mode.

    Raises:
        UserError: the file is missing, cannot be read, or holds other tensors.
    """
    check_inception_file(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"Inception weights: {path} cannot be read as a file of tensors ({type(error).__name__}). "
            f"Expected the file {FILE_NAME}; download it again from {URL_INCEPTION_V3}."
        ) from error
    extractor = InceptionExtractor()
    own = extractor.state_dict()
    found, expected = _shapes(tensors), _shapes(own)
    if found != expected:
        odd = min(name for name in set(found) | set(expected) if found.get(name) != expected.get(name))
        raise UserError(
            f"Inception weights: {path} holds other tensors than torch-fidelity's Inception, first difference "
            f"{odd!r}: found {found.get(odd)}, expected {expected.get(odd)}. Expected the file {FILE_NAME} from "
            f"{URL_INCEPTION_V3}; torchvision's Inception is another network."
        )
    extractor.load_state_dict({**own, **tensors})
    return extractor.eval().requires_grad_(False)


def check_inception_file(path: Path) -> None:
    """Make sure that the file is there.

    Raises:
        UserError: says which file is missing, where it can be had and where to put it.
    """
    if not path.is_file():
        raise UserError(
            f"Inception weights: found no file {path}. Expected the file {FILE_NAME} (about 95 MB) of torch-fidelity's "
            f"release v0.2.0. Download it from {URL_INCEPTION_V3} and set extractor_path to where you put it."
        )


def _shapes(tensors: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes, without the batch counters that older files leave out."""
    if not isinstance(tensors, dict):
        return {}
    named = {name: value for name, value in tensors.items() if not str(name).endswith("num_batches_tracked")}
    return {str(name): tuple(value.shape) if isinstance(value, Tensor) else () for name, value in named.items()}
