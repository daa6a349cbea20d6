"""Units and merge without Ray: records are the tokenizer's, statistics are exact, nothing is half done."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.granularity import StageLayout, cluster_latents
from nvg.pixels import to_model_range
from nvg.records import RecordDataset, read_manifest
from nvg.tokenizer import Dequantizer, Tokenizer, quantize_for_training
from pipelines.precompute.job import precompute
from pipelines.precompute.plan import DatasetFolder
from pipelines.sources import SourceConfig, open_source


@pytest.fixture
def prepared(case, tmp_path) -> Any:
    return case.Prepared(case.job(tmp_path))


def test_every_view_is_recorded_once_with_its_label_and_name(finished):
    records = RecordDataset.open(finished.folder.root, verify_hashes=True)
    pairs = sorted(zip(records.image.tolist(), records.view.tolist(), strict=True))
    assert pairs == [(image, view) for image in range(297) for view in range(2)]
    assert np.array_equal(records.label, finished.source.labels[records.image])
    names = (finished.folder.root / "sources.txt").read_text().splitlines()
    assert names == finished.source.keys
    assert records.image[:40].tolist() != sorted(records.image[:40])


def test_every_map_is_a_permutation(finished):
    records = RecordDataset.open(finished.folder.root)
    structure = np.concatenate(records.shards)["structure"]
    assert np.array_equal(np.sort(structure, axis=1), np.tile(np.arange(16), (594, 1)))


def test_records_decode_to_the_canvas_that_was_quantised(finished):
    """A batch as the actor had it: ids exactly, canvases by the same function, from the dequantizer beside them."""
    records, size = RecordDataset.open(finished.folder.root), finished.config.batch_size
    first = slice(0, size)
    pixels = [
        finished.source.read(*map(int, pair)) for pair in zip(records.image[first], records.view[first], strict=True)
    ]
    tokenizer = load_network(Tokenizer, finished.config.tokenizer).requires_grad_(False)
    latent = tokenizer.encode(to_model_range(np.stack(pixels), planes=True))
    batch = {name: torch.from_numpy(array) for name, array in records.batch(range(size)).items()}
    quantized = quantize_for_training(
        latent, batch["structure"], tokenizer.dequantizer, commitment_weight=0.25, soft_assignment=False
    )
    assert torch.equal(cluster_latents(latent), batch["structure"])
    assert torch.equal(quantized.content_ids_BT, batch["content_ids"])
    stored = load_network(Dequantizer, finished.folder.root, "dequantizer").requires_grad_(False)
    decoded = stored.canvases(batch["content_ids"], batch["structure"])
    assert torch.equal(decoded, tokenizer.dequantizer.canvases(batch["content_ids"], batch["structure"]))
    torch.testing.assert_close(decoded[:, -1], quantized.canvas_BLC, rtol=0, atol=1e-5)


def test_canvas_scales_are_those_of_one_pass_over_everything(finished):
    records = RecordDataset.open(finished.folder.root)
    dequantizer = load_network(Dequantizer, finished.folder.root, "dequantizer")
    batch = {name: torch.from_numpy(array) for name, array in records.batch(range(594)).items()}
    with torch.no_grad():
        canvases = dequantizer.canvases(batch["content_ids"], batch["structure"]).double()
    deviations = canvases.transpose(0, 1).flatten(1).std(1, unbiased=False)
    scales = records.manifest["canvas_scales"]
    assert scales[0] == 1.0
    np.testing.assert_allclose(scales[1:], 1 / deviations.numpy(), rtol=1e-6)


def test_manifest_counts_what_the_records_hold(finished):
    records = RecordDataset.open(finished.folder.root)
    manifest = read_manifest(finished.folder.root)
    layout = StageLayout(16)
    ids = np.concatenate(records.shards)["content_ids"]
    usage = [len(np.unique(ids[:, layout.tokens(stage)])) / 64 for stage in range(5)]
    assert manifest["codebook_usage"] == usage
    assert manifest["class_histogram"] == np.bincount(records.label).tolist()
    assert (manifest["num_images"], manifest["num_views"], manifest["num_records"]) == (297, 2, 594)
    assert manifest["class_names"] == [str(digit) for digit in range(10)]
    assert manifest["source_fingerprint"] == finished.source.fingerprint
    assert manifest["library_versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


@pytest.mark.cluster
def test_plain_streaming_dataset_opens_it(case, finished):
    from streaming import StreamingDataset

    records = RecordDataset.open(finished.folder.root)
    streaming = StreamingDataset(local=str(finished.folder.root), batch_size=1)
    assert len(streaming) == len(records)
    assert len(list(finished.folder.root.glob("*.mds"))) > case.NUM_UNITS
    stored = np.concatenate(records.shards)
    for index in range(0, len(records), 7):
        sample = streaming[index]
        assert sample["image"] == records.image[index]
        assert np.array_equal(sample["structure"], stored["structure"][index])
        assert np.array_equal(sample["content_ids"], stored["content_ids"][index])


def test_merging_again_changes_no_byte(case, finished):
    before = case.file_hashes(finished.folder.root)
    finished.merge()
    assert case.file_hashes(finished.folder.root) == before


def test_order_of_the_units_changes_no_byte(case, finished, prepared):
    for unit in reversed(range(case.NUM_UNITS)):
        prepared.encode(unit)
    prepared.merge()
    assert case.file_hashes(prepared.folder.root) == case.file_hashes(finished.folder.root)


def test_complete_data_set_is_left_alone(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.root.glob("[!.]*")}
    assert precompute(finished.config) == finished.folder.root
    assert {path: path.stat().st_mtime_ns for path in finished.folder.root.glob("[!.]*")} == before


def test_damaged_part_is_done_again(case, finished, prepared):
    prepared.run()
    shard = next(prepared.folder.part(3).glob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-5])
    assert sorted(prepared.folder.committed(prepared.plan)) == [0, 1, 2, 4, 5]
    prepared.encode(3)
    prepared.merge()
    assert case.file_hashes(prepared.folder.root) == case.file_hashes(finished.folder.root)


class FailingSource:
    """A source whose disk fails at one image."""

    def __init__(self, config: SourceConfig, failing_index: int) -> None:
        self._source = open_source(config)
        self._failing_index = failing_index

    def __getattr__(self, name: str):
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def read_bytes(self, index: int) -> bytes:
        if index == self._failing_index:
            raise OSError(5, "Input/output error")
        return self._source.read_bytes(index)


def test_unit_cut_short_leaves_nothing_and_others_stay(case, tmp_path):
    config = case.job(tmp_path)
    prepared = case.Prepared(config)
    failing = case.Prepared(config, source=FailingSource(config.source, int(prepared.plan.units[1][40])))
    failing.encode(0)
    with pytest.raises(OSError, match="Input/output error"):
        failing.encode(1)
    assert sorted(path.name for path in failing.folder.parts.iterdir()) == ["part-00000", "plan.json"]
    assert sorted(prepared.folder.committed(prepared.plan)) == [0]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond a size: what a full disk looks like to the writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_one_clear_message_and_finished_units_stay(case, finished, prepared):
    prepared.encode(0)
    with (
        largest_file(3000),
        pytest.raises(UserError, match="cannot be written: File too large; finished units"),
    ):
        prepared.encode(1)
    assert sorted(prepared.folder.committed(prepared.plan)) == [0]
    assert not list(prepared.folder.parts.glob("tmp-*"))
    prepared.run()
    assert case.file_hashes(prepared.folder.root) == case.file_hashes(finished.folder.root)


def test_second_driver_is_refused_while_the_first_works(tmp_path):
    folder = DatasetFolder(tmp_path / "data")
    with folder.locked():
        second = folder.locked()
        with pytest.raises(UserError, match=r"another precompute job \(process \d+ on .*\) is writing"):
            second.__enter__()
    with folder.locked():
        pass


@pytest.mark.parametrize("parts_kept", [True, False])
def test_folder_of_another_tokenizer_is_refused_by_name(case, finished, tmp_path, parts_kept):
    records = tmp_path / "records"
    shutil.copytree(finished.folder.root, records)
    if not parts_kept:
        shutil.rmtree(records / "parts")
    other = case.job(tmp_path, output=str(records), tokenizer=str(case.write_tokenizer(tmp_path / "b", seed=1)))
    with pytest.raises(UserError, match=r"(?s)data set of .* this job .*tokenizer_hash: '\w+' against '\w+'"):
        precompute(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": SourceConfig(split="test", image_size=32)}, r"source\.image_size is 32; expected 16, .* built"),
        (
            {"source": SourceConfig(split="test", image_channels=3)},
            r"source\.image_channels is 3; expected 1, .* built",
        ),
        ({"tokenizer": "nowhere"}, "nowhere"),
    ],
)
def test_unfitting_tokenizer_is_named(case, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        precompute(case.job(tmp_path, **changes))


def test_collapsed_tokenizer_is_named(case, tmp_path):
    config = case.job(tmp_path)
    prepared = case.Prepared(config)
    for parameter in prepared.tokenizer.dequantizer.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(UserError, match=r"canvas x_0 has standard deviation 0\.0"):
        prepared.run()
    assert not (prepared.folder.root / "index.json").exists()


def test_skipped_inputs_are_listed_in_the_manifest(case, tmp_path):
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    (root / "a" / "00.png").write_bytes(b"")
    (root / "b" / "notes.txt").write_text("no image")
    source = SourceConfig(kind="folder", path=str(root), split="all", max_bad_fraction=0.05)
    prepared = case.Prepared(case.job(tmp_path, source=source))
    manifest = json.loads((prepared.run() / "manifest.json").read_text())
    assert manifest["skipped"] == [
        {"key": "b/notes.txt", "reason": "not an image by its name"},
        {"key": "a/00.png", "reason": "empty file"},
    ]
    assert manifest["num_images"] == 39
    assert manifest["class_histogram"] == [19, 20]


@pytest.mark.parametrize(
    "change", [{"tokenizer": ""}, {"output": ""}, {"num_actors": 0}, {"batch_size": 0}, {"shard_bytes": 1}]
)
def test_impossible_settings_are_named(case, tmp_path, change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .*; expected"):
        case.job(tmp_path, **change)
