"""From checkpoints to image bytes: what a pool worker runs for every batch of sample indices.

A spec is small, can be sent to a worker and says what it is (hashes, not paths), so that the pool can name its results
after everything that can change them.
Shapes: labels_B int64, sample_indices_B int64, images_BHWC uint8, canvases_BSLC float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nvg.bounds import at_least, check_fields, refuse
from nvg.checkpoints import load_network, weights_hash
from nvg.errors import UserError
from nvg.folders import Parts
from nvg.networks import check_structure, load_networks
from nvg.pixels import ImageArray
from nvg.precision import Precision, resolve_precision
from nvg.sampling import Given, SampledSequence, SamplingConfig
from nvg.tokenizer import Tokenizer

# Left out: samples drawn before there was a choice stay known.
_ALWAYS_SO = {("structure_guidance_at", "last_stage"), ("edit_guidance", None), ("shared_noise", 0.0)}


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
            "sampling": {key: value for key, value in asdict(self.sampling).items() if (key, value) not in _ALWAYS_SO},
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
        check_structure(self.parts, load_network(Tokenizer, self.tokenizer, name=self.tokenizer_weights))

    @property
    def parts(self) -> Parts:
        """The networks, as a model is put together of them; classes are numbers here."""
        return Parts(
            folder=Path(self.content),
            tokenizer=Path(self.tokenizer),
            content=Path(self.content),
            structure=Path(self.structure) if self.structure else None,
            weights=self.weights,
            tokenizer_weights=self.tokenizer_weights,
            class_names=[str(label) for label in range(self.num_classes)],
        )

    def build(self, device: str = "cpu") -> GeneratorSampler:
        """Load the networks.

        Raises:
            ValueError: weights are missing, of another kind, or do not belong together.
        """
        return GeneratorSampler(self, device)


class GeneratorSampler:
    """A model in the precision of a spec, from which samples of its seed are drawn: a process draws in one."""

    def __init__(self, spec: GeneratorSpec, device: str) -> None:
        self.spec = spec
        self.networks = load_networks(
            spec.parts,
            sampling=spec.sampling,
            device=device,
            precision=resolve_precision(spec.precision, device),
            rounding=spec.rounding,
            compile=spec.compile,
        )
        self.device = torch.device(device)
        self.tokenizer, self.content, self.structure = (
            self.networks.tokenizer,
            self.networks.content,
            self.networks.structure,
        )

    @torch.inference_mode()
    def draw_sequences(self, labels_B: Tensor, sample_indices_B: Tensor, given: Given | None = None) -> SampledSequence:
        """Draw visual granularity sequences; see `Networks.draw`.

        Args:
            labels_B: int64 classes asked for.
            sample_indices_B: int64 indices in the whole set.
            given: prefix that is fixed instead of drawn.

        Raises:
            UserError: the blocks cannot be compiled here.
        """
        return self.networks.draw(labels_B, sample_indices_B, seed=self.spec.seed, given=given)

    @torch.inference_mode()
    def draw(self, labels_B: Tensor, sample_indices_B: Tensor) -> ImageArray:
        """Draw images; see `Sampler.draw`.

        Raises:
            UserError: values that are not finite; names the samples.
        """
        return self.networks.decode(
            self.draw_sequences(labels_B, sample_indices_B).canvases_BSLC[:, -1], sample_indices_B
        )


def _hash(key: str, folder: str, weights: str) -> str:
    file = Path(folder) / f"{weights}.safetensors"
    if not file.is_file():
        raise UserError(f"{key}: found no file {file}, expected the weights of a finished training; change {key}")
    return weights_hash(folder, weights)
