"""The deepspeed launcher over a hostfile of two: the losses of one process, whoever starts the nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_networks import ON_DIGITS

from cluster.session import free_port
from pipelines.configuration import load_config
from pipelines.run_folder import read_metrics
from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SETTINGS = [
    *ON_DIGITS,
    "optimizer.total_images=96",
    "loop.log_every_steps=1",
]
# Both hosts are this machine: what is sent to a host runs here. Programs, options and ranks are the real ones.
STAND_INS = {
    "ssh": """while [[ "$1" == -* ]]; do case "$1" in -o) shift 2 ;; *) shift ;; esac; done
echo "$1" >> "$SENT"; shift; exec bash -c "$*" """,
    "pdsh": """[ "$1 $2 $4" = "-S -f -w" ] || exit 3
IFS=, read -ra hosts <<< "$5"; shift 5; number=0; jobs=()
for host in "${hosts[@]}"; do
    line="$*"; bash -c "${line//%n/$number}" & jobs+=($!); number=$((number + 1))
done
code=0; for job in "${jobs[@]}"; do wait "$job" || code=$?; done; exit $code""",
}


def test_a_hostfile_of_two_trains_as_one_process_does(repository, tmp_path):
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node-0 slots=1\nnode-1 slots=1\n")
    path = [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(repository),
        "HOSTFILE": str(hostfile),
        "SENT": str(tmp_path / "sent"),
    }
    run = [f"run_folder={tmp_path / 'run'}", *SETTINGS]

    def start(*more: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "cluster/deepspeed/train.sh", "pipelines.train.tokenizer", *run, *more],
            env={**environment, "MASTER_PORT": port, **variables},
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # From one of them: deepspeed asks ssh for the first host's address and has pdsh start both.
    port = str(free_port())
    launch = start("loop.stop_after_steps=3")
    assert launch.communicate(timeout=280)[0] is not None
    assert launch.returncode == 0
    assert set((tmp_path / "sent").read_text().split()) == {"node-0", "node-1"}
    assert len(read_metrics(tmp_path / "run")) == 3

    # Each by itself, as a batch system starts them: the same training goes on.
    port = str(free_port())
    launches = [start(NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1") for rank in range(2)]
    said = [launch.communicate(timeout=280)[0] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], said

    train_tokenizer(
        load_config(TokenizerRunConfig, None, [f"run_folder={tmp_path / 'alone'}", *SETTINGS, "loop.engine=plain"])
    )
    found, expected = ([row["loss"] for row in read_metrics(tmp_path / name)] for name in ("run", "alone"))
    assert len(found) == 6
    np.testing.assert_allclose(found, expected, rtol=1e-5)
