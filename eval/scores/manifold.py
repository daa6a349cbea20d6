"""Precision and recall: how many samples lie in the manifold of the real images, and the reverse.

The manifold of a set is the union of balls, one around each of its features, that reach to the k-th neighbour in the
same set. Distances are computed block by block in float32, so memory does not grow with the square of the sets.
Shapes: generated_NF, real_MF float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEIGHBOURHOOD = 3
LEAST_IMAGES = NEIGHBOURHOOD + 1  # of either set
BLOCK_ROWS = 1000  # rows of the distance table that exist at a time: 200 MB against 50,000 others
NUM_RESAMPLES = 1000

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ManifoldHits:
    """Which samples lie inside the other set's manifold.

    Attributes:
        generated_N: generated images inside the real manifold; their share is precision.
        real_M: real images inside the generated manifold; their share is recall.
    """

    generated_N: NDArray[np.bool_]
    real_M: NDArray[np.bool_]

    @property
    def precision(self) -> float:
        """Share of generated images inside the real manifold."""
        return float(self.generated_N.mean())

    @property
    def recall(self) -> float:
        """Share of real images inside the generated manifold."""
        return float(self.real_M.mean())


def manifold_hits(generated_NF: FloatArray, real_MF: FloatArray, *, neighbourhood: int = NEIGHBOURHOOD) -> ManifoldHits:
    """Find out which images lie inside the manifold of the other set.

    Args:
        generated_NF: features of generated images.
        real_MF: features of real images; the count need not be the same.
        neighbourhood: k; a feature is no neighbour of itself, its copies are.

    Returns:
        One answer per image of either set.

    Raises:
        ValueError: arrays that do not fit, or fewer than k + 1 rows.

    Paper: Table 1 (Pre, Rec)
    """
    for name, rows in (("generated", generated_NF), ("real", real_MF)):
        if rows.ndim != 2 or len(rows) < neighbourhood + 1 or rows.shape[1] != real_MF.shape[1]:
            raise ValueError(
                f"{name} features: found {rows.shape}, expected at least {neighbourhood + 1} rows of "
                f"{real_MF.shape[1]} columns"
            )
    # A shift common to both sets changes no distance and keeps float32 from cancelling digits.
    centre_F = real_MF.mean(axis=0, dtype=np.float64)
    generated, real = (_Rows.of(rows - centre_F.astype(np.float32)) for rows in (generated_NF, real_MF))
    return ManifoldHits(
        generated_N=_inside(generated, real, _radii(real, neighbourhood)),
        real_M=_inside(real, generated, _radii(generated, neighbourhood)),
    )


def share_spread(hits: NDArray[np.bool_], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> float:
    """Standard deviation of a share when images are drawn again with replacement, the balls staying as they are.

    The number of hits in a resample is binomial, so it is drawn as such.
    """
    drawn = np.random.default_rng(seed).binomial(len(hits), hits.mean(), num_resamples)
    return float((drawn / len(hits)).std())


@dataclass(frozen=True)
class _Rows:
    """Features with their squared lengths."""

    rows_NF: Tensor
    squares_N: Tensor

    @staticmethod
    def of(rows_NF: FloatArray) -> _Rows:
        rows = torch.from_numpy(np.ascontiguousarray(rows_NF, dtype=np.float32))
        return _Rows(rows, rows.square().sum(dim=1))

    def blocks(self) -> list[_Rows]:
        pairs = zip(self.rows_NF.split(BLOCK_ROWS), self.squares_N.split(BLOCK_ROWS), strict=True)
        return [_Rows(rows, squares) for rows, squares in pairs]


def _squared_distances(block: _Rows, others: _Rows) -> Tensor:
    """Squared distances (rows of the block, others)."""
    table = torch.addmm(others.squares_N, block.rows_NF, others.rows_NF.T, alpha=-2.0)
    return table.add_(block.squares_N[:, None]).clamp_min_(0.0)


def _radii(rows: _Rows, neighbourhood: int) -> Tensor:
    """Squared distance of every row to its k-th neighbour; the row itself is the zeroth."""
    tables = (_squared_distances(block, rows) for block in rows.blocks())
    return torch.cat([table.topk(neighbourhood + 1, largest=False).values[:, -1] for table in tables])


def _inside(points: _Rows, centres: _Rows, radii_M: Tensor) -> NDArray[np.bool_]:
    """Whether each point lies in one of the balls."""
    tables = (_squared_distances(block, centres) for block in points.blocks())
    return torch.cat([(table <= radii_M).any(dim=1) for table in tables]).numpy()
