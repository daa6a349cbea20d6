"""From checkpoints to image bytes: what a pool worker runs for every batch of sample indices.

A spec is small, can be sent to a worker and says what it is (hashes, not paths), so that the pool can name its results
after everything that can change them.
Shapes: labels_B int64, sample_indices_B int64, images_BHWC uint8, canvases_BSLC float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nvg.bounds import at_least, check_fields, refuse
from nvg.checkpoints import load_network, weights_hash
from nvg.errors import UserError
from nvg.granularity import spatial_structure
from nvg.models import ContentGenerator, StructureGenerator
from nvg.pixels import ImageArray, to_uint8
from nvg.precision import Precision, resolve_precision, settle_precision
from nvg.sampling import Given, SampledSequence, SamplingConfig, sample
from nvg.tokenizer import Tokenizer
from nvg.tokenizer.tokenizer import SPATIAL

_ALWAYS_SO = ("structure_guidance_at", "last_stage")  # left out: samples drawn before there was a choice stay known


class Sampler(Protocol):
    """Draws images for labels; sample n depends on the seed and its index alone."""

    def draw(self, labels_B: Tensor, sample_indices_B: Tensor) -> ImageArray:
        """Draw one batch: uint8 images (B, H, W, C) of the classes asked for, for int64 indices in the whole set."""
        ...


class SamplerSpec(Protocol):
    """What a worker needs to build a sampler."""

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that decides which images come out, as JSON values: hashes, settings, seed."""
        ...

    def build(self, device: str) -> Sampler:
        """Load the networks onto a device."""
        ...


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """Tokenizer and both generators on disk, and how to draw from them.

    Attributes:
        tokenizer: folder of the tokenizer's weights.
        content: folder of the content generator's weights.
        structure: folder of the structure generator's weights; empty for a tokenizer of spatial structure, whose
            maps are known.
        weights: which weights of the generators are read: `ema` or `model`.
        tokenizer_weights: which weights of the tokenizer; the ones the training records were made with.
        num_classes: classes the generators know.
        sampling: guidance, top-p, flow steps.
        seed: seed of all samples.
        rounding: see `nvg.pixels.to_uint8`.
        precision: see `nvg.precision`; with bf16 canvas, flow state, logits and decoder stay fp32.
        compile: True compiles the generators' blocks, once for all; it moves rounding.
    """

    tokenizer: str
    content: str
    structure: str
    weights: str = "ema"
    tokenizer_weights: str = "ema"
    num_classes: int = at_least(1)
    sampling: SamplingConfig
    seed: int = 0
    rounding: Literal["release", "round"] = "release"
    precision: Precision = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("tokenizer", "content"):
            if not getattr(self, name):
                raise refuse(name, "", "the folder of its weights")

    def identity(self) -> dict[str, Any]:
        """Hashes of the weight files and every setting of the draw.

        Raises:
            UserError: a weight file is missing.
        """
        return {
            "tokenizer_sha256": _hash("tokenizer", self.tokenizer, self.tokenizer_weights),
            "content_sha256": _hash("content", self.content, self.weights),
            "structure_sha256": _hash("structure", self.structure, self.weights) if self.structure else None,
            "weights": self.weights,
            "tokenizer_weights": self.tokenizer_weights,
            "num_classes": self.num_classes,
            "sampling": {name: value for name, value in asdict(self.sampling).items() if (name, value) != _ALWAYS_SO},
            "seed": self.seed,
            "rounding": self.rounding,
            **({} if self.precision == "fp32" else {"precision": self.precision}),
            **({"compile": True} if self.compile else {}),
        }

    @property
    def computed(self) -> dict[str, Any]:
        """How the numbers are computed, for a protocol; the identity leaves out what was always so."""
        return {"precision": self.precision, "compile": self.compile}

    def check(self) -> None:
        """Make sure that there is a structure generator exactly where the tokenizer needs one.

        Raises:
            UserError: it is missing or too many, or the tokenizer's weights are missing.
        """
        _check_structure(self, load_network(Tokenizer, self.tokenizer, name=self.tokenizer_weights))

    def build(self, device: str = "cpu") -> GeneratorSampler:
        """Load the networks.

        Raises:
            ValueError: weights are missing, of another kind, or do not belong together.
        """
        return GeneratorSampler(self, device)


