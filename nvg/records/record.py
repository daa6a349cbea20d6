"""The VGS record: one visual granularity sequence per image view, as it lies on disk.

Fields: `image` (row of sources.txt), `view`, `label`, `content_ids` (2L - 1 ids, stages in order) and
`structure` (L entries: the finest map, of which every coarser map is a right shift).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvg.errors import UserError

MAX_UINT16_VALUES = 1 << 16
MDS_OFFSET_BYTES = 4


@dataclass(frozen=True)
class RecordLayout:
    """Columns, types and size of the records of one latent grid.

    Attributes:
        num_positions: L, positions of the latent grid, a power of two.

    Raises:
        UserError: L is no power of two, or beyond what two bytes can number.
    """

    num_positions: int

    def __post_init__(self) -> None:
        length = self.num_positions
        if length < 2 or length & (length - 1) or length > 1 << 16:
            raise UserError(f"num_positions is {length}; expected a power of two from 2 to 65536")

    @property
    def num_tokens(self) -> int:
        """T = 2L - 1 content ids."""
        return 2 * self.num_positions - 1

    @property
    def structure_dtype(self) -> np.dtype:
        """One byte per position up to 256 positions, two beyond."""
        return np.dtype("<u1" if self.num_positions <= 256 else "<u2")

    @property
    def dtype(self) -> np.dtype:
        """Packed structured dtype of a record, fields in the order of the MDS format (by name)."""
        return np.dtype(
            [
                ("content_ids", "<u2", (self.num_tokens,)),
                ("image", "<u4"),
                ("label", "<u2"),
                ("structure", self.structure_dtype, (self.num_positions,)),
                ("view", "<u1"),
            ]
        )

    @property
    def columns(self) -> dict[str, str]:
        """MDS columns, name to encoding, as `streaming.MDSWriter` takes them."""
        return {
            "image": "uint32",
            "view": "uint8",
            "label": "uint16",
            "content_ids": f"ndarray:uint16:{self.num_tokens}",
            "structure": f"ndarray:{self.structure_dtype.name}:{self.num_positions}",
        }

    @property
    def bytes_per_record(self) -> int:
        """Bytes one record takes in a shard, its entry in the offset table included (1,289 at 16x16)."""
        return self.dtype.itemsize + MDS_OFFSET_BYTES
