"""Records that lie in a store, through StreamingDataset, which copies a shard when a node first reads of it.

Its order depends also on canonical nodes, block size, algorithm and batch, so all of them are part of the data's
fingerprint. A step has the same samples for any number of ranks, dealt out in turns instead of in one piece each,
which `Batch.global_rows` says.

StreamingDataset passes over shared memory and lock files that killed trainings left behind on this node, and its own
cleaning stops at the first free number. So every training notes (`claim`) which it has taken, and the next one to start
removes those whose owner is dead (`remove_dead`).
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

from cluster.ranks import Ranks
from nvg.bounds import refuse
from nvg.errors import UserError
from nvg.json_files import Count, make, read_json
from nvg.records.shard import SHARD_HASH
from pipelines.batches.config import DataConfig
from pipelines.batches.order import Batch

_SHARED_MEMORY = Path("/dev/shm")
_LOCALS = "locals"
_CLAIMS_FOLDER = "nvg-streaming"


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """Segments of one process, all named `<prefix>_…`.

    Attributes:
        prefix: six digits.
        locks: folder of the lock files of the same names.
        pid, started: the process, and when it began, since process ids come again.
        inode: of the first segment, since prefixes come again.
    """

    prefix: str
    locks: str
    pid: Count
    started: float
    inode: Count

    @property
    def is_dead(self) -> bool:
        """Whether its process is gone."""
        try:
            return psutil.Process(self.pid).create_time() != self.started
        except psutil.NoSuchProcess:
            return True


def claim(prefix: int, locks: str, claims: Path, shared_memory: Path = _SHARED_MEMORY) -> None:
    """Note the segments of this process.

    Args:
        prefix: number that StreamingDataset has chosen.
        locks: folder of its lock files.
        claims: folder of the notes, of this node.
        shared_memory: where segments appear as files.
    """
    name = f"{prefix:06}"
    started = psutil.Process().create_time()
    inode = (shared_memory / f"{name}_{_LOCALS}").stat().st_ino
    claims.mkdir(parents=True, exist_ok=True)
    note = _Claim(prefix=name, locks=locks, pid=os.getpid(), started=started, inode=inode)
    (claims / f"{name}.json").write_text(json.dumps(asdict(note)))


def remove_dead(claims: Path, shared_memory: Path = _SHARED_MEMORY) -> list[str]:
    """Remove segments and lock files of dead processes (one process of the node at a time); returns their prefixes."""
    removed: list[str] = []
    for file in sorted(claims.glob("*.json")):
        try:
            note = make(_Claim, read_json(file, dict[str, Any], "a note of segments", ""), str(file), "")
        except UserError:  # half of one, of a process killed while it wrote: its segments cannot be told
            file.unlink()
            continue
        if not note.is_dead:
            continue
        first = shared_memory / f"{note.prefix}_{_LOCALS}"
        if first.exists() and first.stat().st_ino == note.inode:
            for folder in (shared_memory, Path(note.locks)):
                for path in folder.glob(f"{note.prefix}_*"):
                    path.unlink(missing_ok=True)
            removed.append(note.prefix)
        file.unlink()
    return removed


class StreamingSource:
    """Batches of all records, shuffled by StreamingDataset; an epoch has every record row (all views)."""

    def __init__(self, config: DataConfig, num_records: int, fingerprint: dict[str, Any]) -> None:
        self.config, self.num_images, self.fingerprint = config, num_records, fingerprint

    def batches(self, *, start_step: int, global_batch: int, seed: int, ranks: Ranks) -> Iterator[Batch]:
        """This rank's batches from `start_step` on; drops an epoch's incomplete batch; never ends."""
        # Opened before the iterator is there: ranks meet for it, which a thread of one of them must not do.
        share = global_batch // ranks.world_size
        dataset = _open_streaming(self.config, share, seed, ranks)
        steps_per_epoch = dataset.size // global_batch
        if steps_per_epoch == 0:
            raise UserError(
                f"{self.config.path} has {dataset.size} records, fewer than "
                f"optimizer.global_batch={global_batch}; lower the batch, or copy them and use data.loader=memory"
            )
        return self._batches(dataset, start_step, global_batch, seed, ranks)

    def _batches(self, dataset: Any, start_step: int, global_batch: int, seed: int, ranks: Ranks) -> Iterator[Batch]:
        from torch.utils.data import DataLoader

        steps_per_epoch = dataset.size // global_batch
        epoch, step = divmod(start_step, steps_per_epoch)
        loader = DataLoader(
            dataset,
            batch_size=global_batch // ranks.world_size,
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
    try:
        from streaming import StreamingDataset  # heavy import: only where it is used
    except ModuleNotFoundError as error:
        advice = "install it, or copy the records and use data.loader=mapped without data.remote"
        raise refuse("data.loader", config.loader, "mosaicml-streaming to be installed", advice) from error
    folder = Path(tempfile.gettempdir())
    with open(folder / "nvg-streaming.lock", "w") as lock:
        if ranks.local_rank == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
            remove_dead(folder / _CLAIMS_FOLDER)
        ranks.barrier()  # the node's other ranks wait until their leader holds the lock
        dataset = StreamingDataset(
            remote=config.remote,
            local=config.path,
            validate_hash=SHARD_HASH,
            shuffle=True,
            shuffle_algo=config.shuffle_algo,
            shuffle_seed=seed,
            shuffle_block_size=config.shuffle_block_size,
            num_canonical_nodes=config.num_canonical_nodes,
            batch_size=share,
        )
        if ranks.local_rank == 0:
            claim(dataset._shm_prefix_int, dataset._filelock_root, folder / _CLAIMS_FOLDER)
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
