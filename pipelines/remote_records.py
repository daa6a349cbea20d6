"""Records that lie in a store: what describes them is copied at once, the shards when StreamingDataset reads them."""

from __future__ import annotations

from pathlib import Path

from cluster.files import write_atomically
from cluster.manifest import MANIFEST_FILE
from nvg.errors import UserError
from nvg.records import RecordDataset
from nvg.records.shard import INDEX_FILE
from pipelines.batches.config import DataConfig
from pipelines.sources.locations import join, location_of, read_bytes

DESCRIPTION = (MANIFEST_FILE, INDEX_FILE, "dequantizer.json", "dequantizer.safetensors")


def open_records(config: DataConfig) -> RecordDataset:
    """Open a training's records.

    Args:
        config: where they are and how they are read.

    Returns:
        The records; those of ``config.remote`` without a single record, with their manifest.

    Raises:
        UserError: they are missing or damaged, or ``config.path`` holds other ones than ``config.remote``.
    """
    if not config.remote:
        return RecordDataset.open(Path(config.path), mapped=config.loader != "memory")
    fetch_description(config.remote, Path(config.path))
    return RecordDataset.open_description(Path(config.path))


def fetch_description(remote: str, folder: Path) -> None:
    """Copy manifest, index and dequantizer; any number of processes may do so at once.

    Args:
        remote: URL or path of a folder that ``nvg precompute`` wrote.
        folder: of this node; made where it is missing.

    Raises:
        UserError: a file cannot be read, or the folder holds another one of its name.
    """
    for name in DESCRIPTION:
        location, copy = join(location_of(remote), name), folder / name
        try:
            content = read_bytes(location)
        except OSError as error:
            raise UserError(
                f"data.remote: {location} cannot be read ({error}); expected a folder that `nvg precompute` wrote"
            ) from error
        if not copy.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(copy, content)
        elif copy.read_bytes() != content:
            raise UserError(f"{copy} is not that of data.remote {remote}; choose another data.path for these records")
