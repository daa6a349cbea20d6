"""Where samples are written is looked at before any is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nvg.errors import UserError
from pipelines.evaluate import against
from pipelines.evaluate.config import EvaluateConfig

CONFIG = EvaluateConfig(tokenizer="t", content="c", output="o", reference="r.npz")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_folder": "used"}, r"samples_folder is .*used, which holds below/0\.png, an image"),
        ({"samples_file": "used"}, "samples_file is .*used'; expected an npz file, it is a folder"),
    ],
)
def test_a_used_place_is_refused_before_anything_is_drawn(settings, message, tmp_path: Path, monkeypatch):
    (tmp_path / "used" / "below").mkdir(parents=True)
    (tmp_path / "used" / "below" / "0.png").touch()
    monkeypatch.setattr(against, "open_against", lambda config: None)
    monkeypatch.setattr(against, "cluster_session", lambda config: pytest.fail("Ray was started"))
    settings = {name: str(tmp_path / path) for name, path in settings.items()}
    with pytest.raises(UserError, match=message):
        against.run_against(replace(CONFIG, **settings), console=Console())


@pytest.mark.parametrize("name", ["samples_folder", "samples_file"])
def test_a_place_that_cannot_be_made_stops_before_anything_is_drawn(name: str, tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(against, "open_against", lambda config: None)
    monkeypatch.setattr(against, "cluster_session", lambda config: pytest.fail("Ray was started"))
    with pytest.raises(OSError, match="file"):
        against.run_against(replace(CONFIG, **{name: str(tmp_path / "file" / "x" / "s")}), console=Console())
