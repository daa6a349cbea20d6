"""Images are read alike wherever they are read: a folder is its own reference, whatever lies in it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from typer.testing import CliRunner

from eval.features.small_network import FeatureNetwork, FeatureNetworkConfig, save_feature_network
from eval.image_files import FolderImages, open_images
from nvg.errors import UserError
from pipelines.cli.main import app
from pipelines.evaluate.config import EvaluateConfig
from pipelines.sources import SourceConfig, open_source

SIDE = 16
# Of each format those modes that keep their meaning in it.
KINDS = [
    *(("png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("tiff", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I")),
    *(("jpeg", mode) for mode in ("L", "RGB", "CMYK")),
    *(("webp", mode) for mode in ("RGB", "RGBA")),
    *((kind, "RGB") for kind in ("avif", "bmp", "gif", "ppm", "tga", "pcx", "sgi", "mpo", "jpeg2000", "ico")),
]


def file_of(kind: str, mode: str, seed: int, extra: str) -> bytes:
    """A picture of random smooth colours; `extra` adds a tag, a profile or a transparent value where it can be held."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    if mode.startswith("I"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", image.convert("RGB").split())
    else:
        image = image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)
    options: dict[str, Any] = {}
    if extra == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 2 + seed % 7
    elif extra == "profile" and mode in ("RGB", "RGBA", "P"):
        lab = ImageCms.createProfile("LAB") if seed % 2 else None
        options["icc_profile"] = ImageCms.ImageCmsProfile(lab or ImageCms.createProfile("sRGB")).tobytes()
    elif extra == "transparent" and kind == "png" and mode in ("1", "L", "P", "RGB", "I;16"):
        options["transparency"] = tuple(pixels[0, 0, :3].tolist()) if mode == "RGB" else 0
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_mixture(root: Path, files: list[tuple[tuple[str, str], int, str]]) -> None:
    for number, ((kind, mode), seed, extra) in enumerate(files):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        suffix = {"jpeg2000": "jp2"}.get(kind, kind)
        name = f"{number:03d}.{suffix.upper() if number % 3 == 0 else suffix}"
        (folder / name).write_bytes(file_of(kind, mode, seed, extra))


