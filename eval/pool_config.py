"""Size and shape of the pools."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ChunkPoolConfig:
    """Shape of a pool.

    Attributes:
        num_actors: workers that compute at the same time.
        chunk_size: items per file, the unit of resuming; a multiple of batch_size.
        batch_size: items computed together; part of the protocol, since it can move rounding.
        threads_per_actor: torch threads of each worker; part of the protocol too.
        cpus_per_actor: CPUs reserved in Ray for each worker; may be less than one on a small machine.
        gpus_per_actor: GPUs reserved for each worker; above 0 the worker computes on its GPU.
        max_tries: how often a chunk is begun before the run gives up on it.
    """

    num_actors: int = 1
    chunk_size: int = 250
    batch_size: int = 250
    threads_per_actor: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    max_tries: int = 3

    def __post_init__(self) -> None:
        for name in ("num_actors", "chunk_size", "batch_size", "threads_per_actor", "max_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.chunk_size % self.batch_size:
            raise ValueError(
                f"chunk_size: found {self.chunk_size}, expected a multiple of batch_size "
                f"({self.batch_size}), "
                "so that every batch has the same size"
            )
        if self.cpus_per_actor < 0 or self.gpus_per_actor < 0:
            raise ValueError(
                f"cpus_per_actor, gpus_per_actor: found {self.cpus_per_actor}, {self.gpus_per_actor}; "
                "expected numbers of at least 0"
            )

    @property
    def device(self) -> str:
        """Device a worker computes on."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"


@dataclass(frozen=True, kw_only=True)
class PoolConfig(ChunkPoolConfig):
    """Size and shape of the sampling pool.

    Attributes:
        num_samples: images wanted; a multiple of the class count gives exactly equal classes.
        seed: seed of all samples.
    """

    num_samples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 1:
            raise ValueError(f"num_samples: found {self.num_samples}, expected at least 1")
