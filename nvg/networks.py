"""The networks of a model on one device: loaded, held against one another, drawn from, decoded with.

Every sample of this project is drawn by `Networks.draw`: those of evaluations, of `nvg sample`, of trainings, of the
page. `nvg.model` knows the rest of a model: its classes by name, and where it comes from and goes to.
Legend: B samples, L positions, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.folders import Parts
from nvg.granularity import spatial_structure
from nvg.models import ContentGenerator, StructureGenerator
from nvg.pixels import ImageArray, Rounding, to_uint8
from nvg.precision import Precision, settle_precision
from nvg.sampling import Given, SampledSequence, SamplingConfig, Watch, sample
from nvg.tokenizer import Tokenizer
from nvg.tokenizer.tokenizer import SPATIAL


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Networks:
    """Tokenizer and both generators, on one device and in evaluation mode, and how they are sampled.

    Attributes:
        tokenizer, content: the networks.
        structure: likewise; None where the tokenizer's structure is spatial, the same for every image.
        sampling: guidance, top-p, flow steps.
        rounding: from network output to bytes, see `nvg.pixels.to_uint8`.
        parts: the folders they were loaded from; None for networks put together in memory.
    """

    tokenizer: Tokenizer
    content: ContentGenerator
    structure: StructureGenerator | None
    sampling: SamplingConfig
    rounding: Rounding = "round"
    parts: Parts | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.tokenizer.dequantizer.codebook.device

    @property
    def num_stages(self) -> int:
        """K + 1: stage 0 paints one token, the last one a token for each position of the latent."""
        return self.tokenizer.dequantizer.layout.num_stages

    def draw(
        self,
        labels_B: Tensor,
        sample_indices_B: Tensor,
        *,
        seed: int,
        settings: SamplingConfig | None = None,
        given: Given | None = None,
        watch: Watch | None = None,
    ) -> SampledSequence:
        """Draw sequences: ids, maps and the canvas after every stage, on the model's device.

        Args:
            labels_B: int64 classes asked for.
            sample_indices_B: int64 indices among all samples of the seed.
            seed: 0 <= seed < 2^63.
            settings: None takes `sampling`.
            given: what is fixed instead of drawn; where structure is spatial its maps are the spatial ones.
            watch: sees copies of canvas and map after every stage, see `nvg.sampling.sample`.

        Raises:
            UserError: a class does not exist, or the networks or what is given do not fit.

        Paper: Alg. 2, §3.2
        """
        if self.structure is None and self.tokenizer.config.structure == SPATIAL:
            layout = self.tokenizer.dequantizer.layout
            maps_BL = spatial_structure(layout.num_positions).repeat(len(labels_B), 1)
            given = replace(given or Given(), structure_BL=maps_BL, num_splits=layout.last_stage)
        return sample(
            content=self.content,
            structure=self.structure,
            dequantizer=self.tokenizer.dequantizer,
            labels_B=labels_B,
            sample_indices_B=sample_indices_B,
            seed=seed,
            config=settings or self.sampling,
            given=given,
            watch=watch,
        )

    def decode(self, canvas_BLC: Tensor, sample_indices_B: NDArray[np.int64] | Tensor | None = None) -> ImageArray:
        """Canvases of any stage as images.

        Args:
            canvas_BLC: float32, on any device.
            sample_indices_B: whose they are, for the message.

        Returns:
            uint8 (B, H, W, channels).

        Raises:
            UserError: values that are not finite; names the samples.
        """
        with torch.inference_mode():
            images_BCHW = self.tokenizer.decode(canvas_BLC.to(self.device))
        bad_B = ~images_BCHW.isfinite().flatten(1).all(dim=1).cpu().numpy()
        if bad_B.any():
            numbers = np.arange(len(bad_B)) if sample_indices_B is None else np.asarray(sample_indices_B)
            raise UserError(
                f"samples {numbers[bad_B][:5].tolist()}: found values that are not finite; the tokenizer or the "
                f"generators{self._origin} have diverged, give older ones"
            )
        return to_uint8(images_BCHW, self.rounding)

    @property
    def _origin(self) -> str:
        return "" if self.parts is None else f" in {self.parts.content} and {self.parts.structure or 'none'}"


def load_networks(
    parts: Parts,
    *,
    sampling: SamplingConfig,
    device: str,
    precision: Precision,
    rounding: Rounding = "round",
    compile: bool = False,
) -> Networks:
    """Load networks that are known to fit onto a device; a process computes in one precision.

    Args:
        parts: their folders.
        sampling, rounding: see `Networks`.
        device: "cpu" or "cuda".
        precision: see `nvg.precision`.
        compile: True compiles the generators' blocks, once for all.

    Raises:
        UserError: weights are missing or damaged, or know another number of classes.
    """
    settle_precision(precision, device)
    tokenizer = load_network(Tokenizer, parts.tokenizer, name=parts.tokenizer_weights).to(device)
    content = load_network(ContentGenerator, parts.content, name=parts.weights).to(device)
    check_structure(parts, tokenizer)
    structure = None
    if parts.structure is not None:
        structure = load_network(StructureGenerator, parts.structure, name=parts.weights).to(device)
    for network in (content, structure):
        if network is not None and precision == "bf16":
            network.trunk.matmul_dtype = torch.bfloat16
        if network is not None and compile:
            network.trunk.compile_blocks()
    if content.config.num_classes != len(parts.class_names):
        raise UserError(
            f"num_classes is {len(parts.class_names)} in the data; expected {content.config.num_classes}, on which the "
            f"content generator in {parts.content} was trained; evaluate with its data set"
        )
    return Networks(
        tokenizer=tokenizer, content=content, structure=structure, sampling=sampling, rounding=rounding, parts=parts
    )


def check_structure(parts: Parts, tokenizer: Tokenizer) -> None:
    """Raises UserError unless there is a structure generator exactly where the tokenizer needs one."""
    kind = tokenizer.config.structure
    if (kind == SPATIAL) == (parts.structure is not None):
        advice = "its maps are known: leave the generator out" if parts.structure else "give its generator's weights"
        raise UserError(
            f"structure: found {parts.structure or 'nothing'}, the tokenizer in {parts.tokenizer} has {kind} "
            f"structure; {advice}"
        )
