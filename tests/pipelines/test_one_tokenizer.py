"""Generators are drawn from with the tokenizer of their records alone, and scores know what networks have seen."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_sources import write_class_folders
from tiny_networks import save_generators, save_tokenizer
from typer.testing import CliRunner

from nvg.checkpoints import load_weights, save_weights, weights_hash
from nvg.checkpoints.runs import generators, require_tokenizer, tokenizer_of, training_keys
from nvg.errors import UserError
from nvg.folders import cut_of
from nvg.tokenizer import TokenizerConfig
from nvg.training import TokenizerLossConfig
from pipelines.checkpoints import begin, commit
from pipelines.cli.main import app
from pipelines.evaluate import series
from pipelines.evaluate.images import load_data, why_seen
from pipelines.sources import SourceConfig, open_source
from pipelines.sources.keys import hash_names
from pipelines.train.config import LoopConfig, OptimizerConfig
from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer

KINDS = ("content", "structure")


def train_anew(tokenizer: Path) -> str:
    """Other weights of the same shape; returns the hash of the former ones."""
    before = weights_hash(tokenizer, "ema")
    tensors, config = load_weights(tokenizer, "tokenizer", "ema")
    save_weights(tokenizer, {name: value + 0.01 for name, value in tensors.items()}, config, "tokenizer", "ema")
    return before


@pytest.fixture
def run(tmp_path) -> Path:
    """Tokenizer and generators as trainings leave them: a checkpoint each, whose state names the tokenizer."""
    root = tmp_path / "run"
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    for kind in KINDS:
        weights = (root / kind).rename(tmp_path / kind)
        temporary = begin(root / kind / "checkpoints", 5)
        for file in weights.iterdir():
            shutil.copy2(file, temporary / file.name)
        data = {"tokenizer_hash": weights_hash(root / "tokenizer", "ema")}
        (temporary / "trainer.json").write_text(json.dumps({"images": 100, "data": data}))
        commit(temporary)
    return root


def nvg(*arguments: object) -> BaseException | None:
    """What a command ends with; None where it is done."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments]).exception


