"""Pictures and the page: what is drawn, and that the page needs nothing else."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.evaluation import EvaluationMaterial
from eval.image_sets import ImageSet
from eval.pages.page import score_rows, time_text
from eval.pages.report import ReportContent, render_report, write_report
from eval.pictures.drawing import DPI, mosaic
from eval.pictures.paintings import Painting, paint_images, paint_samples
from eval.pictures.plots import loss_curves, smooth, usage_bars
from eval.pictures.sheets import nearest_sheet, painting_rows, real_beside_generated, reconstruction_sheet, sample_grid
from eval.pool.pool import PoolConfig
from eval.pool.samplers import GeneratorSpec
from eval.results import caveat
from nvg.tiles import map_colours


class Links(HTMLParser):
    """Collects every address a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def curve(num_rows: int = 60) -> list[dict]:
    return [
        {
            "step": n,
            "images": 64 * n,
            "loss": 2 + np.exp(-n / 9),
            "cross_entropy_0": 1.0,
            "cross_entropy_1": None,
        }
        for n in range(num_rows)
    ]


@pytest.fixture(scope="module")
def content(digits, generator_spec: GeneratorSpec) -> ReportContent:
    scores = {
        "num_images": 50,
        "fid": 3.25,
        "inception_score": 5.0,
        "inception_score_std": 0.1,
        "precision": 0.7,
        "recall": 0.6,
        "class_accuracy": 0.85,
    }
    near = {
        "share_nearer_than_95_percent_of_held_out": 0.04,
        "threshold_grey_levels": 17.0,
        "median_grey_levels": 25.0,
        "held_out_median_grey_levels": 26.0,
    }
    held_out = digits.held_out.images
    material = EvaluationMaterial(
        class_names=["<b>zero</b>", *digits.class_names[1:]],
        generated=digits.judge,
        held_out=digits.held_out,
        reconstructions=255 - held_out,
        nearest=digits.train.images,
        nearest_distance=np.linspace(10, 40, len(digits.train.images)),
        paintings=paint_samples(generator_spec, PoolConfig(batch_size=10, chunk_size=10), count=2),
        real_paintings=paint_images(generator_spec, held_out, digits.held_out.labels, count=2),
    )
    material = replace(material, nearest=digits.train.images[: len(material.generated)])
    material = replace(material, nearest_distance=material.nearest_distance[: len(material.generated)])
    return ReportContent(
        title="Digits & <script>alert(1)</script>",
        summary="A test.",
        results={
            "scores": {
                "generated": {**scores, "distance_to_training": near},
                "reconstructions": {**scores, "psnr_db": 20.0},
                "held_out": scores,
            },
            "protocol": {"rounding": "release", "pools": {"generated": {"sampler": {"seed": 5}}}},
        },
        material=material,
        curves={"content": curve()},
        codebook_usage=[0.25, 0.5, 1.0],
        times=[("tokenizer", 65.0, "3 epochs")],
        facts={"data": "digits"},
    )


def test_the_page_is_whole_and_fetches_nothing(content: ReportContent, tmp_path: Path) -> None:
    path = write_report(tmp_path / "deep" / "report.html", content)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    html = path.read_text(encoding="utf-8")
    assert "†" not in html
    links = Links()
    links.feed(html)
    assert len(links.addresses) > 10
    assert all(address.startswith("data:") for address in links.addresses)
    assert not re.search(r"https?://|url\(|@import", html)
    for words in (
        "Scores",
        "Painted from coarse to fine",
        "Not copied",
        "Learning",
        "1 min 05 s",
        "3.25",
        "85.0%",
    ):
        assert words in links.text


@pytest.mark.slow
def test_what_users_name_cannot_break_the_page(content: ReportContent) -> None:
    html = render_report(content)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.slow
def test_a_report_without_extras_is_possible(content: ReportContent) -> None:
    reason = "the judge reads 36.8% of 57 <b>real</b> images"
    caveats = [caveat(["class_accuracy"], ["generated", "held_out"], reason), caveat(["recall"], [], "left out: few")]
    results = {**content.results, "caveats": caveats}
    html = render_report(replace(content, results=results, curves={}, codebook_usage=(), times=(), facts={}))
    assert "Learning" not in html
    assert "Scores" in html
    assert html.count("85.0% †") == 3  # the headline and both rows
    assert "† read as asked (generated; real, held out): the judge reads 36.8% of 57 &lt;b&gt;real" in html
    assert ">recall: left out: few<" in html


