"""The typed description of a precompute job."""

from dataclasses import dataclass, field

from cluster.session import SessionConfig
from pipelines.sources.config import SourceConfig

REPA_STORES = ("nothing", "features", "jpeg")


@dataclass(frozen=True, kw_only=True)
class RepaStoreConfig:
    """What is stored beside the records for aligning hidden tokens with DINOv2.

    Attributes:
        store: "nothing", "features" (DINOv2's patch tokens as int8, 198 kB a view) or "jpeg" (the view itself, from
            which they can be computed in training; about 40 kB at 256 pixels).
        dinov2_weights: File of DINOv2's ViT-B/14 (features).
        jpeg_quality: 1 to 95 (jpeg).

    Raises:
        ValueError: A value is impossible; the message names the key.
    """

    store: str = "nothing"
    dinov2_weights: str = ""
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        if self.store not in REPA_STORES:
            raise ValueError(f"repa.store: found {self.store!r}, expected one of {', '.join(REPA_STORES)}")
        if self.store == "features" and not self.dinov2_weights:
            raise ValueError("repa.dinov2_weights: found nothing, expected the file of DINOv2's ViT-B/14")
        if not 1 <= self.jpeg_quality <= 95:
            raise ValueError(f"repa.jpeg_quality: found {self.jpeg_quality}, expected 1 to 95")


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Which images become records, with which tokenizer, and how the work is divided.

    Attributes:
        source: The images and their views.
        tokenizer: Tokenizer run, checkpoint or weight folder; every actor must be able to read it.
        tokenizer_weights: Name of the weights in that folder, "ema" or "model".
        output: Folder of the data set; every actor must be able to write to it.
        num_actors: Actors that encode at the same time.
        cpus_per_actor: Logical CPUs Ray reserves for each.
        gpus_per_actor: GPUs Ray reserves for each; the encoder runs on one where this is above 0.
        threads_per_actor: Threads of the encoder and of image decoding in each actor.
        batch_size: Image views encoded at once. Changes rounding, so it is recorded.
        images_per_unit: Images per unit of work, what is redone at most after a kill.
        shard_bytes: Largest size of one MDS shard.
        max_attempts: How often a unit is tried before it is given up and named.
        allow_partial: Merge without the units given up, which the manifest then names; a run without it does them.
        seed: Order of the records.
        repa: What is stored beside the records.
        session: The Ray cluster to start or join.

    Raises:
        ValueError: A value is impossible; the message names the key.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    tokenizer: str = ""
    tokenizer_weights: str = "ema"
    output: str = ""
    num_actors: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    threads_per_actor: int = 1
    batch_size: int = 64
    images_per_unit: int = 8192
    shard_bytes: int = 1 << 26
    max_attempts: int = 3
    allow_partial: bool = False
    seed: int = 0
    repa: RepaStoreConfig = field(default_factory=RepaStoreConfig)
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        for name in ("tokenizer", "output", "tokenizer_weights"):
            if not getattr(self, name):
                raise ValueError(f"{name}: found nothing, expected a {'name' if 'weights' in name else 'folder'}")
        if self.source.view_policy == "fresh_crop":
            raise ValueError(
                "source.view_policy: found 'fresh_crop', whose views are never the same again; records are stored, "
                "set view_policy to 'crop' and num_views"
            )
        for name in ("num_actors", "threads_per_actor", "batch_size", "images_per_unit", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        for name in ("cpus_per_actor", "gpus_per_actor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 or more")
        if not 1 << 12 <= self.shard_bytes < 1 << 32:
            raise ValueError(f"shard_bytes: found {self.shard_bytes}, expected 4096 to 2^32 - 1 (MDS offsets)")

    @property
    def device(self) -> str:
        """Where the encoder runs."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"
