"""The VGS record and a reader of record data sets that needs NumPy alone."""

from nvg.records.dataset import RecordDataset
from nvg.records.record import MAX_UINT16_VALUES, RecordLayout
from nvg.records.shard import check_shard_size, read_index, read_shard

__all__ = [
    "MAX_UINT16_VALUES",
    "RecordDataset",
    "RecordLayout",
    "check_shard_size",
    "read_index",
    "read_shard",
]
