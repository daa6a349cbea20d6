"""`results.json`, which every evaluation leaves behind: how it is written and timed, what made its scores, and which of
them cannot be trusted.

A caveat names scores, the sets whose scores they are, and the reason. They are in `results.json` under `caveats`;
tables and pages mark these scores with a dagger and give the reasons below.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch

from cluster.files import write_atomically
from cluster.versions import library_versions
from eval.features.extractors import ExtractorSpec, layers_of
from eval.features.inception import INCEPTION
from eval.scores import frechet
from eval.scores.manifold import NEIGHBOURHOOD
from eval.scores.metrics import NUM_SPLITS, PERMUTATION_SEED
from nvg.bounds import Range
from nvg.errors import UserError
from nvg.json_files import Count, check_form, read_json

RESULTS_FILE = "results.json"
MOST_UNEQUAL = (
    5  # beyond, precision moves by more than four points (features of Fashion-MNIST), less than 100 images do
)
LEAST_FOR_A_SHARE = 100  # a share of fewer has a standard error of up to five points


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write `results.json` into a folder; a number that is not finite is refused."""
    path = folder / RESULTS_FILE
    write_atomically(path, f"{json.dumps(results, indent=2, allow_nan=False)}\n".encode())
    return path


_Share = Annotated[float, Range(0, 1)]
_Number = Annotated[float, Range(0)]


class _Caveat(TypedDict):
    scores: list[str]
    sets: list[str]
    reason: str


class _Scores(TypedDict):
    num_images: Count
    fid: NotRequired[float | None]
    fd: NotRequired[float | None]
    sfid: NotRequired[float | None]
    inception_score: NotRequired[_Number | None]
    precision: NotRequired[_Share | None]
    recall: NotRequired[_Share | None]


class _Extractor(TypedDict):
    kind: str
    distance: NotRequired[str]


class _Model(TypedDict):
    parameters: NotRequired[dict[str, Count]]
    stages: NotRequired[Count | None]


class _Sets(TypedDict):
    generated: _Scores


class _Protocol(TypedDict):
    model: NotRequired[_Model]
    extractor: NotRequired[_Extractor]


class _OfGenerator(TypedDict):
    scores: _Sets
    protocol: _Protocol
    caveats: NotRequired[list[_Caveat]]
    not_comparable_because: NotRequired[list[str]]


class _Stage(TypedDict):
    tokens_per_image: Annotated[int, Range(1, 1 << 30)]
    usage: _Share


class _Codebook(TypedDict):
    size: Count
    usage: _Share
    stages: list[_Stage]


class _TokenizerScores(TypedDict):
    rfid: NotRequired[float]
    rfd: NotRequired[float]
    num_images: Count
    codebook: _Codebook
    lpips_vgg: NotRequired[_Number]


class _Images(TypedDict):
    view: str
    image_size: Count


class _TokenizerProtocol(TypedDict):
    reference: _Images
    extractor: _Extractor


class _OfTokenizer(TypedDict):
    scores: _TokenizerScores
    protocol: _TokenizerProtocol


def read_results(path: Path) -> dict[str, Any]:
    """A `results.json` of generated images or, where `rfid` or `rfd` is among its scores, of a tokenizer.

    Raises:
        UserError: it is missing or damaged, or has no such scores.
    """
    what = f"a {RESULTS_FILE} of `nvg eval generator`, `nvg eval images` or `nvg eval tokenizer`"
    advice = "change results, or evaluate again"
    results = read_json(path, dict[str, Any], what, advice)
    scores = results.get("scores")
    of_tokenizer = isinstance(scores, dict) and is_of_tokenizer(scores)
    check_form(results, _OfTokenizer if of_tokenizer else _OfGenerator, f"{path} is not {what}", advice)
    if of_tokenizer and not results["scores"]["codebook"]["stages"]:
        raise UserError(f"{path}: scores.codebook.stages is empty, expected one entry for each stage; {advice}")
    return results


def is_of_tokenizer(scores: Collection[str]) -> bool:
    """Whether scores, or their keys, are those of a tokenizer's reconstructions."""
    return "rfid" in scores or "rfd" in scores


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the body took, under a name."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """The same thread count as in a worker, so that the driver's numbers are as repeatable as theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def metric_protocol(extractor: ExtractorSpec, *, manifold_images: int = 0) -> dict[str, Any]:
    """How features became scores, as JSON values: extractor with its hash and layers, each metric, library versions.

    Args:
        extractor: where features come from.
        manifold_images: images of a side for precision and recall; 0 means all.
    """
    layers = layers_of(extractor.kind)
    manifold = {"neighbourhood": NEIGHBOURHOOD, "precision": "float32", "layer": layers["feature_layer"]}
    splits = {"inception_score": {"splits": NUM_SPLITS, "permutation_seed": PERMUTATION_SEED}}
    return {
        "extractor": extractor.description(),
        extractor.distance_key: frechet.METHOD,
        **(splits if "logit_layer" in layers else {}),
        "precision_recall": {**manifold, **({"images_of_a_side": manifold_images} if manifold_images else {})},
        "libraries": library_versions(),
    }


