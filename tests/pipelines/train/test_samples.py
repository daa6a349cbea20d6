"""Pictures of samples during a training: the average's weights, the same classes and noise each time."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import save_generators, save_tokenizer
from tiny_training import build_task, tiny_config

from nvg.checkpoints import load_network, load_weights, save_weights, weights_hash
from nvg.errors import UserError
from nvg.models import ContentGenerator, StructureGenerator
from nvg.records import RecordDataset, RecordLayout
from pipelines.train.config import SampleSheetConfig
from pipelines.train.launch import run_training
from pipelines.train.samples import GeneratorSheets

PNG = b"\x89PNG"
DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_tokenizer(folder / "tokenizer")
    save_generators(folder)
    return folder


def sheets(root, network_type, **changes):
    stream = np.random.Generator(np.random.Philox(key=[0, 0]))
    shard = np.zeros(10, RecordLayout(16).dtype)
    shard["image"] = shard["label"] = np.arange(10)
    shard["structure"] = np.stack([stream.permutation(16) for _ in range(10)])
    records = RecordDataset(
        folder=root,
        manifest={"tokenizer_hash": weights_hash(root / "tokenizer", "ema"), "num_positions": 16},
        image=shard["image"],
        view=shard["view"],
        label=shard["label"],
        shards=[shard],
    )
    config = SampleSheetConfig(every_steps=2, tokenizer=str(root / "tokenizer"), num_images=3)
    kind = "content" if network_type is ContentGenerator else "structure"
    model = load_network(network_type, root / kind).config
    return GeneratorSheets(network_type=network_type, model=model, records=records, config=replace(config, **changes))


@pytest.mark.slow
def test_content_paints_on_the_maps_of_records_and_always_the_same(root):
    weights = load_network(ContentGenerator, root / "content").state_dict()
    drawn = sheets(root, ContentGenerator)
    first = drawn.draw(weights, DEVICE)
    assert first is not None
    assert first.startswith(PNG)
    assert drawn.draw(weights, DEVICE) == first
    other = {name: value + 0.5 if value.ndim > 1 else value for name, value in weights.items()}
    assert drawn.draw(other, DEVICE) != first


def test_partner_draws_the_other_half(root, tmp_path):
    content = load_network(ContentGenerator, root / "content")
    structure = load_network(StructureGenerator, root / "structure")
    assert sheets(root, ContentGenerator, partner=str(root / "structure")).draw(content.state_dict(), DEVICE)
    assert sheets(root, StructureGenerator, partner=str(root / "content")).draw(structure.state_dict(), DEVICE)
    # A partner that trains beside it has no checkpoint at first.
    (tmp_path / "content" / "checkpoints").mkdir(parents=True)
    beside = sheets(root, StructureGenerator, partner=str(tmp_path / "content"))
    assert beside.draw(structure.state_dict(), DEVICE) is None


def test_wrong_tokenizer_and_missing_partner_are_named(root, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    save_weights(tokenizer, {"a": torch.ones(1)}, {}, "tokenizer", name="ema")
    with pytest.raises(UserError, match=r"samples\.tokenizer is .*tokenizer, whose ema weights(.|\n)*the records in"):
        sheets(root, ContentGenerator, tokenizer=str(tokenizer))
    with pytest.raises(UserError, match=r"samples\.partner is empty"):
        sheets(root, StructureGenerator)
    with pytest.raises(ValueError, match=r"samples\.tokenizer empty"):
        SampleSheetConfig(every_steps=5)


def test_a_tokenizer_or_partner_that_is_another_by_now_gives_no_picture_and_ends_no_training(root, tmp_path, caplog):
    for name in ("tokenizer", "structure"):
        shutil.copytree(root / name, tmp_path / name)
    (tmp_path / "structure" / "trainer.json").write_text('{"data": {"tokenizer_hash": "ab"}}')
    with pytest.raises(UserError, match=r"the generator in .*structure: ab…"):
        sheets(root, ContentGenerator, partner=str(tmp_path / "structure"))
    drawn = sheets(root, ContentGenerator, tokenizer=str(tmp_path / "tokenizer"))
    tensors, config = load_weights(tmp_path / "tokenizer", "tokenizer", "ema")
    tensors["dequantizer.codebook"] *= 2
    save_weights(tmp_path / "tokenizer", tensors, config, "tokenizer", "ema")
    weights = load_network(ContentGenerator, root / "content").state_dict()
    assert drawn.draw(weights, DEVICE) is None
    assert "no picture: samples.tokenizer is" in caplog.text


def test_loop_keeps_a_picture_every_so_many_steps_of_the_averaged_weights(tmp_path):
    seen = []

    class Sheets:
        every_steps = 5

        def draw(self, weights, device):
            seen.append({name: value.clone() for name, value in weights.items()})
            return PNG

    run_training(tiny_config(tmp_path), lambda config: replace(build_task(config), samples=Sheets()))
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000005.png", "step-00000010.png"]
    run_training(tiny_config(tmp_path / "five", stop_after_steps=5), build_task)
    average, _ = load_weights(tmp_path / "five" / "checkpoints" / "step-00000005", "tiny", "ema")
    assert all(torch.equal(average[name], seen[0][name]) for name in average)
    assert asdict(SampleSheetConfig())["every_steps"] is None
