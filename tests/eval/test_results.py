"""Which scores are marked as not to be trusted, and that those of the bundled digits are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from eval.pages.page import caveat_notes, score_rows
from eval.results import caveat, comparison_caveats, count_caveats, size_caveats
from eval.scores.judge import why_no_judge, why_not_trusted
from pipelines.evaluate.against import print_against

ALL = ("fid", "precision", "recall", "inception_score", "distance_to_training")


def counted(*, num_features: int = 64, reference: int = 1000, **counts: int) -> set[tuple[str, str]]:
    """Score and set of everything marked because of its count."""
    found = count_caveats(
        counts, scores=ALL, num_features=num_features, num_reference=reference, num_manifold=reference
    )
    return {(score, name) for one in found for score in one["scores"] for name in one["sets"]}


def test_scores_of_the_digits_are_trusted(repository: Path, digits) -> None:
    runs = json.loads((repository / "docs" / "results" / "demo.json").read_text())["runs"]
    assert len(runs) == 3
    for scores in (run["scores"] for run in runs):
        assert counted(**{name: row["num_images"] for name, row in scores.items()}) == set()
        assert comparison_caveats({name: {"precision_std": 0.0, **row} for name, row in scores.items()}) == []
        assert size_caveats({name: row["num_images"] for name, row in scores.items()}, 1000) == []
        assert why_not_trusted(scores["held_out"]["class_accuracy"], digits.held_out.labels) == ""


def test_too_few_images_are_marked_on_either_side() -> None:
    share = {(score, "held_out") for score in ("precision", "recall", "inception_score")}
    near = {("distance_to_training", "generated")}
    assert counted(generated=2000, held_out=57) == {("fid", "held_out")} | share | near
    assert counted(generated=2000, held_out=65) == share | near
    assert counted(generated=2000, held_out=99) == share | near
    assert counted(generated=2000, held_out=100) == set()
    assert counted(generated=2000, held_out=100, num_features=2048) == {("fid", "generated"), ("fid", "held_out")}
    everything = {(score, name) for score in ("fid", "precision", "recall") for name in ("generated", "held_out")}
    assert counted(generated=2000, held_out=300, reference=64) == everything
    unknown = count_caveats({"generated": 5000}, scores=("fid", "sfid"), num_features=2048)
    assert unknown == []


def test_a_score_that_is_not_there_is_not_marked() -> None:
    found = count_caveats({"reconstructions": 30}, scores=("num_images", "rfid", "ssim"), num_features=64)
    reason = "30 images are fewer than the 65 that a covariance of 64 features needs"
    assert found == [caveat(["rfid"], ["reconstructions"], reason)]


def row(fid: float, precision: float, num_images: int = 300) -> dict[str, Any]:
    return {
        "num_images": num_images,
        "fid": fid,
        "inception_score": 5.0,
        "precision": precision,
        "precision_std": 0.02,
        "recall": 0.5,
        "class_accuracy": 0.368,
    }


def test_what_beats_real_images_is_marked_and_only_that() -> None:
    scores = {"generated": row(17.7, 0.95), "generated_guidance_1": row(30.0, 0.72), "held_out": row(25.0, 0.7, 57)}
    found = comparison_caveats(scores)
    assert [(one["scores"], one["sets"]) for one in found] == [(["fid"], ["generated"]), (["precision"], ["generated"])]
    assert "real held-out images (57) have 25.00" in found[0]["reason"]
    assert found[1]["reason"].endswith("but to keep close to the training images")
    for reconstructed, why in ((0.96, "to be plainer"), (0.94, "to keep close")):
        (_, precision) = comparison_caveats({**scores, "reconstructions": row(30.0, reconstructed)})
        assert why in precision["reason"], "a decoder that brings as much by itself is why; one that does not is not"
    scores["generated"] = row(25.0, 0.75)  # equal, and within two standard deviations
    assert comparison_caveats(scores) == []


@pytest.mark.parametrize(
    ("right", "labels", "is_trusted"),
    [
        (21, [0, 1, 2, 3, 4, 5] * 10, False),  # 36.8 % of real photographs
        (60, [0, 1, 2, 3, 4, 5] * 10, True),
        (6, [0, 1, 2, 3, 4, 5], False),  # all right, but six show little
        (52, [0, 1] * 30, False),  # 87 % of two classes is less than 80 % of the way from chance
        (540, [0] * 540 + [1] * 60, False),  # always the most frequent class
        (600, [0] * 540 + [1] * 60, True),
        (50, [3] * 50, False),  # one class: nothing was told apart
    ],
)
def test_a_judge_is_trusted_who_surely_reads_real_images(right: int, labels: list[int], is_trusted: bool) -> None:
    reason = why_not_trusted(right / len(labels), np.array(labels))
    assert (reason == "") == is_trusted
    assert is_trusted or f"{right / len(labels):.1%} of {len(labels)} real held-out images" in reason


def test_no_judge_says_why() -> None:
    assert why_no_judge(["a", "b"], np.array([0, 1])) == ""
    assert why_no_judge(["a"], np.array([0])) == "there is one class only, so nothing to tell apart"
    assert why_no_judge(list("abcdefgh"), np.array([7])).endswith("no image of 7 of 8 classes (a, b, c, d, e, …)")


def test_tables_carry_daggers_and_reasons() -> None:
    scores = {"generated": row(1.0, 0.5), "held_out": row(2.0, 0.5)}
    results = {"scores": scores, "caveats": [caveat(["fid"], ["generated"], "x"), caveat(["recall"], [*scores], "y")]}
    _, rows = score_rows(results)
    assert rows[0] == ["Generated", "36.8%", "1.00 †", "5.00", "0.500", "0.500 †", "300"]
    assert rows[1] == ["Real, held out", "36.8%", "2.00", "5.00", "0.500", "0.500 †", "300"]
    assert caveat_notes(results) == ["† FID (generated): x", "† recall: y"]
    assert "†" not in str(score_rows({"scores": scores}))  # results written before there were caveats
    assert caveat_notes({"scores": scores}) == []


def test_scores_against_a_reference_carry_them_too() -> None:
    console = Console(record=True, width=120)
    results = {
        "scores": {"generated": row(1.0, 0.5)},
        "caveats": [caveat(["fid"], ["generated"], "[300] images are few")],
        "not_comparable_because": [],
        "seconds": {"scores": 1.0},
    }
    print_against(results, console)
    text = console.export_text()
    assert "1.000 †" in text
    assert "† FID: [300] images are few" in text


def test_sets_of_unequal_size_are_marked() -> None:
    assert size_caveats({"generated": 2000, "held_out": 1000}, 2000) == []
    (found,) = size_caveats({"generated": 2000, "held_out": 2000}, 60_000)
    assert (found["scores"], found["sets"]) == (["precision", "recall"], ["generated", "held_out"])
    assert "2,000 images are compared with 60,000" in found["reason"]
    assert "manifold_images" in found["reason"]


def test_a_distance_in_other_features_is_never_called_fid() -> None:
    scores = {name: {"fd": 2.0, **row(0.0, 0.5)} for name in ("generated", "held_out")}
    for one in scores.values():
        del one["fid"], one["inception_score"]
    scores["generated"]["fd"] = 1.0
    few = count_caveats(dict.fromkeys(scores, 300), scores=("fd",), num_features=1280)
    results = {
        "scores": scores,
        "caveats": [*few, *comparison_caveats(scores)],
        "protocol": {"extractor": {"distance": "FD (EfficientNet-Lite0)"}},
        "not_comparable_because": ["other features"],
        "seconds": {},
    }
    head, rows = score_rows(results)
    assert head == ["", "read as asked ↑", "FD (EfficientNet-Lite0) ↓", "precision ↑", "recall ↑", "images"]
    assert rows[0] == ["Generated", "36.8%", "1.00 †", "0.500", "0.500", "300"]
    assert caveat_notes(results)[0].startswith("† FD (EfficientNet-Lite0): 300 images are fewer than the 1,281")
    assert caveat_notes(results)[1].startswith("† FD (EfficientNet-Lite0) (generated): real held-out images (300)")
    console = Console(record=True, width=120)
    print_against(results, console)
    text = console.export_text()
    assert "FD (EfficientNet-Lite0) ↓" in text
    assert "other features" in text
    assert "FID" not in text + str(head) + str(caveat_notes(results))
