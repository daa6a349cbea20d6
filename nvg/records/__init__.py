"""Visual granularity sequences on disk, with NumPy alone.

record      the record as it lies on disk: `RecordLayout`
writer      MDS shards written, byte for byte `MDSWriter`'s: `ShardWriter`
shard       MDS shards read with NumPy alone
manifest    the card beside a data set: `read_manifest`
dataset     a whole data set in memory or mapped: `RecordDataset`
indexed     the same of hundreds of millions, opened by its index: `IndexedDataset`
companions  what may lie beside the records: features or JPEGs of the same views
"""

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
from nvg.records.indexed import IndexedDataset
from nvg.records.manifest import (
    DINOV2,
    EFFICIENTNET,
    MANIFEST_FILE,
    MANIFEST_KIND,
    SCHEMA_VERSION,
    RepaTarget,
    read_manifest,
    require_match,
    validate_manifest,
)
from nvg.records.record import MAX_UINT16_VALUES, RecordLayout
from nvg.records.shard import check_shard_size, map_samples, read_index, read_shard
from nvg.records.writer import ShardWriter

__all__ = [
    "DINOV2",
    "EFFICIENTNET",
    "FEATURES_FOLDER",
    "JPEG_COLUMNS",
    "JPEG_FOLDER",
    "MANIFEST_FILE",
    "MANIFEST_KIND",
    "MAX_UINT16_VALUES",
    "SCHEMA_VERSION",
    "FeatureDataset",
    "FeatureLayout",
    "IndexedDataset",
    "JpegDataset",
    "RecordDataset",
    "RecordLayout",
    "RepaTarget",
    "ShardWriter",
    "check_shard_size",
    "map_samples",
    "read_index",
    "read_manifest",
    "read_shard",
    "require_match",
    "to_int8",
    "validate_manifest",
]
