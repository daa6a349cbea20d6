"""Greedy bottom-up clustering of a latent into a balanced binary hierarchy.

Legend: B images, L positions, N clusters of the current level, P = N / 2 pairs, C latent channels,
M members of a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from nvg.errors import NotFiniteError, UserError
from nvg.granularity.stages import StageLayout
from nvg.precision import refused_by_triton

logger = logging.getLogger(__name__)


def cluster_latents(latent_BLC: Tensor, *, checked: bool = True) -> Tensor:
    """Finds the finest structure map of each latent; every coarser map is a right shift of it.

    From L clusters of one position each, the two nearest still unpaired clusters are merged until none is left, level
    by level. A cluster is represented by the mean of its original latents. The two children of cluster j are 2j (the
    one merged at the smaller distance one level below; at the last level the first in raster order) and 2j+1.

    Args:
        latent_BLC: encoder output, any float dtype (computed in float32), finite.
        checked: False never waits for a GPU that has Triton: the row of a latent that cannot be clustered is then all
            zeros, which `require_clustered` refuses once the maps are on the host.

    Returns:
        int64 (B, L), each row a permutation of 0..L-1: the finest map s_K.

    Raises:
        UserError: a latent is not finite, or its distances overflow float32.

    DEVIATION: clusters are merged in pairs; the paper allows the k most similar tokens and sets k = 2.

    Paper: Alg. 1 lines 2-4, 6, §2.1 (k = 2); Release: a cluster is the mean of its original latents
    """
    latent_BLC = latent_BLC.detach().float()
    layout = StageLayout(latent_BLC.shape[1])
    on_device = _merge_on_device(latent_BLC.device)
    if on_device is None:
        _require_finite_latents(latent_BLC)
        return _merged(latent_BLC, layout.last_stage)[:, 0].argsort(1)
    members_BNM, failed_B = on_device(_enlarged(latent_BLC), layout.last_stage)
    structure_BL = members_BNM[:, 0].argsort(1).masked_fill(failed_B[:, None], 0)
    if checked:
        require_clustered(structure_BL, latent_BLC)
    return structure_BL


def require_clustered(structure_BL: Tensor, latent_BLC: Tensor) -> None:
    """Refuses maps of `cluster_latents(checked=False)` that are none; reads the maps, so give those on the host.

    Args:
        structure_BL: maps of some leading latents.
        latent_BLC: read only to say what is wrong with them.

    Raises:
        UserError: as `cluster_latents`.
    """
    if not bool(structure_BL.any(1).all()):
        _require_finite_latents(latent_BLC)
        _require_finite(False)


def cluster_halves(latent_BNC: Tensor) -> Tensor:
    """Divides points in two equal halves, as the clustering of a whole image would divide a cluster of just these.

    Args:
        latent_BNC: finite, any float dtype; N a power of two, at least 2, points in raster order.

    Returns:
        int64 (B, N): 0 for the half that was merged at the smaller distance (of two points the first), 1 for the other.

    Paper: Alg. 1, §2.1 (k = 2)
    """
    latent_BNC = latent_BNC.detach().float()
    second_BM = _merged(latent_BNC, latent_BNC.shape[1].bit_length() - 2)[:, 1]
    return torch.zeros(latent_BNC.shape[:2], dtype=torch.int64, device=second_BM.device).scatter(1, second_BM, 1)


def _enlarged(latent_BLC: Tensor) -> Tensor:
    """Each image times the power of two at which squared distances use all of float32, so that small ones are no ties.

    A power of two multiplies every distance without rounding: the maps of ordinary latents stay the same bit for bit.
    Large latents are left as they are.
    """
    num_images, _, num_channels = latent_BLC.shape
    if latent_BLC.numel() == 0:
        return latent_BLC
    largest = (124 - num_channels.bit_length()) // 2  # C · (2 · 2^largest)² stays below 2^126
    exponent_B = torch.frexp(latent_BLC.abs().flatten(1).amax(1)).exponent
    steps_B = (largest - exponent_B).clamp_min(0)
    halves_2B = torch.stack([steps_B // 2, steps_B - steps_B // 2])  # 2^steps itself may be beyond float32
    powers_2B = ((halves_2B + 127) << 23).to(torch.int32).view(torch.float32)  # exact on every device
    first_B11, second_B11 = powers_2B.view(2, num_images, 1, 1)
    return latent_BLC * first_B11 * second_B11


def _merged(latent_BLC: Tensor, num_levels: int) -> Tensor:
    """Merges single positions pairwise, level by level: on the CPU compiled where numba is installed, on a GPU by
    Triton where it works, else in rounds.

    Returns the members of each cluster, int64 (B, N, M), left child first: the order of positions along the leaves.
    """
    latent_BLC = _enlarged(latent_BLC)
    if on_device := _merge_on_device(latent_BLC.device):
        members_BNM, failed_B = on_device(latent_BLC, num_levels)
        _require_finite(not bool(failed_B.any()))
        return members_BNM
    compiled = _compiled_merge() if latent_BLC.device.type == "cpu" else None
    return (compiled or merge_in_rounds)(latent_BLC, num_levels)


def merge_in_rounds(latent_BLC: Tensor, num_levels: int) -> Tensor:
    """The merging of all images at once, on any device: the same members as `merge_compiled`, bit for bit.

    Args:
        latent_BLC: float32, finite; L a power of two.
        num_levels: at most log2 L.

    Returns:
        int64 (B, L / 2^levels, 2^levels): members of each cluster, left child first.

    Raises:
        UserError: distances overflow float32.

    Paper: Alg. 1 lines 2-4, §2.1 (k = 2)
    """
    num_images, num_positions, num_channels = latent_BLC.shape
    members_BNM = torch.arange(num_positions, device=latent_BLC.device).expand(num_images, -1)[:, :, None]
    means_BNC = latent_BLC
    for _ in range(num_levels):
        pairs_BP2 = greedy_pairs(_distances(means_BNC))
        first_BPC, second_BPC = (
            means_BNC.gather(1, pairs_BP2[:, :, child, None].expand(-1, -1, num_channels)) for child in range(2)
        )
        means_BNC = (first_BPC + second_BPC) * 0.5  # equal halves: the mean of their means is that of their members
        num_pairs, num_members = pairs_BP2.shape[1], members_BNM.shape[2]
        chosen = pairs_BP2.reshape(num_images, -1, 1).expand(-1, -1, num_members)
        members_BNM = members_BNM.gather(1, chosen).reshape(num_images, num_pairs, 2 * num_members)
    return members_BNM


def merge_compiled(latent_BLC: Tensor, num_levels: int) -> Tensor:
    """The merging on the CPU by the compiled kernel, the images dealt out to torch's number of threads.

    Args and result are those of `merge_in_rounds`.

    Raises:
        UserError: distances overflow float32.

    Paper: Alg. 1 lines 2-4, §2.1 (k = 2)
    """
    from nvg.granularity.compiled_clustering import merge_images

    members_BL = torch.empty(latent_BLC.shape[:2], dtype=torch.int64)
    parts = max(1, min(torch.get_num_threads(), len(latent_BLC)))
    arguments = [
        (latents.contiguous().numpy(), num_levels, members.numpy())
        for latents, members in zip(latent_BLC.tensor_split(parts), members_BL.tensor_split(parts), strict=True)
    ]
    if parts == 1:
        finite = [merge_images(*arguments[0])]
    else:  # threads of its own: numba's must not be entered from two threads, nor be forked
        with ThreadPoolExecutor(parts) as pool:
            finite = list(pool.map(merge_images, *zip(*arguments, strict=True)))
    _require_finite(all(finite))
    return members_BL.unflatten(1, (-1, 1 << num_levels))


@cache
def _compiled_merge() -> Callable[[Tensor, int], Tensor] | None:
    return merge_compiled if find_spec("numba") else None


def _merge_on_device(device: torch.device) -> Callable[[Tensor, int], tuple[Tensor, Tensor]] | None:
    return _triton_merge(device) if device.type == "cuda" else None


@cache
def _triton_merge(device: torch.device) -> Callable[[Tensor, int], tuple[Tensor, Tensor]] | None:
    """Triton's merging where it works on a GPU, tried on 16 positions; where not, it is said once why."""
    if reason := refused_by_triton(device, _triton_merges_alike):
        logger.warning("clustering on %s goes in rounds, several times as slow as in one kernel: %s", device, reason)
        return None
    from nvg.granularity.triton_clustering import merge_in_triton

    return merge_in_triton


