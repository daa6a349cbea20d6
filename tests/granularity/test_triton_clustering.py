"""Triton's clustering in Triton's interpreter, which every machine has, and compiled for a GPU that is not there."""

import json
import logging
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from nvg import precision
from nvg.errors import NotFiniteError, UserError
from nvg.granularity import cluster_latents, clustering, require_clustered
from nvg.tokenizer import Tokenizer, TokenizerConfig
from nvg.training import TokenizerLossConfig, TokenizerObjective
from pipelines.precompute import unit

pytest.importorskip("triton")
triton_clustering: Any = import_module("nvg.granularity.triton_clustering")

# Triton's own library is bound to the interpreter when it is imported: so it has a process of its own.
INTERPRETED = """
import json, sys
import torch
from test_clustering import LATENTS
from nvg.errors import UserError
from nvg.granularity import cluster_halves, cluster_latents, clustering, require_clustered
from nvg.granularity.clustering import merge_in_rounds
from nvg.granularity.triton_clustering import merge_in_triton

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
equal = {}
for num_positions in (4, 16, 64, 256):  # the interpreter takes a second for an image of 256
    levels = num_positions.bit_length() - 1
    kinds = {make.__name__: make(1, num_positions, generator) for make in LATENTS}
    kinds["denormal"] = kinds["random_latents"] * 2.0**-130
    kinds["large"] = kinds["random_latents"] * 2.0**60
    if num_positions >= 64:
        kinds = {name: kinds[name] for name in ("random_latents", "tied_latents")}
    for name, latent in kinds.items():
        latent = latent.contiguous()
        members, failed = merge_in_triton(latent, levels)
        same = torch.equal(members, merge_in_rounds(latent, levels))
        equal[f"{name} {num_positions}"] = bool(same and not failed.any())

latent = LATENTS[0](3, 4, generator)
expected = cluster_latents(latent), cluster_halves(latent)
clustering._merge_on_device = lambda device: merge_in_triton
equal["maps"] = bool(torch.equal(cluster_latents(latent), expected[0]))
equal["halves"] = bool(torch.equal(cluster_halves(latent), expected[1]))
equal["no images"] = tuple(cluster_latents(latent[:0]).shape) == (0, 4)

messages = {}
for value in ("nan", "inf", "1e30", "3e38"):
    bad = latent.clone()
    bad[1, 3, 0] = float(value)
    maps = cluster_latents(bad, checked=False)
    good = [0, 2]
    equal[f"others beside {value}"] = bool(torch.equal(maps[good], expected[0][good]) and not maps[1].any())
    for way in (lambda: cluster_latents(bad), lambda: require_clustered(maps, bad)):
        try:
            way()
        except UserError as error:
            messages.setdefault(value, []).append(f"{type(error).__name__}: {error}")
print(json.dumps({"equal": equal, "messages": messages}))
"""


@pytest.fixture(scope="module")
def interpreted():
    here = Path(__file__).resolve()
    paths = os.pathsep.join(map(str, (here.parents[2], here.parent, here.parents[1] / "support")))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_equals_the_rounds_label_by_label(interpreted):
    assert len(interpreted["equal"]) == 2 * 8 + 2 * 2 + 7
    assert [name for name, equal in interpreted["equal"].items() if not equal] == []


@pytest.mark.slow
def test_what_cannot_be_clustered_is_refused_by_the_same_message(interpreted):
    for value in ("nan", "inf"):
        for message in interpreted["messages"][value]:
            assert message.startswith("NotFiniteError: latents of batch rows [1] are not finite")
    for value in ("1e30", "3e38"):
        for message in interpreted["messages"][value]:
            assert message.startswith("UserError: distances between latents overflow float32")
    assert all(len(messages) == 2 for messages in interpreted["messages"].values())


@pytest.fixture
def gpu_without_use(monkeypatch):
    """A GPU of some capability, of which only the name is asked."""

    def of(capability):
        clustering._triton_merge.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
        return torch.device("cuda:0")

    yield of
    clustering._triton_merge.cache_clear()


