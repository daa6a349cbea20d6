"""Records through StreamingDataset, for data sets beyond one node's memory.

Its order depends also on canonical nodes, block size, algorithm and batch, so all of them are part of the
data's fingerprint. A step has the same samples for any number of ranks, dealt out in turns instead of in
one piece each, which ``Batch.global_rows`` says.

StreamingDataset for shards that lie on this machine. Import it only where it is used: streaming is heavy.

Shared memory of StreamingDataset that killed trainings left behind on this node.

StreamingDataset passes over segments and lock files of others, dead ones too, and its own cleaning stops at the first
free number. So every training notes which it has taken; the next one to start removes those whose owner is dead.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from streaming import StreamingDataset

from cluster.ranks import Ranks
from nvg.errors import UserError
from nvg.records.shard import SHARD_HASH
from pipelines.batches.config import DataConfig
from pipelines.batches.order import Batch

SHARED_MEMORY = Path("/dev/shm")
LOCALS = "locals"
CLAIMS_FOLDER = "nvg-streaming"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Segments of one process, all named ``<prefix>_…``.

    Attributes:
        prefix: six digits.
        locks: folder of the lock files of the same names.
        pid, started: the process, and when it began, since process ids come again.
        inode: of the first segment, since prefixes come again.
    """

    prefix: str
    locks: str
    pid: int
    started: float
    inode: int

    @property
    def is_dead(self) -> bool:
        """Whether its process is gone."""
        try:
            return psutil.Process(self.pid).create_time() != self.started
        except psutil.NoSuchProcess:
            return True


def claim(prefix: int, locks: str, claims: Path, shared_memory: Path = SHARED_MEMORY) -> None:
    """Note the segments of this process.

    Args:
        prefix: number that StreamingDataset has chosen.
        locks: folder of its lock files.
        claims: folder of the notes, of this node.
        shared_memory: where segments appear as files.
    """
    name = f"{prefix:06}"
    started = psutil.Process().create_time()
    inode = (shared_memory / f"{name}_{LOCALS}").stat().st_ino
    claims.mkdir(parents=True, exist_ok=True)
    note = Claim(prefix=name, locks=locks, pid=os.getpid(), started=started, inode=inode)
    (claims / f"{name}.json").write_text(json.dumps(asdict(note)))


def remove_dead(claims: Path, shared_memory: Path = SHARED_MEMORY) -> list[str]:
    """Remove segments and lock files of dead processes (one process of the node at a time).

    Args:
        claims: folder of the notes, of this node.
        shared_memory: where segments appear as files.

    Returns:
        Prefixes whose segments were removed.
    """
    removed: list[str] = []
    for file in sorted(claims.glob("*.json")):
        note = Claim(**json.loads(file.read_text()))
        if not note.is_dead:
            continue
        first = shared_memory / f"{note.prefix}_{LOCALS}"
        if first.exists() and first.stat().st_ino == note.inode:
            for folder in (shared_memory, Path(note.locks)):
                for path in folder.glob(f"{note.prefix}_*"):
                    path.unlink(missing_ok=True)
            removed.append(note.prefix)
        file.unlink()
    return removed


