"""Does a sample follow the structure it was given? Its image is encoded again and clustered, map against map.

Labels mean nothing across images, so any parent's two children may be swapped before two maps are compared.
Legend: B samples, L positions, C latent channels, K last stage (log2 L), G given splits, M members of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.granularity import StageLayout, cluster_halves, cluster_latents, cluster_mean, stage_map
from nvg.pixels import ImageArray, to_model_range
from nvg.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Adherence:
    """Agreement with a given structure, mean over samples.

    Attributes:
        splits: of each given split, its parents as given; see `split_agreement`.
        maps: of each given stage's whole map; see `map_agreement`.
        explained: variance that each given stage's map explains; see `explained_share`.
        own_explained: that the image's own map of that stage explains, which is what is within reach.
        mean: over `splits`.
    """

    splits: list[float]
    maps: list[float]
    explained: list[float]
    own_explained: list[float]
    mean: float


def encode_images(tokenizer: Tokenizer, images_BHWC: ImageArray, *, batch_size: int = 256) -> Tensor:
    """Latents of images as the tokenizer clusters them, float32 (B, L, C).

    Raises:
        UserError: images of another size.
    """
    device = tokenizer.dequantizer.codebook.device
    with torch.inference_mode():
        parts = to_model_range(images_BHWC).split(batch_size)
        return torch.cat([tokenizer.encode(part.to(device)).cpu() for part in parts])


def measure(latent_BLC: Tensor, structure_BL: Tensor, num_splits: int) -> Adherence:
    """Agreement of images with the structures they were given.

    Args:
        latent_BLC: from `encode_images`.
        structure_BL: int64 finest map given to each.
        num_splits: G, how many of its splits were given.

    Returns:
        Means over the samples. The last split of a map is left out: it follows the raster order in every image.

    Paper: §3.2
    """
    splits_BG = split_agreement(latent_BLC, structure_BL, num_splits)
    found_BL, num_compared = cluster_latents(latent_BLC), splits_BG.shape[1]
    return Adherence(
        splits=splits_BG.mean(0).tolist(),
        maps=map_agreement(found_BL, structure_BL, num_compared).mean(0).tolist(),
        explained=explained_share(latent_BLC, structure_BL, num_compared).mean(0).tolist(),
        own_explained=explained_share(latent_BLC, found_BL, num_compared).mean(0).tolist(),
        mean=float(splits_BG.mean()),
    )


def split_agreement(latent_BLC: Tensor, structure_BL: Tensor, num_splits: int) -> Tensor:
    """Agreement of each split, its parents as given: the members of every parent are clustered and divided anew.

    For the first split that is the image's own map. Below it, a parent of the image's map need not be a parent of the
    given one, and their halves could not be compared; so each split is asked for inside the given parents, and an
    error above does not count again below. Chance is 0.60 for 16 members, 0.63 for 8 and 0.67 for 4.

    Args:
        latent_BLC: float32, of the images.
        structure_BL: int64 finest maps.
        num_splits: G, 1..K.

    Returns:
        float64 (B, min(G, K - 1)): share of positions on the given side, better label order of each parent, 1/2 to 1.

    Paper: §3.2
    """
    layout = StageLayout(structure_BL.shape[1])
    columns = []
    for stage in range(min(num_splits, layout.num_structure_stages)):
        order_BL = stage_map(structure_BL, stage, layout.last_stage).sort(dim=1, stable=True).indices
        members = order_BL.unflatten(1, (1 << stage, -1)).flatten(0, 1)
        row = torch.arange(len(members), device=members.device)[:, None] >> stage
        given = (structure_BL[row, members] >> (layout.last_stage - stage - 1)) & 1
        same = (cluster_halves(latent_BLC[row, members]) == given).double().mean(1)
        columns.append(torch.maximum(same, 1 - same).unflatten(0, (-1, 1 << stage)).mean(1))
    return torch.stack(columns, dim=1)


def map_agreement(found_BL: Tensor, structure_BL: Tensor, num_splits: int) -> Tensor:
    """Agreement of whole maps: share of positions in the same cluster, children swapped wherever that helps.

    Stricter than `split_agreement` below the first split, since an error above is carried down; there both are equal.

    Args:
        found_BL: int64 finest maps of the images.
        structure_BL: int64 finest maps given.
        num_splits: G, 1..K.

    Returns:
        float64 (B, G), one column for the map of each stage 1..G.

    Paper: §3.2
    """
    last_stage = StageLayout(structure_BL.shape[1]).last_stage
    columns = []
    for stage in range(1, num_splits + 1):
        found, given = (
            F.one_hot(stage_map(map_BL, stage, last_stage), 1 << stage).double() for map_BL in (found_BL, structure_BL)
        )
        # Positions two clusters share; then, from the leaves up, those two subtrees share under the better pairing.
        shared = found.transpose(1, 2) @ given
        for _ in range(stage):
            shared = shared.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
            straight = shared[:, :, 0, :, 0] + shared[:, :, 1, :, 1]
            crossed = shared[:, :, 0, :, 1] + shared[:, :, 1, :, 0]
            shared = torch.maximum(straight, crossed)
        columns.append(shared[:, 0, 0] / structure_BL.shape[1])
    return torch.stack(columns, dim=1)


def explained_share(latent_BLC: Tensor, structure_BL: Tensor, num_splits: int) -> Tensor:
    """How much of an image a map explains: variance between its clusters, as a share of the image's.

    Agreement of labels is brittle where clusters are nearly alike, since the smallest change then gives another map.
    This is not: a map that divides the image nearly as well as its own one explains nearly as much.

    Args:
        latent_BLC: float32, of the images.
        structure_BL: int64 finest maps.
        num_splits: G, 1..K.

    Returns:
        float64 (B, G), one column for the map of each stage 1..G, 0 to 1 (1 for an image without variance).

    Paper: §3.2
    """
    centred_BLC = latent_BLC.double() - latent_BLC.double().mean(1, keepdim=True)
    whole_B = centred_BLC.square().mean((1, 2))
    columns = []
    for stage in range(1, num_splits + 1):
        between_B = cluster_mean(centred_BLC, structure_BL, stage).square().mean((1, 2))
        columns.append(torch.where(whole_B > 0, between_B / whole_B, 1.0))
    return torch.stack(columns, dim=1)
