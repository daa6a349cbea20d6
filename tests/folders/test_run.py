"""What a run folder says of itself: parts that belong together, and the settings that scored these very weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from made_records import write_records
from tiny_networks import save_generators, save_tokenizer

import nvg
from eval.pool.samplers import GeneratorSpec
from nvg.checkpoints import load_weights, save_weights, weights_hash
from nvg.errors import UserError
from nvg.folders import find_run, scored_settings
from nvg.folders.run import _RELEASE_SAMPLING
from nvg.sampling import SamplingConfig
from pipelines.configuration import load_config

FEW, MANY = SamplingConfig(num_flow_steps=2, content_guidance=7.0), SamplingConfig(num_flow_steps=9)


@pytest.fixture
def run(tmp_path) -> Path:
    root = tmp_path / "run"
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    return root


def score(run: Path, name: str, sampling: SamplingConfig, *, against: bool = False) -> Path:
    """Results as an evaluation leaves them, with what decides the settings."""
    spec = GeneratorSpec(
        tokenizer=str(run / "tokenizer"),
        content=str(run / "content"),
        structure=str(run / "structure"),
        num_classes=10,
        sampling=sampling,
    )
    drawn = {"sampler": spec.identity()}
    protocol: dict[str, Any] = {"samples": drawn} if against else {"pools": {"generated": drawn}}
    file = run / name / "results.json"
    file.parent.mkdir(exist_ok=True)
    scores = {"generated": {"num_images": 5, "fid": 1.5, "precision": 0.5}}
    caveats = [{"scores": ["fid"], "sets": ["generated"], "reason": "5 images are few"}]
    file.write_text(json.dumps({"scores": scores, "protocol": protocol, "caveats": caveats}))
    return file


def train_anew(folder: Path, kind: str) -> None:
    tensors, config = load_weights(folder, kind, "ema")
    save_weights(folder, {name: value + 0.01 for name, value in tensors.items()}, config, kind, "ema")


@pytest.mark.parametrize("against", [False, True])
def test_the_settings_are_those_that_scored_the_run(run, against, caplog):
    score(run, "evaluation", FEW, against=against)
    (run / "tok-eval").mkdir()
    (run / "tok-eval" / "results.json").write_text('{"scores": {"rfid": 1.0}}')
    model = nvg.load(run)
    assert (model.sampling, model.scored_by, model.notices) == (FEW, "evaluation", [])
    assert not [record for record in caplog.records if record.name == "nvg.model"]
    score(run, "again", FEW, against=against)  # as the other one
    assert nvg.load(run).sampling == FEW


def test_an_unscored_run_takes_the_defaults_and_says_so(run, caplog):
    with caplog.at_level(logging.WARNING):
        model = nvg.load(run)
    assert (model.sampling, model.scored_by) == (SamplingConfig(), None)
    assert "no evaluation has scored these weights; sampled with the defaults" in caplog.text
    assert model.notices[0] in caplog.text
    caplog.clear()
    assert nvg.load(run, settings=FEW).notices == []
    assert not [record for record in caplog.records if "scored" in record.message]


def test_an_evaluation_of_other_weights_does_not_count(run):
    score(run, "evaluation", FEW)
    train_anew(run / "structure", "structure")
    model = nvg.load(run)
    assert model.sampling == SamplingConfig()
    assert "(evaluation: of other weights)" in model.notices[0]
    with pytest.raises(UserError, match=r"settings is 'evaluation'; expected an evaluation of these weights"):
        nvg.load(run, settings="evaluation")


def test_evaluations_that_differ_are_named_and_one_has_to_be_chosen(run):
    score(run, "evaluation", FEW)
    score(run, "eval", MANY)
    with pytest.raises(UserError) as refused:
        nvg.load(run)
    assert "scored with 2 settings" in str(refused.value)
    assert "\n  eval: num_flow_steps 9" in str(refused.value)
    assert "\n  evaluation: content_guidance 7.0, num_flow_steps 2" in str(refused.value)
    assert nvg.load(run, settings="evaluation").sampling == FEW
    assert nvg.load(run, settings=MANY).sampling == MANY
    with pytest.raises(UserError, match=r"settings is 'other'; .*\(eval, evaluation\)"):
        nvg.load(run, settings="other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [("{", "not valid JSON"), ('{"protocol": {"samples": {"sampler": {"sampling": {"top": 1}}}}}', "")],
)
def test_damaged_results_are_named(run, damage, message):
    file = score(run, "evaluation", FEW)
    results = json.loads(file.read_text())
    if message:
        file.write_text(damage)
    else:
        results["protocol"]["pools"]["generated"]["sampler"]["sampling"]["top"] = 1
        file.write_text(json.dumps(results))
    with pytest.raises(UserError, match=f"{file}.*{message}"):
        nvg.load(run)


def test_imported_weights_are_sampled_as_the_release_does_and_show_their_licence(run, caplog):
    for kind in ("tokenizer", "content", "structure"):
        (run / kind / "release.json").write_text('{"licence": "No commercial use."}')
    with caplog.at_level(logging.WARNING):
        model = nvg.load(run)
    assert [record.message for record in caplog.records].count("No commercial use.") == 1
    assert model.notices[0] == "No commercial use."
    assert (model.sampling, model.cut) == (_RELEASE_SAMPLING, "crop")


def test_the_release_of_the_library_is_the_preset():
    preset = Path(__file__).parents[2] / "configs" / "sampling" / "release.yaml"
    assert load_config(SamplingConfig, str(preset), []) == _RELEASE_SAMPLING


def test_records_name_the_classes_the_cut_and_the_tokenizer(run):
    names = [f"digit {label}" for label in range(10)]
    manifest = {"class_names": names, "view_policy": "crop", "tokenizer_hash": weights_hash(run / "tokenizer", "ema")}
    write_records(run / "records", **manifest)
    model = nvg.load(run, settings=FEW)
    assert (model.class_names, model.cut) == (names, "crop")
    assert model.sample("digit 4").labels.tolist() == [4]
    train_anew(run / "tokenizer", "tokenizer")
    with pytest.raises(UserError, match=r"these were made:\n  the records in .*records: "):
        nvg.load(run)


def test_parts_of_other_runs_are_refused(run):
    (run / "content" / "trainer.json").write_text(json.dumps({"data": {"tokenizer_hash": "0" * 64}}))
    with pytest.raises(UserError, match=r"the generator in .*content: 000000000000…"):
        nvg.load(run)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds neither model\.json, .*, nor content and tokenizer, as a run does"):
        nvg.load(tmp_path)


@pytest.mark.parametrize("missing", ["tokenizer", "content", "structure"])
def test_a_part_that_is_missing_is_named(run, missing):
    (run / missing).rename(run / "away")
    with pytest.raises(UserError, match=f"found no folder {run / missing}"):
        nvg.load(run)


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no folder; expected a run, an exported model, or owner/name on the hub"):
        nvg.load(tmp_path / "file")
    with pytest.raises(UserError, match="is no folder"):
        nvg.load("../nothing here")
    with pytest.raises(UserError, match="device is 'tpu'; expected one of auto, cpu, cuda"):
        nvg.load(tmp_path, device="tpu")  # pyright: ignore[reportArgumentType]


def test_settings_are_looked_for_in_the_run_alone(run):
    parts = find_run(run)
    assert scored_settings(parts).scored_by is None
    assert set(parts.hashes()) == {"tokenizer", "content", "structure"}