def test_score_table(content: ReportContent) -> None:
    head, rows = score_rows(content.results)
    assert [row[0] for row in rows] == ["Generated", "Reconstructions", "Real, held out"]
    assert all(len(row) == len(head) for row in rows)


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.34, "2.3 s"), (42, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_every_picture_exists_for_both_themes(digits) -> None:
    names, images = digits.class_names, digits.held_out.images
    pictures = [
        sample_grid(digits.held_out, names),
        real_beside_generated(digits.held_out, digits.held_out, names),
        reconstruction_sheet(images, images),
        nearest_sheet(images, images, np.zeros(len(images))),
        loss_curves({"a": curve(), "b": curve(3), "c": curve(), "d": curve()}),
        usage_bars([0.1, 0.5]),
    ]
    for picture in pictures:
        assert size(picture.light) == size(picture.dark)
        assert picture.light != picture.dark
        assert picture.width * 2 <= size(picture.light)[0] + 8


def test_colour_images_and_many_classes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (90, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(90) % 30
    picture = sample_grid(ImageSet(images, labels), [f"a rather long class name {n}" for n in range(30)], per_class=3)
    assert size(picture.light)[0] > 700


@pytest.mark.parametrize("per_class", [1, 3, 20])
def test_a_grid_is_as_wide_as_its_images_and_never_wider_than_a_page(per_class: int) -> None:
    images, labels = np.full((40, 16, 16, 1), 200, np.uint8), np.arange(40) // 20
    rows = (np.arange(40) % 20) < per_class
    picture = sample_grid(ImageSet(images[rows], labels[rows]), ["a", "b"], per_class=20)
    grid = np.asarray(Image.open(io.BytesIO(picture.light)))
    shown = grid[:, :, 3].any(0)
    assert shown[-grid.shape[1] // 20 :].any()
    assert grid.shape[1] <= 7.6 * DPI
    assert grid.shape[0] <= 2 * 1.3 * DPI


def test_children_keep_shades_of_their_parent() -> None:
    parents, children = np.arange(4), np.arange(8)
    coarse = map_colours(parents[None], 2)[0].astype(float)
    fine = map_colours(children[None], 3)[0].astype(float)
    distance = np.linalg.norm(fine[:, None] - coarse[None], axis=-1)
    assert (distance.argmin(axis=1) == children // 2).all()
    assert len(np.unique(fine, axis=0)) == 8


def test_mosaic_keeps_pixels_and_leaves_gaps_clear() -> None:
    tile = np.full((64, 64, 3), 200, np.uint8)
    ground = mosaic([[tile, None], [tile, tile]])
    assert ground[32, 32].tolist() == [200, 200, 200, 255]
    assert ground[32, -32, 3] == 0
    assert ground[66, 32, 3] == 0


def test_paintings_end_in_the_image(generator_spec: GeneratorSpec) -> None:
    pool = PoolConfig(batch_size=10, chunk_size=10)
    sampler = generator_spec.build("cpu")
    import torch

    indices = torch.arange(10)
    drawn = sampler.draw(indices, indices)
    for painting, image in zip(paint_samples(generator_spec, pool, count=3), drawn, strict=False):
        assert painting.stages_SHWC.shape == (5, 16, 16, 1)
        assert np.abs(painting.stages_SHWC[-1].astype(int) - image).max() <= 1
        assert [len(np.unique(stage)) for stage in painting.maps_Sss] == [1, 2, 4, 8, 16]


def test_real_paintings_show_their_originals(digits, generator_spec: GeneratorSpec) -> None:
    paintings = paint_images(generator_spec, digits.held_out.images, digits.held_out.labels, count=2)
    assert len({painting.label for painting in paintings}) == 2
    assert all(painting.original_HWC is not None for painting in paintings)


def test_smoothing_starts_at_the_curve_and_passes_gaps() -> None:
    values = np.full(500, 3.0)
    values[100:110] = np.nan
    assert smooth(values) == pytest.approx(3.0)


def test_bad_inputs_are_named(digits) -> None:
    images = digits.held_out.images
    with pytest.raises(ValueError, match="at least one"):
        loss_curves({})
    with pytest.raises(ValueError, match="'images' and 'loss'"):
        loss_curves({"content": [{"step": 1}]})
    with pytest.raises(ValueError, match="codebook usage"):
        usage_bars([1.5])
    with pytest.raises(ValueError, match="reconstructions"):
        reconstruction_sheet(images, images[:3])
    with pytest.raises(ValueError, match="paintings"):
        painting_rows([])
    with pytest.raises(ValueError, match="nearest images"):
        nearest_sheet(images, images[:3], np.zeros(3))
    one = Painting(label=0, stages_SHWC=images[:2], maps_Sss=np.zeros((2, 2, 2), np.int64))
    other = Painting(label=0, stages_SHWC=images[:3], maps_Sss=np.zeros((3, 2, 2), np.int64))
    with pytest.raises(ValueError, match="same number"):
        painting_rows([one, other])
