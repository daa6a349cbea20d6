"""Stage arithmetic: structure maps, their embeddings, pooling per cluster and placing."""

from nvg.granularity.clustering import cluster_halves, cluster_latents, greedy_pairs
from nvg.granularity.pooling import cluster_mean, place
from nvg.granularity.stages import (
    StageLayout,
    balanced_split,
    check_structure,
    raster_split,
    spatial_structure,
    stage_map,
    structure_embedding,
    structure_from_embedding,
)

__all__ = [
    "StageLayout",
    "balanced_split",
    "check_structure",
    "cluster_halves",
    "cluster_latents",
    "cluster_mean",
    "greedy_pairs",
    "place",
    "raster_split",
    "spatial_structure",
    "stage_map",
    "structure_embedding",
    "structure_from_embedding",
]
