"""`nvg verify` names what is damaged; `nvg inspect DATASET` draws records from their ids alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvg.errors import UserError
from nvg.records import RecordDataset
from pipelines.inspect import InspectConfig, inspect
from pipelines.precompute.verify import verify_records


@pytest.fixture
def records(finished, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished.folder.root, tmp_path / "records", ignore=shutil.ignore_patterns("parts")))


def test_whole_data_set_is_read_to_its_last_byte(records):
    found = verify_records(str(records))
    assert found.num_records == 594
    assert found.num_bytes == sum(path.stat().st_size for path in records.glob("*.mds"))


def test_every_damaged_shard_is_named(records):
    truncated, flipped, missing = sorted(records.glob("*.mds"))[1:4]
    truncated.write_bytes(truncated.read_bytes()[:-7])
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    missing.unlink()
    with pytest.raises(UserError, match=r"3 thing\(s\) wrong") as caught:
        verify_records(str(records))
    message = str(caught.value)
    expected = truncated.stat().st_size + 7
    assert f"{truncated}: found {expected - 7} bytes, expected {expected}" in message
    assert f"{flipped}: its bytes do not have the sha256" in message
    assert f"{missing}: found no such file" in message


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_lost_records_and_wrong_statistics_are_named(records):
    index = json.loads((records / "index.json").read_text())
    edit(records / "index.json", shards=index["shards"][1:])
    lost = index["shards"][0]["samples"]
    with pytest.raises(UserError, match=rf"the shards hold num_records {594 - lost}, the manifest states 594"):
        verify_records(str(records))
    edit(records / "index.json", shards=[*index["shards"], index["shards"][0]])
    with pytest.raises(UserError, match=r"image \d+ has its views \[2, .*expected each once"):
        verify_records(str(records))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "sources.txt").write_text("a\n"), "found 1 lines, expected 297"),
        (lambda folder: (folder / "sources.txt").unlink(), r"sources\.txt: found no such file"),
        (lambda folder: (folder / "dequantizer.safetensors").unlink(), "dequantizer"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: found no such file"),
        (lambda folder: (folder / "index.json").write_text('{"vers'), r"index\.json: not valid JSON"),
        (lambda folder: edit(folder / "manifest.json", codebook_size=8), "content_ids holds"),
        (lambda folder: edit(folder / "manifest.json", latent_channels=9), "dequantizer has latent_channels 8"),
    ],
)
def test_damaged_companions_are_named(records, damage, message):
    damage(records)
    with pytest.raises(UserError, match=message):
        verify_records(str(records))


def test_records_are_drawn_from_their_ids(finished, records, tmp_path, capsys):
    config = InspectConfig(
        records=str(records), tokenizer=finished.config.tokenizer, index=5, count=3, output=str(tmp_path / "a.png")
    )
    with Image.open(inspect(config)) as picture:
        assert np.asarray(picture).std() > 0
    opened = RecordDataset.open(records)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert said[0] == (
        f"record 5: {finished.source.keys[opened.image[5]]}, view {opened.view[5]}, class {opened.label[5]}"
    )


def test_records_of_another_tokenizer_are_not_drawn(case, records, tmp_path):
    other = case.write_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=r"tokenizer is .*other, whose ema weights have the hash \w+(.|\n)*the records in .*: \w+"
    ):
        inspect(InspectConfig(records=str(records), tokenizer=str(other)))
    with pytest.raises(UserError, match="there are 594; lower index or count"):
        inspect(InspectConfig(records=str(records), index=594))
