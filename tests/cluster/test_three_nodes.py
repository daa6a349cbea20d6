"""Jobs on a Ray cluster of three nodes with a token: what is refused before it starts, and nodes that are lost.

A node lost in each step of a whole experiment, and its head: `tests/long/test_node_losses.py`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import node_losses
import pytest
from chain_here import ChainHere
from chain_kills import digest
from node_losses import JobChain, three_nodes
from ray.util import get_node_ip_address
from ray_nodes import RayNodes

from pipelines.configuration import load_config
from pipelines.experiment.run import run_experiment
from pipelines.experiment.steps import ExperimentConfig
from pipelines.run_folder import read_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head that only drives and two nodes of two logical CPUs and a GPU that there is not."""
    with three_nodes() as nodes:
        nodes.add("one", "two")
        yield nodes


def run(nodes: RayNodes, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**nodes.environment, **variables},
        cwd=node_losses.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run_job(nodes: RayNodes, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An `nvg` command of this checkout as a job."""
    nvg = ["-m", "pipelines.cli.main"]
    return run(nodes, *nvg, "submit", "--address", nodes.job_server, "--", sys.executable, *nvg, *arguments)


# --- what is refused

KNOCK = """
import sys
import ray
from cluster.session import ClusterError, SessionConfig, cluster_session
from cluster.submit import JobConfig, submit

ray.__version__ = sys.argv[2] if sys.argv[2:] else ray.__version__
try:
    print("job:", submit(["true"], JobConfig(address=sys.argv[1])))
except ClusterError as error:
    print("job:", error)
try:
    with cluster_session(SessionConfig()) as session:
        print("joined:", session.num_cpus, session.num_gpus)
except ClusterError as error:
    print("joined:", error)
"""


def knock(nodes: RayNodes, *version: str, **variables: str) -> tuple[str, str]:
    """What a job and a driver are told by the cluster."""
    done = run(nodes, "-c", KNOCK, nodes.job_server, *version, **variables)
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith(("job: ", "joined: ")))
    assert said.keys() == {"job", "joined"}, done.stdout[-2000:] + done.stderr[-2000:]
    return said["job"], said["joined"]


def test_who_has_the_token_sends_jobs_and_joins(nodes):
    assert knock(nodes) == ("0", "4 3")


@pytest.mark.parametrize("variables", [{"RAY_AUTH_TOKEN": "b" * 64}, {"RAY_AUTH_MODE": "disabled"}])
def test_another_token_and_none_are_named(nodes, variables):
    for said in knock(nodes, **variables):
        assert "does not take this process's token: found RAY_AUTH_MODE=" in said
        assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in said


def test_another_version_of_ray_is_named(nodes):
    import ray

    job, joined = knock(nodes, "2.59.0")
    assert f"runs Ray {ray.__version__}, this process has 2.59.0; expected the same; install ray==" in job
    assert "has other versions than this process" in joined
    assert f"Ray: {ray.__version__} Python:" in joined
    assert "Ray: 2.59.0 Python:" in joined


SMALL = (
    "source.split=test",
    "source.num_views=1",
    "source.view_policy=center",
    "tokenizer.model.base_width=8",
    "tokenizer.optimizer.total_images=12800",
    "tokenizer.optimizer.warmup_images=0",
    "tokenizer.loss.soft_assignment_images=0",
    "tokenizer.loop.log_every_steps=1",
    "tokenizer.loop.checkpoint_every_steps=20",
    "precompute.images_per_unit=15",
    "generators=null",
    "evaluation=null",
)


@pytest.mark.long
def test_more_devices_than_there_are_and_folders_that_a_node_does_not_see_are_named(nodes, tmp_path):
    few = ("launcher: ray", "num_workers: 8", "cpus_per_worker: 0.25", "gpus_per_worker: 1")
    arguments = ["run", "demo/digits.yaml", f"folder={tmp_path}", "session.address=auto", *SMALL]
    done = run_job(nodes, *arguments, f"tokenizer.launch={{{', '.join(few)}}}")
    assert done.returncode == 2
    assert "launch.num_workers is 8, which takes 8 GPUs at launch.gpus_per_worker 1; expected at most 3" in done.stdout

    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path)]
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount anything, so no node can be kept from a folder")
    nodes.add("blind", inside=hide)
    try:
        done = run_job(nodes, *arguments)
    finally:
        nodes.lose("blind")
    assert done.returncode == 2
    blind = f"blind ({get_node_ip_address()})"  # Ray takes this machine's address for 127.0.0.1
    said = f"folder is {tmp_path}; 1 of the 4 nodes of the Ray cluster do not see it: {blind}; expected that"
    assert said in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert not (tmp_path / "tokenizer").exists()


# --- what is shared


def test_two_trainers_share_the_cluster_and_each_is_the_one_it_would_be_alone(nodes, tmp_path, monkeypatch):
    """Two experiments as two jobs at once, each a training of one worker: neither waits for the other's end."""
    short = (*SMALL, "tokenizer.optimizer.total_images=6400", "precompute=null")
    launch = "tokenizer.launch={launcher: ray, cpus_per_worker: 2.0}"

    def arguments(name: str, seed: int) -> list[str]:
        return ["run", "demo/digits.yaml", f"folder={tmp_path / name}", f"seed={seed}", *short]

    with ThreadPoolExecutor(2) as pool:
        names = ("first", "second")
        sent = [pool.submit(run_job, nodes, *arguments(name, seed), launch) for seed, name in enumerate(names)]
        done = [job.result() for job in sent]
    assert [job.returncode for job in done] == [0, 0], [job.stdout[-2000:] + job.stderr[-2000:] for job in done]
    ChainHere(monkeypatch)
    began, ended, losses = [], [], []
    for seed, name in enumerate(names):
        rows = read_metrics(tmp_path / name / "tokenizer")
        run_experiment(load_config(ExperimentConfig, "demo/digits.yaml", arguments(f"{name}-alone", seed)[2:]))
        alone = read_metrics(tmp_path / f"{name}-alone" / "tokenizer")
        assert len(rows) == 100
        assert [row["loss"] for row in rows] == [row["loss"] for row in alone]
        files = sorted((tmp_path / name / "tokenizer" / "checkpoints").glob("step-*/COMPLETE"))
        began.append(files[0].stat().st_mtime)
        ended.append(files[-1].stat().st_mtime)
        losses.append(rows[-1]["loss"])
    assert max(began) < min(ended), "one waited for the other"
    assert losses[0] != losses[1]


# --- what is lost


@pytest.mark.long
def test_a_node_and_the_head_are_lost_and_nobody_can_tell(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(node_losses, "NUM_STEPS", {"tokenizer": 200})
    monkeypatch.setitem(node_losses.PLACES, "tokenizer", place_in_the_tokenizer)
    chain = JobChain(tmp_path / "lost", nodes, SMALL)
    try:
        chain.lose_in("tokenizer")
        chain.lose_in("precompute")
        chain.lose_head()
        chain.start()
        chain.finish()
    finally:
        chain.end()
    ChainHere(monkeypatch)
    straight = tmp_path / "straight"
    run_experiment(load_config(ExperimentConfig, "demo/digits.yaml", [f"folder={straight}", *SMALL]))
    for folder in (straight, chain.folder):
        assert [row["step"] for row in read_metrics(folder / "tokenizer")] == list(range(1, 201))
    losses = [[row["loss"] for row in read_metrics(folder / "tokenizer")] for folder in (straight, chain.folder)]
    assert losses[0] == losses[1]
    kept = [path.relative_to(straight) for path in kept_files(straight)]
    assert len(kept) > 20
    assert [digest(chain.folder / path) for path in kept] == [digest(straight / path) for path in kept]


def place_in_the_tokenizer(chain: JobChain, share: float):
    file = chain.folder / "tokenizer" / "metrics.jsonl"
    return lambda: file.is_file() and len(read_metrics(file.parent)) >= share * 200


def kept_files(folder: Path) -> list[Path]:
    """Weights and records."""
    weights = folder.glob("tokenizer/checkpoints/step-00000200/*.safetensors")
    records = (path for path in (folder / "records").rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted([*weights, *records])
