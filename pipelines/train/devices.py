"""What devices can do: the table `configs/devices.yaml`, and a file of the user's own beside it.

Makers state peaks; what was measured on a device stands in its row, by the operations of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from nvg.bounds import at_least, check_fields, positive, refuse
from nvg.errors import UserError
from nvg.precision import Precision
from pipelines.configuration import load_config
from pipelines.written import nearest

TABLE = "devices.yaml"
Work = Literal["tokenizer", "encoder", "content", "structure", "sampling"]
_SAME_WORK = 0.02  # of the operations of an image


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A speed that was measured on a device.

    Attributes:
        what: kind of work.
        row: name in docs/results/gpu.json.
        flops_per_image: operations of an image; two works of one kind and as many operations count as the same.
        images_per_s: of one device.
        note: how it differs from what the project does now.
        micro_batch, peak_gib: of a training's step: images a pass, and the most memory it held; null elsewhere.
    """

    what: Work
    row: str
    flops_per_image: float = positive()
    precision: Precision = "bf16"
    compiled: bool = False
    images_per_s: float = positive()
    note: str = ""
    micro_batch: int | None = positive(None)
    peak_gib: float | None = positive(None)

    def __post_init__(self) -> None:
        check_fields(self, "devices.measured")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A row of the table.

    Attributes:
        key: its name on the command line.
        matches: parts of the name by which torch knows it; the longest that fits a name decides.
        bf16_flops, tf32_flops, fp32_flops: dense operations a second, as the maker states them.
        memory_bytes: of the device.
        memory_speed: bytes a second of its memory.
        devices_per_node: in one machine.
        link_speed: bytes a second to the other devices of the node, one direction.
        network_speed: a device's share of the bytes a second that leave the node, one direction.
        source: where these come from.
        measured: on such a device.
    """

    key: str
    name: str
    bf16_flops: float = positive()
    tf32_flops: float = positive()
    fp32_flops: float = positive()
    memory_bytes: float = positive()
    memory_speed: float = positive()
    devices_per_node: int = at_least(1, 8)
    link_speed: float = positive()
    network_speed: float = positive()
    source: str = ""
    matches: list[str] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self, "devices")

    def peak(self, precision: Precision) -> float:
        """Dense operations a second."""
        return {"bf16": self.bf16_flops, "tf32": self.tf32_flops, "fp32": self.fp32_flops}[precision]

    def measured_as(self, what: Work, flops_per_image: float, precision: str, compiled: bool) -> Measured | None:
        """The row that was measured with this work, if any."""
        for row in self.measured:
            alike = abs(row.flops_per_image / flops_per_image - 1) <= _SAME_WORK
            if (row.what, row.precision, row.compiled) == (what, precision, compiled) and alike:
                return row
        return None


@dataclass(frozen=True, kw_only=True)
class DeviceTable:
    """Devices by key."""

    devices: list[Device] = field(default_factory=list)


@cache
def known_devices(file: str | None = None) -> dict[str, Device]:
    """Key to device: those of the project, then those of a file of the user's own, which win.

    Raises:
        ConfigError: the file cannot be read as a table of devices.
    """
    tables = [load_config(DeviceTable, name) for name in (TABLE, file) if name is not None]
    return {device.key: device for table in tables for device in table.devices}


def find_device(key: str, file: str | None = None) -> Device:
    """The device of that key.

    Raises:
        UserError: there is none; names those that there are, and how one is added.
    """
    known = known_devices(file)
    if key not in known:
        similar = nearest(key, list(known))
        raise refuse(
            "--device",
            key,
            f"one of {', '.join(known)}",
            f"{f'take {similar}, or ' if similar else ''}write a row for it into a file of your own, in the form of "
            f"configs/{TABLE}, and add --device-file FILE",
        )
    return known[key]


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a device by torch's name for it, None where it is not in the table."""
    fits = [
        (len(part), device) for device in known_devices().values() for part in device.matches if part in device_name
    ]
    return max(fits, key=lambda fit: fit[0])[1].bf16_flops if fits else None


def carried_utilisation(what: Work, precision: str, compiled: bool) -> tuple[float, Measured, Device]:
    """Share of its peak that the nearest measured work of a kind reached on any device of the table.

    Raises:
        UserError: nothing of the kind was measured.
    """
    rows = [(device, row) for device in known_devices().values() for row in device.measured if row.what == what]
    rows.sort(key=lambda pair: (pair[1].precision != precision, pair[1].compiled != compiled))
    if not rows:
        raise UserError(f"configs/{TABLE} has no measured row of {what}; add one to a device")
    device, row = rows[0]
    return row.images_per_s * row.flops_per_image / device.peak(row.precision), row, device