@pytest.mark.parametrize(
    ("reason", "capability", "installed"),
    [("Triton is not installed", (9, 0), False), ("capability 6.1; Triton begin at 7.0", (6, 1), True)],
)
def test_where_triton_is_not_the_rounds_are_taken_and_it_is_said_once(
    gpu_without_use, monkeypatch, caplog, reason, capability, installed
):
    device = gpu_without_use(capability)
    monkeypatch.setattr(precision, "find_spec", lambda name: name if installed else None)
    with caplog.at_level(logging.WARNING):
        assert [clustering._merge_on_device(device) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert reason in caplog.text
    assert "cuda:0 goes in rounds" in caplog.text


def test_a_triton_that_finds_other_clusters_is_not_used(gpu_without_use, monkeypatch, caplog):
    device, arange = gpu_without_use((9, 0)), torch.arange
    monkeypatch.setattr(torch, "arange", lambda *given, device=None, **named: arange(*given, **named))
    for found, said in ((0, "finds other clusters"), (RuntimeError("no C compiler\nat all"), "no C compiler")):
        clustering._triton_merge.cache_clear()

        def merge(latent_BLC, num_levels, found=found):
            if isinstance(found, Exception):
                raise found
            return torch.zeros(2, 1, 16, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)

        monkeypatch.setattr(triton_clustering, "merge_in_triton", merge)
        assert clustering._merge_on_device(device) is None
        assert said in caplog.text
    assert "at all" not in caplog.text


def test_nothing_waits_and_a_level_is_one_kernel(monkeypatch):
    """On a device without values, whose reading is an error."""
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *tensors, **sizes: launched.append((grid, sizes["N"]))

    monkeypatch.setattr(triton_clustering, "merge_level", Kernel())
    monkeypatch.setattr(clustering, "_merge_on_device", lambda device: triton_clustering.merge_in_triton)
    maps = cluster_latents(torch.empty(5, 256, 32, device="meta"), checked=False)
    assert maps.is_meta
    assert maps.shape == (5, 256)
    assert launched == [((5,), 256 >> level) for level in range(8)]
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        cluster_latents(torch.empty(5, 256, 32, device="meta"))


def test_maps_that_are_none_are_refused_where_the_host_reads_them():
    latent = torch.randn(3, 16, 2)
    structure = cluster_latents(latent, checked=False)
    require_clustered(structure, latent)
    structure[2] = 0
    with pytest.raises(UserError, match="overflow float32"):
        require_clustered(structure, latent)
    latent[2, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"rows \[2\] are not finite"):
        require_clustered(structure, latent)


def test_training_stops_at_a_map_that_is_none(monkeypatch):
    """The loss is no number, which the loop refuses with the step and its samples; until then nothing waits."""
    shape: dict[str, Any] = {"image_size": 16, "image_channels": 1, "base_width": 8, "width_multipliers": [1, 1, 1]}
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(**shape, norm_groups=4, num_res_blocks=1, codebook_size=16))
    objective = TokenizerObjective(tokenizer, TokenizerLossConfig())
    batch, noise = {"image": torch.rand(3, 1, 16, 16)}, objective.draw_noise(seed=0, step=0, global_batch=3)
    assert torch.isfinite(objective(batch, noise)[0])
    maps = tokenizer.structure_maps(tokenizer.encode(batch["image"]))
    maps[1] = 0
    monkeypatch.setattr(tokenizer, "structure_maps", lambda latent_BLC, checked: maps)
    loss, metrics = objective(batch, noise)
    assert torch.isnan(loss)
    assert all(torch.isfinite(value) for value in metrics.values())


def test_precompute_refuses_a_map_that_is_none_before_it_writes():
    latent = torch.randn(2, 16, 4)
    tokenizer = SimpleNamespace(tokenize_latent=lambda latent_BLC, checked: (None, torch.zeros(2, 16).long()))
    batch = unit._Encoded(views=[], images_BCSS=latent, latent_BLC=latent)
    with pytest.raises(UserError, match="overflow float32"):
        unit._tokenize(batch, cast(Any, tokenizer), unit.CanvasSums(), None)


@pytest.mark.parametrize("number", [256, 128, 2])
def test_compiles_for_sm_90_without_a_spill(number, tmp_path):
    """Ahead of time, as on a machine with that GPU; and no operation that would round otherwise than the rounds do."""
    pytest.importorskip("triton.backends.nvidia.compiler")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    merge_level, options = triton_clustering.merge_level, triton_clustering.level_options(number)
    floats, ints = ("means_BCN", "merged_BCP", "distance_BNN"), ("members_BL", "reordered_BL", "flags_BFN", "failed_B")
    signature = dict.fromkeys(floats, "*fp32") | dict.fromkeys(ints, "*i32") | {"C": "i32"}
    order = {name: signature.get(name, "constexpr") for name in merge_level.arg_names}
    constants = {"L": 256, "N": number, "J": options.pop("J"), "F": options.pop("F")}
    compiled = triton.compile(
        ASTSource(merge_level, order, constants, {}), target=GPUTarget("cuda", 90, 32), options=options
    )
    ptx: str = compiled.asm["ptx"]
    assert ".target sm_90" in ptx
    assert "sqrt.rn.f32" in ptx
    assert not re.search(r"\bfma\.|\.ftz|\.approx", ptx)
    assert compiled.metadata.shared < 48 * 1024
    (tmp_path / "level.ptx").write_text(ptx)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    words = [tool, "-v", "-arch=sm_90a", tmp_path / "level.ptx", "-o", tmp_path / "level.cubin"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    registers = int(re.findall(r"Used (\d+) registers", said)[0])
    assert 32 * options["num_warps"] * registers <= 64 * 1024  # one program a multiprocessor


@pytest.mark.gpu
def test_on_a_gpu_it_is_used_and_never_waits():
    latent = torch.randn(8, 256, 32, generator=torch.Generator().manual_seed(0))
    assert clustering._merge_on_device(torch.device("cuda:0")) is not None
    on_device = latent.cuda()
    cluster_latents(on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        maps = cluster_latents(on_device, checked=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(maps.cpu(), cluster_latents(latent))