class StreamingSource:
    """Batches of all records, shuffled by StreamingDataset.

    Args:
        config: ``loader`` is "streaming".
        num_records: record rows (all views).
        fingerprint: content and order of the data.
    """

    def __init__(self, config: DataConfig, num_records: int, fingerprint: dict[str, Any]) -> None:
        self.config, self._num_records, self._fingerprint = config, num_records, fingerprint

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Content and order of the data."""
        return self._fingerprint

    @property
    def num_images(self) -> int:
        """Record rows in one epoch (all views)."""
        return self._num_records

    def batches(self, *, start_step: int, global_batch: int, seed: int, ranks: Ranks) -> Iterator[Batch]:
        """This rank's batches from ``start_step`` on; drops an epoch's incomplete batch; never ends."""
        from torch.utils.data import DataLoader

        share = global_batch // ranks.world_size
        dataset = _open_streaming(self.config, share, seed, ranks)
        steps_per_epoch = dataset.size // global_batch
        if steps_per_epoch == 0:
            raise UserError(
                f"{self.config.path} has {dataset.size} records, fewer than "
                f"optimizer.global_batch={global_batch}; lower the batch or use data.loader=memory"
            )
        epoch, step = divmod(start_step, steps_per_epoch)
        loader = DataLoader(
            dataset,
            batch_size=share,
            drop_last=True,
            num_workers=self.config.num_workers,
            collate_fn=partial(_collate, global_rows=_global_rows(ranks)),
            worker_init_fn=_die_with_parent,
        )
        # Before the first iteration, and counted by us: StreamingDataLoader miscounts some collate results.
        dataset.load_state_dict(
            {
                "epoch": epoch,
                "sample_in_epoch": step * global_batch,
                "num_canonical_nodes": self.config.num_canonical_nodes,
                "shuffle_seed": seed,
                "initial_physical_nodes": ranks.world_size // ranks.local_world_size,
            }
        )
        while True:
            for batch in loader:
                if step == steps_per_epoch:
                    break
                step += 1
                yield batch
            step = 0


def _open_streaming(config: DataConfig, share: int, seed: int, ranks: Ranks) -> Any:
    """Build under a lock of this node: two jobs that build at once race for shared-memory names."""
    from streaming import StreamingDataset  # heavy import: only where it is used

    from pipelines.batches.streaming import LocalStreamingDataset

    far = partial(StreamingDataset, remote=config.remote, validate_hash=SHARD_HASH)
    folder = Path(tempfile.gettempdir())
    with open(folder / "nvg-streaming.lock", "w") as lock:
        if ranks.local_rank == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
            remove_dead(folder / CLAIMS_FOLDER)
        ranks.barrier()  # the node's other ranks wait until their leader holds the lock
        dataset = (far if config.remote else LocalStreamingDataset)(
            local=config.path,
            shuffle=True,
            shuffle_algo=config.shuffle_algo,
            shuffle_seed=seed,
            shuffle_block_size=config.shuffle_block_size,
            num_canonical_nodes=config.num_canonical_nodes,
            batch_size=share,
        )
        if ranks.local_rank == 0:
            claim(dataset._shm_prefix_int, dataset._filelock_root, folder / CLAIMS_FOLDER)
        ranks.barrier()
    return dataset


def _global_rows(ranks: Ranks) -> slice:
    """Places of a rank's rows: StreamingDataset deals samples out to nodes in turns, then to a node's ranks."""
    num_nodes = ranks.world_size // ranks.local_world_size
    node = ranks.rank // ranks.local_world_size
    return slice(node + num_nodes * ranks.local_rank, None, ranks.world_size)


def _collate(samples: list[dict[str, Any]], global_rows: slice) -> Batch:
    def column(name: str) -> np.ndarray:
        return np.array([sample[name] for sample in samples], dtype=np.int64)

    tensors = {name: torch.from_numpy(column(name)) for name in ("label", "content_ids", "structure")}
    return Batch(tensors=tensors, sample_ids=column("image"), global_rows=global_rows)


def _die_with_parent(worker: int) -> None:
    """Loader processes of a killed rank would live on with their memory: Linux ends them with it."""
    pr_set_pdeathsig = 1
    ctypes.CDLL("libc.so.6", use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


class LocalStreamingDataset(StreamingDataset):
    """StreamingDataset without its bookkeeping of downloads: the same samples in the same order.

    The library looks each sample's shard up twice ahead of the reader, in two threads that compete with it.
    """

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Nothing: every shard is here, and the library would take a file lock for each sample to find that out."""

    def _prepare_thread(self, it: Any) -> None:
        """All samples of the epoch are prepared."""
        it.prepare_index = it.total
        it.on_exit()

    def _ready_thread(self, it: Any) -> None:
        """All samples of the epoch are ready."""
        it.ready_index = it.total
        it.on_exit()