MIXTURES = st.lists(
    st.tuples(
        st.sampled_from(KINDS), st.integers(0, 999), st.sampled_from(["plain", "turned", "profile", "transparent"])
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(MIXTURES, st.sampled_from([1, 3]), st.sampled_from(["shown", "stored"]))
def test_any_mixture_is_read_alike_as_source_and_as_samples(files, channels, pixels):
    with TemporaryDirectory() as folder:
        write_mixture(Path(folder), files)
        config = SourceConfig(
            kind="folder", path=folder, split="all", image_size=SIDE, image_channels=channels, pixels=pixels
        )
        source = open_source(config)
        samples = open_images(folder, channels=channels, pixels=pixels)
        assert isinstance(samples, FolderImages)
        assert [str(file.relative_to(folder)) for file in samples.files] == source.keys
        assert len(samples) == len(files)
        expected = np.stack([source.read(index, 0) for index in range(len(files))])
        assert np.array_equal(samples.read(np.arange(len(files)))[0], expected)
        assert samples.remarks == []


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A feature network of random weights."""
    folder = tmp_path_factory.mktemp("feature-network")
    save_feature_network(FeatureNetwork(FeatureNetworkConfig(image_size=SIDE, image_channels=3, num_classes=4)), folder)
    return str(folder)


def nvg(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):  # what `main` shows, with exit code 2
        return 2, str(result.exception)
    assert result.exit_code == 0, result.output
    return 0, " ".join(result.output.split())


@pytest.mark.cluster
def test_a_folder_scores_perfectly_against_its_own_reference(ray_session, extractor, tmp_path):
    extras = ("plain", "turned", "profile", "transparent")
    write_mixture(tmp_path / "images", [(KINDS[n % len(KINDS)], n, extras[n % 4]) for n in range(2 * len(KINDS))])
    (tmp_path / "images" / "a" / "readme.txt").write_text("about")
    one = min((tmp_path / "images" / "a").glob("*.png"))
    (one.parent / "again.png").symlink_to(one)  # counted once in both
    (one.parent / "@eaDir").mkdir()
    shutil.copy(one, one.parent / "@eaDir")  # a thumbnail, in neither
    common = (f"extractor_path={extractor}", "pool.chunk_size=60", "pool.batch_size=60", "pool.cpus_per_actor=0.5")
    code, output = nvg(
        "eval", "reference", "source.kind=folder", f"source.path={tmp_path}/images", "source.split=all",
        f"source.image_size={SIDE}", "source.image_channels=3",
        "source.max_bad_fraction=0.05", f"output={tmp_path}/reference", *common,
    )  # fmt: skip
    assert code == 0, output
    code, output = nvg(
        "eval", "images", f"samples={tmp_path}/images", f"reference={tmp_path}/reference/reference.npz",
        f"output={tmp_path}/scores", *common,
    )  # fmt: skip
    assert code == 0, output
    assert "samples: 1 not an image by its name: a/readme.txt" in output
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    scores = results["scores"]["generated"]
    assert scores["num_images"] == 2 * len(KINDS)
    assert scores["fid"] <= 1e-3
    assert (scores["precision"], scores["recall"]) == (1.0, 1.0)
    assert "1 not an image by its name: a/readme.txt" in results["left_out"]
    assert results["protocol"]["samples"]["images"]["pixels"] == "shown"


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_too_few_images_are_refused_before_anything_is_computed(extractor, tmp_path, count, kind):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    write_mixture(tmp_path / "folder", [(("png", "RGB"), seed, "plain") for seed in range(count)])
    np.savez(tmp_path / "npz", images[:count])
    np.savez(tmp_path / "reference.npz", images)
    samples = tmp_path / ("folder" if kind == "folder" else "npz.npz")
    code, output = nvg(
        "eval", "images", f"samples={samples}", f"reference={tmp_path}/reference.npz", f"output={tmp_path}/scores",
        f"extractor_path={extractor}",
    )  # fmt: skip
    assert (code, "found" in output) == (2, True), output
    assert (
        f"{samples}: found {count} image(s), expected at least 4: precision and recall look at 3 neighbours" in output
    )
    assert not (tmp_path / "scores" / "pool").exists()


def test_too_small_references_and_pools_are_refused_by_name(extractor, tmp_path):
    write_mixture(tmp_path / "folder", [(("png", "RGB"), seed, "plain") for seed in range(3)])
    images = np.zeros((5, SIDE, SIDE, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", images)
    np.savez(tmp_path / "reference.npz", images[:3])
    common = (f"output={tmp_path}/out", f"extractor_path={extractor}")
    code, output = nvg(
        "eval", "images", f"samples={tmp_path}/samples.npz", f"reference={tmp_path}/reference.npz", *common
    )
    assert (code, f"arr_0 of {tmp_path}/reference.npz: found 3 image(s)" in output) == (2, True), output
    code, output = nvg(
        "eval", "reference", "source.kind=folder", f"source.path={tmp_path}/folder", "source.split=all", *common
    )
    assert (code, f"split all of {tmp_path}/folder: found 3 image(s)" in output) == (2, True), output
    assert not (tmp_path / "out" / "pool").exists()
    code, output = nvg("eval", "generator", "tokenizer=t", "content=c", "pool.num_samples=3", *common)
    assert (code, "pool.num_samples is 3; expected 4 or more" in output) == (2, True), output
    with pytest.raises(UserError, match=r"pool\.num_samples is 1; expected 4 or more"):
        EvaluateConfig(tokenizer="t", content="c", output="o").pool.__class__(num_samples=1)
