"""Replayed passes; CUDA graphs themselves on a GPU, and here what records, fills and reads them."""

from __future__ import annotations

import pytest
import torch
from reference_vectors import tiny_generators
from switched_networks import switched
from tiny_networks import draw

from nvg.errors import UserError
from nvg.sampling import capture_passes, graphs


@pytest.fixture
def recorded(monkeypatch):
    """Records as a graph does: the pass reads the same tensors and writes the same tensor at every replay."""
    recordings = []

    def record(run):
        output = torch.full_like(run(), torch.nan)
        recordings.append(output)
        return lambda: output.copy_(run()), output

    monkeypatch.setattr(graphs, "_record", record)
    return recordings


@pytest.mark.parametrize("content_input", ["canvas", "noised_canvas"])
@pytest.mark.parametrize("count", [2, 33])
def test_replayed_passes_draw_the_same_samples(recorded, content_input, count):
    """33 samples run both passes of guidance one after the other: neither may overwrite what the other gave."""
    eager = [draw(switched(content={"content_input": content_input}), range(count), seed=seed) for seed in (0, 1)]
    networks = switched(content={"content_input": content_input})
    graphs.replay_passes(*networks[:2])
    for seed, expected in enumerate(eager):
        found = draw(networks, range(count), seed=seed)
        assert torch.equal(found.content_ids_BT, expected.content_ids_BT)
        assert torch.equal(found.canvases_BSLC, expected.canvases_BSLC)
    # Guidance is 1 at the first stage; paired passes have a shape of their own.
    assert len(recorded) == (4 if count == 2 else 2)


def test_a_new_shape_is_a_new_recording(recorded):
    networks = tiny_generators()
    graphs.replay_passes(*networks[:2])
    for count in (2, 3, 2):
        draw(networks, range(count))
    assert len(recorded) == 2 * 4


def test_a_cpu_has_no_graphs():
    content, structure, _ = tiny_generators()
    with pytest.raises(UserError, match="the generators are on cpu; expected cuda"):
        capture_passes(content, structure)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_graphs_draw_the_same_samples_as_launched_kernels(precision):
    networks = content, structure, _ = tiny_generators()
    for network in networks:
        network.to("cuda")
    for generator in (content, structure):
        generator.trunk.matmul_dtype = precision
    expected = draw(networks, range(8))
    capture_passes(content, structure)
    for _ in range(2):
        found = draw(networks, range(8))
        assert torch.equal(found.content_ids_BT, expected.content_ids_BT)
        torch.testing.assert_close(found.canvases_BSLC, expected.canvases_BSLC, rtol=0, atol=1e-5)
