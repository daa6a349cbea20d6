"""The table of devices: measured rows are those of gpu.json; what is not in it is refused with the way to add it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvg.errors import UserError
from pipelines.train.devices import carried_utilisation, find_device, known_devices, peak_flops

MEASURED = Path(__file__).parents[3] / "docs" / "results" / "gpu.json"


@pytest.mark.parametrize("row", find_device("h100").measured, ids=lambda row: row.row)
def test_a_measured_row_is_the_last_one_of_its_name(row):
    runs = json.loads(MEASURED.read_text())["runs"]
    found = [one for run in runs for one in run["rows"] if one["what"] == row.row and one["unit"] == "images/s"][-1]
    assert row.images_per_s == pytest.approx(found["value"], rel=1e-3)
    if row.peak_gib is not None:
        assert row.peak_gib == found["more"]["peak_gib"]
    if found["part"] == "train":
        assert row.micro_batch == found["more"]["batch"]
        reached = row.images_per_s * row.flops_per_image / find_device("h100").bf16_flops
        assert reached == pytest.approx(found["more"]["mfu"], rel=2e-3)


def test_the_named_devices_are_there_with_their_sources():
    known = known_devices()
    assert {"h100", "h200", "a100-80", "a100-40", "b200", "l40s", "rtx4090"} <= known.keys()
    assert all(device.source and device.matches for device in known.values())
    assert all(device.fp32_flops <= device.tf32_flops < device.bf16_flops for device in known.values())


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_torchs_names_lead_to_their_row(name, key):
    assert peak_flops(name) == find_device(key).bf16_flops


def test_an_unknown_device_is_refused_with_those_there_are_and_the_way_to_add_it():
    with pytest.raises(UserError) as error:
        find_device("h10")
    for part in ("--device is 'h10'; expected one of h100, ", "rtx4090", "take h100", "add --device-file FILE"):
        assert part in str(error.value)


def test_a_file_of_ones_own_adds_a_device_and_wins(tmp_path):
    row = (
        "  - {key: KEY, name: A new one, bf16_flops: 2.0e+15, tf32_flops: 1.0e+15, fp32_flops: 1.0e+14, memory_bytes: "
        "2.0e+11,\n     memory_speed: 9.0e+12, link_speed: 4.0e+11, network_speed: 5.0e+10}\n"
    )
    file = tmp_path / "mine.yaml"
    file.write_text("devices:\n" + row.replace("KEY", "mine") + row.replace("KEY", "h100"))
    assert find_device("mine", str(file)).bf16_flops == 2e15
    assert find_device("h100", str(file)).name == "A new one"
    assert find_device("h100").name != "A new one"
    file.write_text("devices:\n" + row.replace("KEY", "mine").replace("2.0e+11", "-1"))
    with pytest.raises(UserError, match=r"devices.memory_bytes is -1.0; expected a number above 0"):
        known_devices.__wrapped__(str(file))


def test_what_is_not_measured_takes_the_share_of_the_nearest_work():
    share, row, device = carried_utilisation("encoder", "fp32", True)
    assert (row.precision, device.key) == ("fp32", "h100")
    assert share == pytest.approx(86.9 * 0.26e12 / 67e12, rel=0.01)