COMMANDS = {
    "sample": ("sample", "run={run}", "output={out}", "sampling.num_flow_steps=1", "classes=[1]", "num_per_class=1"),
    "export": ("export-release", "{run}", "--output", "{out}/d2.ckpt"),
    "eval generator": ("eval", "generator", "--model", "{run}", "output={out}"),
    "against": ("eval", "generator", "--model", "{run}", "output={out}", "reference=r.npz", "extractor_path=e"),
    "sweep": ("eval", "sweep", "--model", "{run}", "output={out}", "reference=r.npz", "top_p_last=[0.5]"),
    "follow": ("eval", "follow", "--model", "{run}", "output={out}", "reference=r.npz"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tokenizer_trained_anew_is_refused_with_both_hashes(run, tmp_path, monkeypatch, command):
    monkeypatch.setattr(series, "cluster_session", lambda _config: nullcontext())
    old = train_anew(run / "tokenizer")
    new = weights_hash(run / "tokenizer", "ema")
    places = {"run": run, "out": tmp_path / "out"}
    error = nvg(*(word.format(**places) for word in COMMANDS[command]))
    assert isinstance(error, UserError), error
    assert f"{run / 'tokenizer'}, whose ema weights have the hash {new[:12]}…" in str(error)
    assert str(error).count(f"{old[:12]}…") == 2  # both generators
    assert "precompute the records and train the generators anew" in str(error)
    assert not list(tmp_path.glob("out/**/*.png")) + list(tmp_path.glob("out/*.ckpt"))


def test_the_tokenizer_of_the_records_draws(run, tmp_path):
    assert nvg(*(word.format(run=run, out=tmp_path / "out") for word in COMMANDS["sample"])) is None
    assert (tmp_path / "out" / "1-000.png").is_file()


def test_a_run_is_drawn_with_the_weights_of_the_tokenizer_that_made_its_records(run, tmp_path, monkeypatch):
    tensors, config = load_weights(run / "tokenizer", "tokenizer", "ema")
    save_weights(run / "tokenizer", tensors, config, "tokenizer", "model")
    train_anew(run / "tokenizer")  # the average, of which no records were made
    words = [word.format(run=run, out=tmp_path / "out") for word in COMMANDS["sample"]]
    assert isinstance(nvg(*words), UserError)
    (run / "records").mkdir()
    manifest = {"class_names": list("0123456789"), "tokenizer_weights": "model"}
    monkeypatch.setattr("nvg.folders.run.read_manifest", lambda _folder: manifest)
    assert nvg(*words) is None


def test_generators_that_say_nothing_are_accepted_and_it_is_said_once(run, caplog):
    newest = [run / kind / "checkpoints" / "step-00000005" for kind in KINDS]
    for folder in newest:
        state = json.loads((folder / "trainer.json").read_text())
        (folder / "trainer.json").write_text(json.dumps({**state, "data": {}}))
    for damage in ("{", "[]", '{"data": null}'):
        (newest[1] / "trainer.json").write_text(damage)
        assert tokenizer_of(newest[1]) is None
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            require_tokenizer("run", run / "tokenizer", "ema", generators(*newest, ""))
    assert len(caplog.records) == 2
    assert "step-00000005: nothing says with which tokenizer it was trained" in caplog.text


def tiny_tokenizer_run(source: SourceConfig, folder: Path) -> TokenizerRunConfig:
    model: dict[str, Any] = {"image_size": 16, "image_channels": source.image_channels, "base_width": 8}
    return TokenizerRunConfig(
        run_folder=str(folder),
        source=source,
        model=TokenizerConfig(
            **model, width_multipliers=[1, 2], num_res_blocks=1, norm_groups=4, latent_channels=4, codebook_size=16
        ),
        loss=TokenizerLossConfig(perceptual_weight=0.0, adversarial_weight=0.0),
        optimizer=OptimizerConfig(global_batch=4, total_images=4),
        loop=LoopConfig(engine="plain", threads_per_rank=1),
    )


def test_a_tokenizer_knows_the_names_of_its_images_and_scores_of_them_are_warned_of(tmp_path, caplog):
    root = write_class_folders(tmp_path / "images", {"a": 30, "b": 30})
    source = SourceConfig(kind="folder", path=str(root), image_channels=3)
    checkpoint = train_tokenizer(tiny_tokenizer_run(source, tmp_path / "tokenizer"))
    names = training_keys(checkpoint)
    assert names is not None
    assert np.array_equal(names, np.sort(hash_names(open_source(source).keys)))
    trained = {"the tokenizer was trained on": names}
    assert load_data(source, trained).seen_in_training == []
    # The same folder divided by another seed, which the tokenizer does not know of.
    (line,) = load_data(replace(source, split_seed=2), trained).seen_in_training
    held_out = [open_source(replace(source, split_seed=2, split=part)).keys for part in ("test", "judge")]
    seen = [key for key in held_out[0] + held_out[1] if key in set(open_source(source).keys)]
    assert line.startswith(f"{len(seen)} of {len(held_out[0] + held_out[1])} images scored as held out")
    assert f"that the tokenizer was trained on ({', '.join(seen[:3])}, …)" in line
    assert why_seen(held_out[0], {"the tokenizer was trained on": training_keys(tmp_path)}) == []
    assert "nothing says which images the tokenizer was trained on: those scored may be among them" in caplog.text


def test_a_training_of_padded_images_says_so_to_whoever_cuts_a_picture(tmp_path):
    config = tiny_tokenizer_run(SourceConfig(split="test", image_size=16, fit="pad"), tmp_path / "padded")
    assert cut_of(train_tokenizer(config)) == "pad"
    plain = tiny_tokenizer_run(SourceConfig(split="test"), tmp_path / "plain")
    assert cut_of(train_tokenizer(plain)) == "center"
