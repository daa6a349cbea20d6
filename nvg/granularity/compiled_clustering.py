"""The clustering of whole images, compiled for one CPU thread by numba; `clustering.py` chooses it where numba is.

Greedy is taken literally: N / 2 times the nearest two open clusters. What makes it quick is that each row keeps its
nearest open column to the right as a lower bound, which is renewed only when the row is about to be chosen and that
column is gone. The rounds of `clustering.py` give the same pairs on other devices; distances and means are computed in
the same order of operations there, so that the maps are equal bit for bit.

Legend: B images, L positions, C latent channels, N clusters of the current level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_INFINITE = np.float32(np.inf)
_LARGEST = np.finfo(np.float32).max
_HALF = np.float32(0.5)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled at its first call, without fast mathematics; kept on disk where some folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(nogil=True)(function)


@_compiled
def _row_distances(means_CN: np.ndarray, row: int, number: int, distance_N: np.ndarray) -> bool:
    """Distances of a cluster to all later ones, summed channel by channel; False where one is not finite."""
    num_channels = means_CN.shape[0]
    sums_N = distance_N[row + 1 : number]
    sums_N[:] = 0.0
    channel = 0
    while channel + 4 <= num_channels:  # four channels a pass: the sums stay in registers, their order stays
        mean_a, mean_b = means_CN[channel, row], means_CN[channel + 1, row]
        mean_c, mean_d = means_CN[channel + 2, row], means_CN[channel + 3, row]
        others_a, others_b = means_CN[channel, row + 1 : number], means_CN[channel + 1, row + 1 : number]
        others_c, others_d = means_CN[channel + 2, row + 1 : number], means_CN[channel + 3, row + 1 : number]
        for other in range(sums_N.size):
            a, b = others_a[other] - mean_a, others_b[other] - mean_b
            c, d = others_c[other] - mean_c, others_d[other] - mean_d
            sums_N[other] = (((sums_N[other] + a * a) + b * b) + c * c) + d * d
        channel += 4
    while channel < num_channels:
        mean_a, others_a = means_CN[channel, row], means_CN[channel, row + 1 : number]
        for other in range(sums_N.size):
            a = others_a[other] - mean_a
            sums_N[other] += a * a
        channel += 1
    finite = True
    for other in range(sums_N.size):
        sums_N[other] = np.sqrt(sums_N[other])
        finite &= sums_N[other] <= _LARGEST
    return finite


@_compiled
def _least(values_N: np.ndarray, closed_N: np.ndarray, scratch_N: np.ndarray) -> np.float32:
    """Smallest open value: `closed_N` is 0 or infinity. Halves are laid on each other, which can be vectorised."""
    size = values_N.size
    for place in range(size):
        scratch_N[place] = values_N[place] + closed_N[place]
    while size > 1:
        rest = size // 2
        size -= rest
        upper_N = scratch_N[size : size + rest]
        for place in range(rest):
            one, other = scratch_N[place], upper_N[place]
            scratch_N[place] = other if other < one else one
    return scratch_N[0]


@_compiled
def _first(values_N: np.ndarray, closed_N: np.ndarray, wanted: np.float32) -> int:
    """First open place with a value."""
    for place in range(values_N.size):
        if values_N[place] + closed_N[place] == wanted:
            return place
    return 0


@_compiled
def _pair_up(distance_NN: np.ndarray, number: int, pairs_P2: np.ndarray) -> None:
    """Greedy's pairs in greedy's order, ties by (distance, i, j), from the upper triangle of the distances."""
    closed_N, scratch_N = np.zeros(number, np.float32), np.empty(number, np.float32)
    least_N = np.full(number, _INFINITE)
    nearest_N = np.zeros(number, np.int64)
    for row in range(number - 1):
        later_N, closed_later_N = distance_NN[row, row + 1 : number], closed_N[row + 1 :]
        least_N[row] = _least(later_N, closed_later_N, scratch_N)
        nearest_N[row] = row + 1 + _first(later_N, closed_later_N, least_N[row])
    for pair in range(number // 2):
        while True:
            row = _first(least_N, closed_N, _least(least_N, closed_N, scratch_N))
            column = nearest_N[row]
            if closed_N[column] == 0.0:
                break
            later_N, closed_later_N = distance_NN[row, row + 1 : number], closed_N[row + 1 :]
            least_N[row] = _least(later_N, closed_later_N, scratch_N)
            nearest_N[row] = row + 1 + _first(later_N, closed_later_N, least_N[row])
        pairs_P2[pair, 0], pairs_P2[pair, 1] = row, column
        closed_N[row] = closed_N[column] = _INFINITE


@_compiled
def merge_images(latent_BLC: np.ndarray, num_levels: int, members_BL: np.ndarray) -> bool:
    """Merges the positions of each image pairwise, level by level.

    Args:
        latent_BLC: float32, finite, contiguous; L a power of two.
        num_levels: at most log2 L.
        members_BL: int64, filled with the positions in the order of the clusters, left child first.

    Returns:
        False where a distance overflows float32.

    Paper: Alg. 1 lines 2-4, §2.1 (k = 2)
    """
    num_images, num_positions, num_channels = latent_BLC.shape
    means_CN = np.empty((num_channels, num_positions), np.float32)
    merged_CN = np.empty((num_channels, num_positions // 2), np.float32)
    distance_NN = np.empty((num_positions, num_positions), np.float32)
    pairs_P2 = np.empty((num_positions // 2, 2), np.int64)
    before_L = np.empty(num_positions, np.int64)
    for image in range(num_images):
        means_CN[:] = latent_BLC[image].T
        members_L = members_BL[image]
        for position in range(num_positions):
            members_L[position] = position
        number, size = num_positions, 1
        for _ in range(num_levels):
            for row in range(number):
                if not _row_distances(means_CN, row, number, distance_NN[row]):
                    return False
            _pair_up(distance_NN, number, pairs_P2)
            number //= 2
            before_L[:] = members_L
            for channel in range(num_channels):
                for pair in range(number):
                    total = means_CN[channel, pairs_P2[pair, 0]] + means_CN[channel, pairs_P2[pair, 1]]
                    merged_CN[channel, pair] = total * _HALF
            means_CN[:, :number] = merged_CN[:, :number]
            for pair in range(number):
                for child in range(2):
                    start, origin = (2 * pair + child) * size, pairs_P2[pair, child] * size
                    members_L[start : start + size] = before_L[origin : origin + size]
            size *= 2
    return True
