"""Several Ray nodes on one machine, for tests and for trying things out.

The nodes are processes of their own and the caller is not connected to them: programs join through
RAY_ADDRESS, so a cluster of two nodes can live beside the session a test process already holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.session import MIN_OBJECT_STORE_BYTES, SessionConfig, free_port, session_environment


@contextmanager
def simulated_cluster(*, num_nodes: int = 2, num_cpus_per_node: int = 2) -> Iterator[dict[str, str]]:
    """Run a Ray cluster of several nodes on this machine.

    Args:
        num_nodes: number of nodes, the head included, at least 1.
        num_cpus_per_node: logical CPUs of each node.

    Yields:
        The whole environment for a subprocess that shall join the cluster (RAY_ADDRESS included).
    """
    if num_nodes < 1:
        raise ValueError(f"num_nodes is {num_nodes}; a cluster has at least one node")
    os.environ.update(session_environment(SessionConfig(address="local")))
    from ray.cluster_utils import Cluster

    node = {"num_cpus": num_cpus_per_node, "num_gpus": 0, "object_store_memory": MIN_OBJECT_STORE_BYTES}
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
    head = {**node, **ports, "include_dashboard": True}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(wait=True, **node)
        yield {**os.environ, "RAY_ADDRESS": str(cluster.address)}
    finally:
        cluster.shutdown()