def _triton_merges_alike(device: torch.device) -> str | None:
    from nvg.granularity.triton_clustering import merge_in_triton

    points_BLC = torch.arange(2 * 16 * 16.0, device=device).sin().view(2, 16, 16)
    members_BNM, _ = merge_in_triton(points_BLC, 4)
    alike = torch.equal(members_BNM, merge_in_rounds(points_BLC, 4))
    return None if alike else "Triton finds other clusters there than PyTorch"


def greedy_pairs(distance_BNN: Tensor) -> Tensor:
    """Pairs up N points exactly as greedy would: always the nearest unpaired two, ties by (distance, i, j) with i < j.

    The pairs greedy takes are the mutually nearest ones, taken in rounds: all mutual pairs at once, then nearest again
    among the rest. Ordinary data needs 6-12 rounds for 256 points, constant data N / 2, so rounds are not capped.

    Args:
        distance_BNN: exactly symmetric, finite float32; the diagonal is ignored.

    Returns:
        int64 (B, N / 2, 2), each pair ascending, pairs in greedy's order.

    Paper: Alg. 1 line 4, §2.1
    """
    num_points = distance_BNN.shape[-1]
    here_N = torch.arange(num_points, device=distance_BNN.device)
    open_BNN = distance_BNN.clone()
    open_BNN.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    partner_BN = torch.full(distance_BNN.shape[:2], -1, device=distance_BNN.device)
    while True:
        # argmin returns the first minimum, which is the tie rule: of equal distances in row i, the smallest j.
        least_BN, nearest_BN = open_BNN.min(2).values, open_BNN.argmin(2)
        mutual_BN = (nearest_BN.gather(1, nearest_BN) == here_N) & torch.isfinite(least_BN)
        partner_BN = torch.where(mutual_BN, nearest_BN, partner_BN)
        paired_BN = partner_BN >= 0
        if bool(paired_BN.all()):
            break
        open_BNN.masked_fill_(paired_BN[:, :, None] | paired_BN[:, None, :], torch.inf)
    first_BP = (partner_BN > here_N).nonzero()[:, 1].view(len(partner_BN), -1)
    second_BP = partner_BN.gather(1, first_BP)
    flat_BP = first_BP * num_points + second_BP
    order_BP = distance_BNN.flatten(1).gather(1, flat_BP).sort(dim=1, stable=True).indices
    return torch.stack([first_BP.gather(1, order_BP), second_BP.gather(1, order_BP)], dim=2)