class GeneratorSampler:
    """Algorithm 2 and the decoder, in the precision of the spec: a process draws in one."""

    def __init__(self, spec: GeneratorSpec, device: str) -> None:
        settle_precision(resolve_precision(spec.precision, device), device)
        self.spec = spec
        self.device = torch.device(device)
        self.tokenizer = load_network(Tokenizer, spec.tokenizer, name=spec.tokenizer_weights).to(self.device)
        self.content = load_network(ContentGenerator, spec.content, name=spec.weights).to(self.device)
        _check_structure(spec, self.tokenizer)
        self.structure = None
        if spec.structure:
            self.structure = load_network(StructureGenerator, spec.structure, name=spec.weights).to(self.device)
        for network in (self.content, self.structure):
            if network is not None and spec.precision == "bf16":
                network.trunk.matmul_dtype = torch.bfloat16
            if network is not None and spec.compile:
                network.trunk.compile_blocks()
        known = self.content.config.num_classes
        if known != spec.num_classes:
            raise UserError(
                f"num_classes is {spec.num_classes} in the data; expected {known}, on which the content generator in "
                f"{spec.content} was trained; evaluate with its data set"
            )

    @torch.inference_mode()
    def draw_sequences(self, labels_B: Tensor, sample_indices_B: Tensor, given: Given | None = None) -> SampledSequence:
        """Draw visual granularity sequences: ids, maps and the canvas after every stage.

        Args:
            labels_B: int64 classes asked for.
            sample_indices_B: int64 indices in the whole set.
            given: prefix that is fixed instead of drawn; without a structure generator its maps are the spatial ones.

        Raises:
            UserError: the blocks cannot be compiled here.
        """
        if self.structure is None:
            layout = self.tokenizer.dequantizer.layout
            maps_BL = spatial_structure(layout.num_positions).repeat(len(labels_B), 1)
            given = replace(given or Given(), structure_BL=maps_BL, num_splits=layout.last_stage)
        return sample(
            content=self.content,
            structure=self.structure,
            dequantizer=self.tokenizer.dequantizer,
            labels_B=labels_B,
            sample_indices_B=sample_indices_B,
            seed=self.spec.seed,
            config=self.spec.sampling,
            given=given,
        )

    @torch.inference_mode()
    def draw(self, labels_B: Tensor, sample_indices_B: Tensor) -> ImageArray:
        """Draw images; see `Sampler.draw`.

        Raises:
            UserError: values that are not finite; names the samples.
        """
        final_BLC = self.draw_sequences(labels_B, sample_indices_B).canvases_BSLC[:, -1]
        images_BCHW = self.tokenizer.decode(final_BLC)
        bad_B = ~images_BCHW.isfinite().flatten(1).all(dim=1).cpu()
        if bool(bad_B.any()):
            raise UserError(
                f"samples {sample_indices_B[bad_B][:5].tolist()}: found values that are not finite; the tokenizer or "
                f"the generators in {self.spec.content} and {self.spec.structure} have diverged, give older ones"
            )
        return to_uint8(images_BCHW, self.spec.rounding)


def _check_structure(spec: GeneratorSpec, tokenizer: Tokenizer) -> None:
    kind = tokenizer.config.structure
    if (kind == SPATIAL) == bool(spec.structure):
        advice = "its maps are known: leave the generator out" if spec.structure else "give its generator's weights"
        raise UserError(
            f"structure: found {spec.structure or 'nothing'}, the tokenizer in {spec.tokenizer} has {kind} structure; "
            f"{advice}"
        )


def _hash(key: str, folder: str, weights: str) -> str:
    file = Path(folder) / f"{weights}.safetensors"
    if not file.is_file():
        raise UserError(f"{key}: found no file {file}, expected the weights of a finished training; change {key}")
    return weights_hash(folder, weights)
