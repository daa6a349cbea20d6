"""Work spread over two Ray nodes gives the bytes of one actor on one node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_networks import save_generators, save_tokenizer

from eval.features.small_network import FeatureNetwork, FeatureNetworkConfig, save_feature_network

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

JOB = Path(__file__).with_name("two_node_job.py")


@pytest.fixture(scope="module")
def result(two_node_environment, repository, tmp_path_factory):
    root = tmp_path_factory.mktemp("two-nodes")
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    features = FeatureNetworkConfig(image_size=16, image_channels=1, num_classes=10, width=8)
    save_feature_network(FeatureNetwork(features), root / "features")
    done = subprocess.run(
        [sys.executable, str(JOB), str(root)],
        env={**two_node_environment, "PYTHONPATH": str(repository)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "result.json").read_text())


def test_precompute_on_two_nodes_writes_the_bytes_of_one_actor(result):
    alone, spread = result["precompute-1"], result["precompute-2"]
    assert (len(set(alone["nodes"])), len(set(spread["nodes"]))) == (1, 2)
    assert spread["num_pids"] == 2  # both actors committed units
    assert {"index.json", "manifest.json", "dequantizer.safetensors"} <= spread["files"].keys()
    assert spread["files"] == alone["files"]


def test_a_node_lost_in_mid_unit_changes_no_byte(repository):
    script = repository / "benchmarks" / "precompute_kills.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "1", "--kinds", "node", "--views", "2"],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert [kill["kind"] for kill in report["kills"]] == ["node"]
    assert report["identical"]


def test_samples_drawn_on_two_nodes_are_those_of_one_actor_bitwise(result):
    alone, spread = result["sampling-1"], result["sampling-2"]
    assert (len(set(alone["nodes"])), len(set(spread["nodes"]))) == (1, 2)
    assert (spread["images"], spread["all"]) == (alone["images"], alone["all"])
    assert spread["num_deaths"] == 0
