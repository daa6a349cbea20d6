"""Exported folders: the same samples, hashes of the run, a card made of its results, and no mixture of models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_networks import save_generators, save_tokenizer

import nvg
from nvg.checkpoints import weights_hash
from nvg.errors import UserError
from nvg.sampling import SamplingConfig

FEW = SamplingConfig(num_flow_steps=2, content_guidance=7.0)
NOTICE = "The authors forbid commercial use."


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run")
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    hashes = {f"{kind}_sha256": weights_hash(root / kind, "ema") for kind in ("tokenizer", "content", "structure")}
    sampler = {**hashes, "sampling": {"num_flow_steps": 2, "content_guidance": 7.0}}
    results = {
        "scores": {
            "generated": {"num_images": 2000, "fid": 1.234, "precision": 0.51, "class_accuracy": 0.9},
            "held_out": {"num_images": 297, "fid": 0.4, "precision": 0.9, "class_accuracy": 0.99},
        },
        "caveats": [{"scores": ["precision"], "sets": ["generated"], "reason": "few images"}],
        "not_comparable_because": ["features are our own"],
        "protocol": {
            "extractor": {"kind": "nvg-small-image", "sha256": "e" * 64},
            "reference": {"images": 1000, "sha256": "f" * 64, "split": "train"},
            "pools": {"generated": {"sampler": sampler}},
            "rounding": "release",
        },
    }
    (root / "evaluation").mkdir()
    (root / "evaluation" / "results.json").write_text(json.dumps(results))
    return root


@pytest.fixture
def exported(run, tmp_path) -> Path:
    return nvg.load(run).save_pretrained(tmp_path / "model")


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_saved_and_loaded_it_draws_the_same(run, exported):
    first, second = nvg.load(run), nvg.Model.from_pretrained(exported)
    for mask in (None, np.tri(16)):
        one, other = (model.sample([3, "7"], per_class=2, seed=5, structure_mask=mask) for model in (first, second))
        assert np.array_equal(one.images, other.images)
    assert (second.sampling, second.scored_by, second.notices) == (FEW, "evaluation", [])
    again = second.save_pretrained(exported.parent / "again")
    assert files_of(again) == files_of(exported)
    for file in files_of(exported):
        assert (again / file).read_bytes() == (exported / file).read_bytes()


def test_what_lies_in_the_folder(run, exported):
    networks = [
        f"weights/{kind}/{file}"
        for kind in ("content", "structure", "tokenizer")
        for file in ("config.json", "ema.safetensors")
    ]
    assert files_of(exported) == sorted(["README.md", "model.json", "results.json", *networks])
    assert weights_hash(exported / "weights" / "content", "ema") == weights_hash(run / "content", "ema")
    assert json.loads((exported / "results.json").read_text()) == json.loads(
        (run / "evaluation" / "results.json").read_text()
    )


def test_the_card_says_what_the_results_say(exported):
    card = (exported / "README.md").read_text()
    for line in (
        "| samples | 2,000 | 1.23 | 0.510† | 0.900 |",
        "| real held-out images | 297 | 0.400 | 0.900 | 0.990 |",
        "* † precision: few images",
        "* not comparable with published scores: features are our own",
        f"* features: nvg-small-image, SHA-256 `{'e' * 64}`; scores compare with those in the same features alone",
        f"* reference: 1000 images, split train, SHA-256 `{'f' * 64}`",
        "* `num_flow_steps`: 2",
        "* classes (10): 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        "* content generator: depth 2, width 64, ema weights",
        f"* SHA-256 of the content's weights: `{weights_hash(exported / 'weights/content', 'ema')}`",
    ):
        assert line in card.splitlines(), (line, card)
    assert "Settings with which it was scored" in card
    assert not card.startswith("---\nlicense")


def test_settings_that_nothing_scored_are_said_to_be_so(run, tmp_path):
    folder = nvg.load(run, settings=SamplingConfig(num_flow_steps=3)).save_pretrained(tmp_path / "own")
    assert not (folder / "results.json").exists()
    assert "No evaluation has scored these weights." in (folder / "README.md").read_text()
    model = nvg.load(folder)
    assert (model.sampling.num_flow_steps, model.scored_by) == (3, None)
    assert "no evaluation has scored these weights; sampled as" in model.notices[0]


def test_a_licence_goes_along_and_is_shown(run, tmp_path, caplog):
    imported = shutil.copytree(run, tmp_path / "imported")
    (imported / "content" / "release.json").write_text(json.dumps({"licence": NOTICE}))
    folder = nvg.load(imported).save_pretrained(tmp_path / "model")
    caplog.clear()
    assert nvg.load(folder).notices == [NOTICE]
    assert [record.message for record in caplog.records] == [NOTICE]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert NOTICE in card
    assert json.loads((folder / "weights" / "content" / "release.json").read_text())["licence"] == NOTICE


def test_an_earlier_export_is_replaced_and_nothing_else_is(run, exported, tmp_path):
    (exported / "weights" / "structure" / "old.txt").touch()
    save_tokenizer(tmp_path / "spatial" / "tokenizer", structure="spatial")
    save_generators(tmp_path / "spatial")
    nvg.load(tmp_path / "spatial").save_pretrained(exported)
    assert not (exported / "weights" / "structure").exists()
    assert not (exported / "results.json").exists()
    assert nvg.load(exported).structure is None
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(UserError, match=r"folder is .*full'; expected a folder that is empty, missing, or an earlier"):
        nvg.load(run).save_pretrained(full)
    with pytest.raises(UserError, match="expected another one than the model was loaded from"):
        nvg.load(exported).save_pretrained(exported)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "weights/content/ema.safetensors").unlink(),
            r"content/ema\.safetensors is missing",
        ),
        (lambda folder: (folder / "weights/content/config.json").unlink(), r"content/config\.json is missing"),
        (lambda folder: (folder / "results.json").unlink(), r"results\.json: found no such file"),
        (
            lambda folder: (folder / "model.json").unlink(),
            r"holds neither model\.json, as an exported model does",
        ),
        (lambda folder: (folder / "model.json").write_text("{"), r"model\.json: not valid JSON"),
        (lambda folder: (folder / "model.json").write_text("{}"), r"model\.json: key kind is missing"),
        (lambda folder: _edit(folder, "schema_version", 2), r"schema_version is 2; expected one of 1"),
        (lambda folder: _edit(folder, "cut", "left"), r"cut is 'left'"),
        (lambda folder: _edit(folder, "class_names", ["a"]), r"num_classes is 1 in the data; expected 10"),
        (lambda folder: _edit(folder, "sampling", {"top_p_last": 2}), r"sampling: sampling.top_p_last is 2"),
        (
            lambda folder: (folder / "weights/content").rename(folder / "weights/away"),
            r"content/ema\.safetensors is missing",
        ),
    ],
)
def test_an_incomplete_or_damaged_folder_is_refused(exported, damage, message):
    damage(exported)
    with pytest.raises(UserError, match=message):
        nvg.load(exported)


def _edit(folder: Path, key: str, value: object) -> None:
    model = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**model, key: value}))


@pytest.mark.parametrize("kind", ["tokenizer", "content", "structure"])
def test_a_folder_of_mixed_models_is_refused(exported, kind):
    file = exported / "weights" / kind / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(
        UserError, match=rf"{kind}/ema\.safetensors has the hash .*: it is damaged, or of another model"
    ):
        nvg.load(exported)


def test_an_export_that_was_stopped_is_no_model(run, tmp_path, monkeypatch):
    monkeypatch.setattr("nvg.folders.export.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nvg.load(run).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "model.json").exists()
