"""manifest.json: the card beside a record data set that says what it is and what it belongs to.

A data set is only complete when its manifest is there, and whoever reads one compares it with what it expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from nvg.bounds import Range
from nvg.errors import Changed, UserError
from nvg.json_files import Count, check_form, read_json
from nvg.records.record import RecordLayout

MANIFEST_FILE = "manifest.json"
MANIFEST_KIND = "vgs-records"
SCHEMA_VERSION = 1
RepaTarget = Literal["dinov2-vitb14", "efficientnet-lite0"]  # of which network there are features
DINOV2: Final = "dinov2-vitb14"
EFFICIENTNET: Final = "efficientnet-lite0"
_ADVICE = "copy it again, or write the data set again with this version"
_UpTo16Bits = Annotated[int, Range(1, 1 << 16)]


class _Stored(TypedDict):
    """What lies beside the records."""

    store: Literal["features", "jpeg"]
    target: NotRequired[RepaTarget]
    num_tokens: NotRequired[Annotated[int, Range(1, 1 << 20)]]
    width: NotRequired[Annotated[int, Range(1, 1 << 20)]]


class _Skipped(TypedDict):
    key: str
    reason: str


class _Manifest(TypedDict):
    """What every manifest holds, and what it may hold and somebody reads."""

    kind: str
    schema_version: int
    tokenizer_hash: str
    image_size: Count
    image_channels: Literal[1, 3]
    latent_channels: Annotated[int, Range(1, 1 << 20)]
    num_positions: int
    last_stage: Annotated[int, Range(0, 16)]
    codebook_size: _UpTo16Bits
    num_classes: _UpTo16Bits
    class_names: list[str]
    class_histogram: list[Count]
    view_policy: str
    num_views: Annotated[int, Range(1, 1 << 8)]
    num_images: Count
    num_records: Count
    source_fingerprint: str
    canvas_scales: list[Annotated[float, Range(0, above=True)]]
    codebook_usage: list[Annotated[float, Range(0, 1)]]
    skipped: list[_Skipped]
    library_versions: dict[str, str]
    num_inputs: NotRequired[Annotated[int, Range(0, 1 << 32)]]
    plan: NotRequired[str]
    source_content: NotRequired[str]
    source_split: NotRequired[str]
    structure: NotRequired[str]
    tokenizer_weights: NotRequired[Literal["ema", "model"]]
    changed: NotRequired[dict[str, Count]]
    repa: NotRequired[_Stored]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a data set.

    Args:
        folder: of the data set, or the manifest file itself.

    Raises:
        UserError: it is missing, no valid JSON, of another version, or incomplete.
    """
    path = folder / MANIFEST_FILE if folder.is_dir() else folder
    advice = "run `nvg precompute` to the end or change the folder"
    manifest = read_json(path, dict[str, Any], "the manifest of a finished record data set", advice)
    validate_manifest(manifest, str(path))
    return manifest


def validate_manifest(manifest: Mapping[str, Any], name: str) -> None:
    """Check version, keys, types and sizes; a UserError says of `name` what was found and what was expected."""
    found = (manifest.get("kind"), manifest.get("schema_version"))
    if found != (MANIFEST_KIND, SCHEMA_VERSION):
        raise UserError(
            f"{name}: found kind {found[0]!r}, schema_version {found[1]!r}, expected {MANIFEST_KIND!r}, "
            f"{SCHEMA_VERSION}; write the data set again with this version"
        )
    check_form(manifest, _Manifest, name, _ADVICE)
    try:
        RecordLayout(manifest["num_positions"])
    except UserError as error:
        raise UserError(f"{name}: {error}; {_ADVICE}") from error
    stages = manifest["last_stage"] + 1
    if 1 << manifest["last_stage"] != manifest["num_positions"]:
        raise UserError(
            f"{name}: last_stage is {stages - 1}; expected {manifest['num_positions'].bit_length() - 1} for "
            f"{manifest['num_positions']} positions; {_ADVICE}"
        )
    for key, length, of in (
        ("canvas_scales", stages + 1, f"last_stage {stages - 1}"),
        ("codebook_usage", stages, f"last_stage {stages - 1}"),
        ("class_names", manifest["num_classes"], f"num_classes {manifest['num_classes']}"),
        ("class_histogram", manifest["num_classes"], f"num_classes {manifest['num_classes']}"),
    ):
        if len(manifest[key]) != length:
            raise UserError(f"{name}: {key} has {len(manifest[key])} entries, expected {length} for {of}; {_ADVICE}")


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Keys of `right` whose value in `left` is another one or missing."""
    missing = object()
    return [key for key, value in right.items() if left.get(key, missing) != value]


def require_match(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    found_name: str,
    expected_name: str,
    advice: str,
) -> None:
    """Refuse two sides that do not belong together.

    Args:
        found: for instance a manifest.
        expected: the values it must have, by key; other keys are not compared.
        found_name, expected_name: where they are from, for the message.
        advice: what to change.

    Raises:
        Changed: names every key that differs, with both values and both names.
    """
    different = differences(found, expected)
    if different:
        lines = [f"  {key}: {found.get(key)!r} against {expected[key]!r}" for key in different]
        raise Changed(
            f"{found_name} and {expected_name} do not fit each other:\n" + "\n".join(lines) + f"\n{advice}",
            [f"{key}: {found.get(key)!r} → {expected[key]!r}" for key in different],
        )
