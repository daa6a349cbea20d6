"""The card of a data set: written whole, read checked, compared by name."""

from __future__ import annotations

import json

import pytest

from nvg.errors import UserError
from nvg.records import MANIFEST_FILE, read_manifest, require_match
from pipelines.precompute.merge import write_manifest

MANIFEST = {
    "kind": "vgs-records",
    "schema_version": 1,
    "tokenizer_hash": "aa",
    "image_size": 16,
    "image_channels": 1,
    "latent_channels": 8,
    "num_positions": 16,
    "last_stage": 4,
    "codebook_size": 128,
    "num_classes": 2,
    "class_names": ["a", "b"],
    "class_histogram": [3, 4],
    "view_policy": "center",
    "num_views": 1,
    "num_images": 7,
    "num_records": 7,
    "source_fingerprint": "bb",
    "canvas_scales": [1.0, 4.0, 3.0, 2.0, 1.5, 1.2],
    "codebook_usage": [0.1, 0.2, 0.4, 0.8, 1.0],
    "skipped": [],
    "library_versions": {"torch": "2.14"},
}


def test_read_gives_what_was_written(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == read_manifest(tmp_path / MANIFEST_FILE) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_FILE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "found kind 'vgs-records', schema_version 2, expected 'vgs-records', 1"),
        ({"kind": "weights"}, "found kind 'weights'"),
        ({"num_images": "7"}, "num_images is '7'; expected a whole number"),
        ({"canvas_scales": [1.0]}, "canvas_scales has 1 entries, expected 6"),
        ({"canvas_scales": [float("nan")] * 6}, r"canvas_scales\[0\] is nan; expected a finite number"),
    ],
)
def test_a_wrong_manifest_is_neither_written_nor_read(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        write_manifest(tmp_path, {**MANIFEST, **changes})
    assert not list(tmp_path.iterdir())
    if "finite" not in message:
        (tmp_path / MANIFEST_FILE).write_text(json.dumps({**MANIFEST, **changes}))
        with pytest.raises(UserError, match=message):
            read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["tokenizer_hash", "canvas_scales", "skipped"])
def test_missing_key_is_named(tmp_path, key):
    rest = {name: value for name, value in MANIFEST.items() if name != key}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(rest))
    with pytest.raises(UserError, match=f"key {key} is missing"):
        read_manifest(tmp_path)


def test_refusal_names_both_sides():
    require_match(MANIFEST, {"codebook_size": 128}, found_name="x", expected_name="y", advice="z")
    with pytest.raises(UserError) as caught:
        require_match(
            MANIFEST,
            {"tokenizer_hash": "cc", "codebook_size": 128, "num_positions": 64},
            found_name="the records in data/",
            expected_name="the tokenizer in tok/",
            advice="precompute again",
        )
    assert str(caught.value) == (
        "the records in data/ and the tokenizer in tok/ do not fit each other:\n"
        "  tokenizer_hash: 'aa' against 'cc'\n"
        "  num_positions: 16 against 64\nprecompute again"
    )
