"""The clustering of whole images on a GPU, in Triton: one program for each image and level, and nothing that waits.

The rounds of `clustering.py` ask the device after every round whether one more is needed; here the rounds are a loop of
the kernel. Its numbers are theirs bit for bit: distances are summed channel by channel, a difference, its square and
the sum each rounded (no fused multiplication and addition), with the rounded square root. The distances of an image
(256 KB for 256 positions) are too many for shared memory; they lie in global memory, of which the second-level cache
holds those of all images that are worked on.

Legend: B images, L positions, N clusters of the current level, P = N / 2 pairs, C latent channels, M = L / N members.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 8192  # numbers of a tile of distances: 16 a thread of sixteen warps
_FLAGS = 4  # rows of N numbers that the threads of a program exchange


@triton.jit
def merge_level(
    means_BCN, merged_BCP, members_BL, reordered_BL, distance_BNN, flags_BFN, failed_B,
    C, L: tl.constexpr, N: tl.constexpr, J: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Pairs up the clusters of one image as greedy would, J columns of distances at a time, and merges the pairs.

    Writes the means of the pairs and the positions in the order of the new clusters. `failed` becomes 1 where a
    distance is no finite number; the clusters are then paired as they come, so that no index is out of range.

    Paper: Alg. 1 lines 2-4, §2.1 (k = 2)
    """
    image = tl.program_id(0).to(tl.int64)
    i_N = tl.arange(0, N)
    means = means_BCN + image * C * N
    distance = distance_BNN + image * N * N
    closed = flags_BFN + image * F * N  # 1 for a cluster that has its partner
    nearest, apart, pairs = closed + N, closed + 2 * N, closed + 3 * N

    odd_N = tl.zeros([N], tl.int32)
    for start in range(0, N, J):
        j_J = start + tl.arange(0, J)
        squared_NJ = tl.zeros([N, J], tl.float32)
        for channel in range(C):
            row = means + channel * N
            difference_NJ = tl.load(row + i_N)[:, None] - tl.load(row + j_J)[None, :]
            squared_NJ = squared_NJ + difference_NJ * difference_NJ
        distance_NJ = tl.sqrt_rn(squared_NJ)
        odd_N += tl.sum((~(distance_NJ <= 3.4028234663852886e38)).to(tl.int32), 1)
        tl.store(distance + j_J[None, :] * N + i_N[:, None], distance_NJ)  # symmetric: neighbours in i lie together
    whole = tl.sum(odd_N, 0) == 0
    tl.store(failed_B + image, 1, mask=~whole)
    tl.store(closed + i_N, tl.zeros([N], tl.int32))
    tl.debug_barrier()

    # All mutually nearest pairs at once, then nearest again among the rest; of equal distances the smallest column.
    open_N = tl.full([N], 1, tl.int32)
    partner_N = tl.full([N], -1, tl.int32)
    apart_N = tl.zeros([N], tl.float32)
    left = N
    while left > 0:
        least_N = tl.full([N], float("inf"), tl.float32)
        near_N = tl.zeros([N], tl.int32)
        for start in range(0, N, J):
            j_J = start + tl.arange(0, J)
            distance_NJ = tl.load(distance + j_J[None, :] * N + i_N[:, None])
            shut_J = tl.load(closed + j_J) != 0
            distance_NJ = tl.where(shut_J[None, :] | (i_N[:, None] == j_J[None, :]), float("inf"), distance_NJ)
            best_N, at_N = tl.min(distance_NJ, axis=1, return_indices=True, return_indices_tie_break_left=True)
            nearer_N = best_N < least_N
            least_N = tl.where(nearer_N, best_N, least_N)
            near_N = tl.where(nearer_N, start + at_N, near_N)
        tl.store(nearest + i_N, near_N)
        tl.debug_barrier()
        mutual_N = (open_N != 0) & (tl.load(nearest + near_N) == i_N)
        partner_N = tl.where(mutual_N, near_N, partner_N)
        apart_N = tl.where(mutual_N, least_N, apart_N)
        open_N = tl.where(mutual_N, 0, open_N)
        tl.store(closed + i_N, 1 - open_N)
        tl.debug_barrier()
        before = left
        left = tl.sum(open_N, 0)
        left = tl.where(left == before, 0, left)  # only what is no number finds no partner

    # Greedy's order: pairs by (distance, first of the two).
    is_first_N = partner_N > i_N
    tl.store(apart + i_N, tl.where(is_first_N, apart_N, float("inf")).to(tl.int32, bitcast=True))
    tl.debug_barrier()
    rank_N = tl.zeros([N], tl.int32)
    for start in range(0, N, J):
        j_J = start + tl.arange(0, J)
        other_J = tl.load(apart + j_J).to(tl.float32, bitcast=True)
        tied_NJ = (other_J[None, :] == apart_N[:, None]) & (j_J[None, :] < i_N[:, None])
        rank_N += tl.sum(((other_J[None, :] < apart_N[:, None]) | tied_NJ).to(tl.int32), 1)
    tl.store(pairs + 2 * rank_N, i_N, mask=is_first_N & whole)
    tl.store(pairs + 2 * rank_N + 1, partner_N, mask=is_first_N & whole)
    tl.store(pairs + i_N, i_N, mask=~whole & (i_N >= 0))
    tl.debug_barrier()

    p_P = tl.arange(0, N // 2)
    first_P, second_P = tl.load(pairs + 2 * p_P), tl.load(pairs + 2 * p_P + 1)
    for channel in range(C):
        row = means + channel * N
        mean_P = (tl.load(row + first_P) + tl.load(row + second_P)) * 0.5
        tl.store(merged_BCP + (image * C + channel) * (N // 2) + p_P, mean_P)
    place_L = tl.arange(0, L)
    origin_L = tl.load(pairs + place_L // (L // N)) * (L // N) + place_L % (L // N)
    tl.store(reordered_BL + image * L + place_L, tl.load(members_BL + image * L + origin_L))


def _constants(num_positions: int, num_clusters: int) -> dict[str, Any]:
    return {"L": num_positions, "N": num_clusters, **level_options(num_clusters)}


def level_options(num_clusters: int) -> dict[str, Any]:
    """How the kernel of a level is compiled: its tile, its warps, and no fused multiplication and addition."""
    return {
        "J": max(1, min(num_clusters, 32, _TILE // num_clusters)),
        "F": _FLAGS,
        "num_warps": max(4, min(16, num_clusters // 16)),
        "enable_fp_fusion": False,
    }


def merge_in_triton(latent_BLC: Tensor, num_levels: int) -> tuple[Tensor, Tensor]:
    """The merging of all images at once on a GPU, without a wait: the same members as `merge_in_rounds`, bit for bit.

    Args:
        latent_BLC: float32; L a power of two.
        num_levels: at most log2 L.

    Returns:
        int64 (B, L / 2^levels, 2^levels): members of each cluster, left child first; bool (B,): images of which a
        distance is not finite, whose members are some permutation.

    Paper: Alg. 1 lines 2-4, §2.1 (k = 2)
    """
    num_images, num_positions, num_channels = latent_BLC.shape
    new = latent_BLC.new_empty
    means_BCN = latent_BLC.transpose(1, 2).contiguous()
    members_BL = torch.arange(num_positions, dtype=torch.int32, device=latent_BLC.device).repeat(num_images, 1)
    reordered_BL = torch.empty_like(members_BL)
    distance_BNN = new(num_images, num_positions, num_positions)
    flags_BFN = new(num_images, _FLAGS, num_positions, dtype=torch.int32)
    failed_B = torch.zeros(num_images, dtype=torch.int32, device=latent_BLC.device)
    with torch.cuda.device_of(latent_BLC):  # Triton starts its programs on the current device
        for level in range(num_levels):
            number = num_positions >> level
            merged_BCP = new(num_images, num_channels, number // 2)
            merge_level[(num_images,)](
                means_BCN, merged_BCP, members_BL, reordered_BL, distance_BNN, flags_BFN, failed_B,
                num_channels, **_constants(num_positions, number),
            )  # fmt: skip
            means_BCN, members_BL, reordered_BL = merged_BCP, reordered_BL, members_BL
    return members_BL.long().unflatten(1, (-1, 1 << num_levels)), failed_B.bool()