def _distances(means_BNC: Tensor) -> Tensor:
    """Pairwise ℓ2 distances, exactly symmetric.

    Summed channel by channel, not by matrix product or `cdist`, whose order of operations depends on device and
    processor: so every device finds the same bits, and with them the same pairs.
    """
    squared_BNN = means_BNC.new_zeros(len(means_BNC), means_BNC.shape[1], means_BNC.shape[1])
    for mean_BN in means_BNC.unbind(2):
        difference_BNN = mean_BN[:, :, None] - mean_BN[:, None, :]
        squared_BNN += difference_BNN * difference_BNN
    distance_BNN = squared_BNN.sqrt_()
    _require_finite(bool(torch.isfinite(distance_BNN).all()))
    return distance_BNN


def _require_finite_latents(latent_BLC: Tensor) -> None:
    finite_B = torch.isfinite(latent_BLC).flatten(1).all(1)
    if not bool(finite_B.all()):
        raise NotFiniteError(
            f"latents of batch rows {(~finite_B).nonzero().flatten().tolist()} are not finite; clustering needs finite "
            "values: check the encoder"
        )


def _require_finite(finite: bool) -> None:
    if not finite:
        raise UserError(
            "distances between latents overflow float32; latents must stay below about 1e18: check the encoder"
        )
