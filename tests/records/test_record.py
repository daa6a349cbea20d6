"""Size and types of the record."""

from __future__ import annotations

import numpy as np
import pytest

from nvg.records import RecordLayout


def test_a_record_of_16x16_positions_takes_1289_bytes():
    assert RecordLayout(256).bytes_per_record == 1289


@pytest.mark.parametrize(("positions", "dtype"), [(16, "uint8"), (256, "uint8"), (1024, "uint16")])
def test_structure_is_wide_enough_for_every_position(positions, dtype):
    layout = RecordLayout(positions)
    assert layout.structure_dtype == np.dtype(dtype)
    assert layout.columns["structure"] == f"ndarray:{dtype}:{positions}"
    assert np.iinfo(layout.structure_dtype).max >= positions - 1


@pytest.mark.parametrize("positions", [0, 1, 12, 1 << 17])
def test_other_grids_are_refused(positions):
    with pytest.raises(ValueError, match=f"num_positions is {positions}"):
        RecordLayout(positions)
