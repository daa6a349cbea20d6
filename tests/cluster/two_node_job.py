"""Run by test_two_nodes.py inside a cluster of two nodes: precompute and the pool with one actor and with two.

Two CPUs for each actor and two on each node: two actors can only live on two nodes. The first result of a
run is held back until all its actors live, so that none of them finds the work done when it arrives.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.session import SessionConfig, cluster_session
from eval.features.extractors import SMALL_IMAGE, ExtractorSpec
from eval.pool.jobs import run_pool
from eval.pool.pool import PoolConfig
from eval.pool.samplers import GeneratorSpec
from nvg.sampling import SamplingConfig
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import precompute
from pipelines.sources import SourceConfig

START_TIMEOUT_S = 60.0


def nodes_of(class_name: str, known: set[str], num_actors: int) -> dict[str, str]:
    """Node of each new actor of a class, by actor id, once ``num_actors`` of them have lived."""
    from ray.util.state import list_actors

    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        found = {
            str(getattr(actor, "actor_id")): str(getattr(actor, "node_id"))  # noqa: B009 (the state API is untyped)
            for actor in list_actors(filters=[("class_name", "=", class_name)], limit=1000)
            if getattr(actor, "node_id")  # noqa: B009
        }
        new = {actor: node for actor, node in found.items() if actor not in known}
        if len(new) >= num_actors:
            return new
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(new)} of {num_actors} {class_name}s live after {START_TIMEOUT_S} s")
        time.sleep(0.1)


class Nodes:
    """Nodes of the actors of one run; call it with every event."""

    def __init__(self, class_name: str, num_actors: int) -> None:
        self.class_name, self.num_actors = class_name, num_actors
        self.known = set(nodes_of(class_name, set(), 0))
        self.by_actor: dict[str, str] = {}

    def __call__(self, event: object) -> None:
        if not self.by_actor:
            self.by_actor = nodes_of(self.class_name, self.known, self.num_actors)


def run_precompute(root: Path, num_actors: int) -> dict[str, object]:
    """Records of the small split of the digits: hashes of all files, nodes, processes that committed."""
    nodes = Nodes("EncodingActor", num_actors)
    pids: set[int] = set()

    def on_event(event) -> None:
        nodes(event)
        if event.kind == "committed":
            pids.add(event.pid)

    config = PrecomputeConfig(
        source=SourceConfig(split="test"),
        tokenizer=str(root / "tokenizer"),
        output=str(root / f"records-{num_actors}"),
        num_actors=num_actors,
        cpus_per_actor=2.0,
        images_per_unit=30,
    )
    folder = precompute(config, on_event=on_event)
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".precompute.lock"
    }
    return {"files": hashes, "nodes": sorted(nodes.by_actor.values()), "num_pids": len(pids)}


def run_sampling(root: Path, num_actors: int) -> dict[str, object]:
    """Forty images: hash of all of them, nodes."""
    nodes = Nodes("ChunkWorker", num_actors)
    on_chunk: Callable[[int], None] = nodes
    result = run_pool(
        GeneratorSpec(
            tokenizer=str(root / "tokenizer"),
            content=str(root / "content"),
            structure=str(root / "structure"),
            num_classes=10,
            sampling=SamplingConfig(num_flow_steps=3),
            seed=5,
        ),
        config=PoolConfig(num_samples=40, num_actors=num_actors, chunk_size=10, batch_size=5, cpus_per_actor=2.0),
        extractor=ExtractorSpec(kind=SMALL_IMAGE, path=str(root / "features")),
        folder=root / f"samples-{num_actors}",
        on_chunk=on_chunk,
    )
    return {
        "images": result.images_sha256(),
        "all": result.samples.digest(),
        "num_deaths": result.num_deaths,
        "nodes": sorted(nodes.by_actor.values()),
    }


def main(root: Path) -> None:
    """Write ``result.json``."""
    with cluster_session(SessionConfig()):
        found = {
            f"{name}-{num_actors}": run(root, num_actors)
            for name, run in (("precompute", run_precompute), ("sampling", run_sampling))
            for num_actors in (1, 2)
        }
    (root / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
