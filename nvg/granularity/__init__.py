"""Stage arithmetic, shared by quantiser, precompute, training and sampling.

stages               structure maps, their embeddings, balanced splits; which tokens a stage has: `StageLayout`
clustering           a latent becomes a balanced binary hierarchy: `cluster_latents`
compiled_clustering  the same for one CPU thread, compiled by numba
triton_clustering    the same on a GPU without a wait
pooling              between positions and tokens: `cluster_mean`, `place`, and of all stages at once
"""

from nvg.granularity.clustering import cluster_halves, cluster_latents, greedy_pairs, require_clustered
from nvg.granularity.pooling import cluster_mean, cluster_means, counted_mean, place, place_all
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
    "cluster_means",
    "counted_mean",
    "greedy_pairs",
    "place",
    "place_all",
    "raster_split",
    "require_clustered",
    "spatial_structure",
    "stage_map",
    "structure_embedding",
    "structure_from_embedding",
]
