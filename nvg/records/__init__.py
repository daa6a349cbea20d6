"""The VGS record and what may lie beside it, with a reader and a writer of MDS shards that need NumPy alone."""

from nvg.records.companions import (
    FEATURES_FOLDER,
    JPEG_COLUMNS,
    JPEG_FOLDER,
    FeatureDataset,
    FeatureLayout,
    JpegDataset,
    to_int8,
)
from nvg.records.dataset import RecordDataset
from nvg.records.record import MAX_UINT16_VALUES, RecordLayout
from nvg.records.shard import check_shard_size, map_samples, read_index, read_shard
from nvg.records.writer import ShardWriter

__all__ = [
    "FEATURES_FOLDER",
    "JPEG_COLUMNS",
    "JPEG_FOLDER",
    "MAX_UINT16_VALUES",
    "FeatureDataset",
    "FeatureLayout",
    "JpegDataset",
    "RecordDataset",
    "RecordLayout",
    "ShardWriter",
    "check_shard_size",
    "map_samples",
    "read_index",
    "read_shard",
    "to_int8",
]
