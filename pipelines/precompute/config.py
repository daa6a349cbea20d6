"""The typed description of a precompute job."""

from dataclasses import dataclass, field
from typing import Literal

from cluster.session import SessionConfig
from nvg.bounds import at_least, between, check_fields, refuse
from nvg.precision import resolve_precision
from nvg.records import DINOV2, EFFICIENTNET, RepaTarget
from pipelines.sources.config import SourceConfig


@dataclass(frozen=True, kw_only=True)
class RepaStoreConfig:
    """What is stored beside the records for aligning hidden tokens with those of a frozen network.

    Attributes:
        store: "nothing", "features" (the network's tokens as int8) or "jpeg" (the view itself, from which they can be
            computed in training; about 40 kB at 256 pixels).
        target: the network (features): DINOv2's patch tokens, 198 kB a view, or a feature map of EfficientNet-Lite0 on
            the latent's grid, 116 bytes a position.
        dinov2_weights: file of DINOv2's ViT-B/14 (features).
        efficientnet_weights: file of EfficientNet-Lite0 (features); empty takes that of the installed package.
        jpeg_quality: 1 to 95 (jpeg).

    DEVIATION: the target of REPA is of a view's JPEG or of int8 features with a scale for each token; the release
    computes it from the pixels of each epoch's crop.
    """

    store: Literal["nothing", "features", "jpeg"] = "nothing"
    target: RepaTarget = DINOV2
    dinov2_weights: str = ""
    efficientnet_weights: str = ""
    jpeg_quality: int = between(1, 95, 95)

    def __post_init__(self) -> None:
        check_fields(self, "repa")
        if self.store == "features" and self.target == DINOV2 and not self.dinov2_weights:
            advice = f"change repa.dinov2_weights, or set repa.target={EFFICIENTNET}"
            raise refuse("repa.dinov2_weights", self.dinov2_weights, "the file of DINOv2's ViT-B/14", advice)

    @property
    def plan(self) -> str:
        """What is stored and which content trainings it is for, for a dry run: one line."""
        trains = "what loss.repa_weight of a content training needs"
        if self.store == "features":
            of = "DINOv2's features of each view beside its record (198 kB a view)"
            if self.target == EFFICIENTNET:
                of = "EfficientNet-Lite0's features of each view beside its record (116 bytes a position of the latent)"
            return f"store {of}: {trains}, with loss.repa_target={self.target}"
        if self.store == "jpeg":
            return (
                f"store each view as a JPEG beside its record (about 40 kB a view at 256 pixels): {trains}, "
                f"beside dinov2_weights=FILE, or with loss.repa_target={EFFICIENTNET}"
            )
        return (
            "store nothing beside the records: content trainings will need loss.repa_weight=0 (the published presets "
            "have 0.5); for them set repa.store=jpeg (about 40 kB a view at 256 pixels) or features (198 kB)"
        )


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Which images become records, with which tokenizer, and how the work is divided.

    Attributes:
        source: the images and their views.
        tokenizer: tokenizer run, checkpoint or weight folder; every actor must be able to read it.
        tokenizer_weights: name of the weights in that folder, "ema" or "model".
        output: folder of the data set; every actor must be able to write to it.
        num_actors: actors that encode at the same time.
        cpus_per_actor: logical CPUs Ray reserves for each.
        gpus_per_actor: GPUs Ray reserves for each; the encoder runs on one where this is above 0.
        threads_per_actor: threads of the encoder and of image decoding in each actor.
        precision: "fp32", or "tf32", which a GPU computes several times as fast: some ids and maps become others, since
            they are decided by thresholds. Recorded on a GPU; a CPU has fp32 alone.
        batch_size: image views encoded at once. Changes rounding, so it is recorded.
        images_per_unit: images per unit of work, what is redone at most after a kill.
        shard_bytes: largest size of one MDS shard, whose offsets have 32 bits.
        max_attempts: how often a unit is tried before it is given up and named.
        encode_changed: encode the units of images that have changed again in a finished data set; otherwise they are
            named, since trainings may go on from these records.
        allow_partial: merge without the units given up, which the manifest then names; a run without it does them.
        seed: order of the records.
        repa: what is stored beside the records.
        session: the Ray cluster to start or join.

    DEVIATION: by default the EMA weights of the tokenizer encode (`tokenizer_weights`); the released generators were
    trained on its bare ones.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    tokenizer: str = ""
    tokenizer_weights: str = "ema"
    output: str = ""
    num_actors: int = at_least(1, 1)
    cpus_per_actor: float = at_least(0, 1.0)
    gpus_per_actor: float = at_least(0, 0.0)
    threads_per_actor: int = at_least(1, 1)
    precision: Literal["fp32", "tf32"] = "fp32"
    batch_size: int = at_least(1, 64)
    images_per_unit: int = at_least(1, 8192)
    shard_bytes: int = between(1 << 12, (1 << 32) - 1, 1 << 26)
    max_attempts: int = at_least(1, 3)
    encode_changed: bool = False
    allow_partial: bool = False
    seed: int = 0
    repa: RepaStoreConfig = field(default_factory=RepaStoreConfig)
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        resolve_precision(self.precision, self.device)
        for name in ("tokenizer", "output", "tokenizer_weights"):
            if not getattr(self, name):
                raise refuse(name, "", f"a {'name' if 'weights' in name else 'folder'}")
        self.source.keep_apart("output", self.output)
        if self.source.view_policy == "fresh_crop":
            raise refuse(
                "source.view_policy",
                self.source.view_policy,
                "views that stay the same, since records are stored",
                "set view_policy to 'crop' and num_views",
            )

    @property
    def device(self) -> str:
        """Where the encoder runs."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"