def not_the_published_features(extractor: ExtractorSpec) -> str:
    """Why scores in these features cannot be set beside published ones, as a clause; empty where they can."""
    if extractor.kind == INCEPTION:
        return ""
    if extractor.distance_key == "fd":
        return f"{extractor.distance}, precision and recall are in features of {extractor.kind}, published ones are not"
    return f"features are those of {extractor.kind}, published scores use {INCEPTION}"


def comparability(extractor: ExtractorSpec) -> dict[str, Any]:
    """What results say of themselves where their distance is no FID: `comparable`, and why not."""
    if extractor.distance_key == "fid":
        return {}
    return {"comparable": False, "not_comparable_because": [not_the_published_features(extractor)]}


def caveat(scores: list[str], sets: list[str], reason: str) -> dict[str, Any]:
    """One caveat, as it stands in `results.json`.

    Args:
        scores: their keys.
        sets: keys of the sets whose scores they are; empty where the scores were left out.
        reason: a clause for people.
    """
    return {"scores": scores, "sets": sets, "reason": reason}


def count_caveats(
    counts: Mapping[str, int],
    *,
    scores: Collection[str],
    num_features: int,
    num_reference: int | None = None,
    num_manifold: int | None = None,
) -> list[dict[str, Any]]:
    """What too few images keep from being trusted; needs no image, so a plan can say it.

    A Fréchet distance needs one image more than features on either side, or a covariance has no full rank. Precision,
    recall, the Inception score and the share of copies need 100.

    Args:
        counts: images of each set that is scored.
        scores: keys of the scores there are.
        num_features: of the extractor.
        num_reference: images behind the statistics of the reference; None where nobody knows.
        num_manifold: images that precision and recall compare with, likewise.
    """
    found = []
    for names, least, behind, why in (
        (
            ("fid", "fd", "sfid", "rfid", "rfd"),
            num_features + 1,
            num_reference,
            f"a covariance of {num_features:,} features needs",
        ),
        (("precision", "recall"), LEAST_FOR_A_SHARE, num_manifold, "neighbourhoods need"),
        (("inception_score",), LEAST_FOR_A_SHARE, None, f"{NUM_SPLITS} splits need"),
    ):
        there = [name for name in names if name in scores]
        if there and behind is not None and behind < least:
            reason = f"the reference's {behind:,} images are fewer than the {least:,} that {why}"
            found.append(caveat(there, list(counts), reason))
        elif there:
            for count in sorted({count for count in counts.values() if count < least}):
                sets = [name for name in counts if counts[name] == count]
                found.append(caveat(there, sets, f"{count:,} images are fewer than the {least:,} that {why}"))
    real = counts.get("held_out", LEAST_FOR_A_SHARE)
    if "distance_to_training" in scores and real < LEAST_FOR_A_SHARE:
        reason = f"{real:,} real held-out images are fewer than the {LEAST_FOR_A_SHARE} that a share of 5% needs"
        found.append(caveat(["distance_to_training"], ["generated"], reason))
    return found


def comparison_caveats(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where generated images score better than the real held-out ones, which the score then cannot tell from them.

    Args:
        scores: of each set, `held_out` among them; others than `generated…` are not compared.
    """
    real, found = scores["held_out"], []
    distance = "fd" if "fd" in real else "fid"
    for name, row in scores.items():
        if not name.startswith("generated"):
            continue
        if row[distance] < real[distance]:
            reason = (
                f"real held-out images ({real['num_images']:,}) have {real[distance]:.2f}: too few or too different, "
                "they are no measure, or training images were copied"
            )
            found.append(caveat([distance], [name], reason))
        spread = math.hypot(row["precision_std"], real["precision_std"])
        if row["precision"] - real["precision"] > 2 * spread:
            copies = scores.get("reconstructions", real)["precision"]  # of held-out images: they cannot be copies
            why = f"to be plainer, which decoding brings: reconstructions of real ones have {copies:.3f}"
            if copies < row["precision"]:
                why = "to keep close to the training images"
            reason = f"real held-out images have {real['precision']:.3f}; more is not to look more real but {why}"
            found.append(caveat(["precision"], [name], reason))
    return found


def size_caveats(counts: Mapping[str, int], num_manifold: int) -> list[dict[str, Any]]:
    """Where precision and recall compare sets of so different size that they are not those of equal ones.

    Args:
        counts: images of each set that they take.
        num_manifold: of the training images.
    """
    found: dict[int, list[str]] = {}
    for name, count in counts.items():
        if max(count, num_manifold) > MOST_UNEQUAL * min(count, num_manifold):
            found.setdefault(count, []).append(name)
    return [
        caveat(
            ["precision", "recall"],
            sets,
            f"{count:,} images are compared with {num_manifold:,}: balls around the fewer reach further, so neither "
            "score is that of equal sets; set manifold_images to take as many of each",
        )
        for count, sets in found.items()
    ]
