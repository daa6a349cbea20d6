"""manifest.json: the card beside a record data set that says what it is and what it belongs to.

A data set is only complete when its manifest is there, and whoever reads one compares it with what it expects. The
versions of the packages, which every product of a run names, are read here too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.files import write_atomically

MANIFEST_FILE = "manifest.json"
MANIFEST_KIND = "vgs-records"
SCHEMA_VERSION = 1

REQUIRED_KEYS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "schema_version": int,
    "tokenizer_hash": str,
    "image_size": int,
    "image_channels": int,
    "latent_channels": int,
    "num_positions": int,
    "last_stage": int,
    "codebook_size": int,
    "num_classes": int,
    "class_names": list,
    "class_histogram": list,
    "view_policy": str,
    "num_views": int,
    "num_images": int,
    "num_records": int,
    "source_fingerprint": str,
    "canvas_scales": list,
    "codebook_usage": list,
    "skipped": list,
    "library_versions": dict,
}

PACKAGES = (
    "deepspeed", "einops", "mosaicml-streaming", "numba", "numpy", "nvg", "pillow", "ray", "safetensors", "torch",
    "torch-fidelity", "torchmetrics", "torchvision",
)  # fmt: skip


class ManifestError(ValueError):
    """A manifest is missing, damaged, or does not fit what it is used with; the message names both sides."""


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write manifest.json atomically, after checking it; returns its path.

    Args:
        folder: of the data set.
        manifest: at least `REQUIRED_KEYS`; JSON values, every number finite.

    Raises:
        ManifestError: A required key is missing or of another type, or a number is not finite.
        OSError: the file cannot be written.
    """
    path = folder / MANIFEST_FILE
    validate_manifest(manifest, str(path))
    try:
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise ManifestError(f"{path}: {error}, expected finite numbers") from error
    write_atomically(path, (text + "\n").encode("utf-8"))
    return path


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a data set.

    Args:
        folder: of the data set, or the manifest file itself.

    Raises:
        ManifestError: it is missing, no valid JSON, of another version, or incomplete.
    """
    path = folder / MANIFEST_FILE if folder.is_dir() else folder
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(
            f"{path}: found no such file, expected the manifest of a finished record data set; "
            "run `nvg precompute` to the end or change the folder"
        ) from None
    except ValueError as error:
        raise ManifestError(f"{path}: not valid JSON ({error}); run `nvg precompute` again") from error
    if not isinstance(manifest, dict):
        raise ManifestError(f"{path}: found {type(manifest).__name__}, expected a JSON object")
    validate_manifest(manifest, str(path))
    return manifest


def validate_manifest(manifest: Mapping[str, Any], name: str) -> None:
    """Check version, keys and types; a ManifestError says of `name` what was found and what was expected."""
    found = (manifest.get("kind"), manifest.get("schema_version"))
    if found != (MANIFEST_KIND, SCHEMA_VERSION):
        raise ManifestError(
            f"{name}: found kind {found[0]!r}, schema_version {found[1]!r}, expected {MANIFEST_KIND!r}, "
            f"{SCHEMA_VERSION}; write the data set again with this version"
        )
    for key, expected_type in REQUIRED_KEYS.items():
        if key not in manifest:
            raise ManifestError(f"{name}: key {key} is missing; write the data set again with this version")
        if not isinstance(manifest[key], expected_type):
            raise ManifestError(f"{name}: {key} is {type(manifest[key]).__name__}, expected {expected_type}")
    stages = manifest["last_stage"] + 1
    for key, length in (("canvas_scales", stages + 1), ("codebook_usage", stages)):
        if len(manifest[key]) != length:
            raise ManifestError(
                f"{name}: {key} has {len(manifest[key])} entries, expected {length} for last_stage {stages - 1}"
            )


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
        ManifestError: names every key that differs, with both values and both names.
    """
    different = differences(found, expected)
    if different:
        lines = [f"  {key}: {found.get(key)!r} against {expected[key]!r}" for key in different]
        raise ManifestError(
            f"{found_name} and {expected_name} do not fit each other:\n" + "\n".join(lines) + f"\n{advice}"
        )


def library_versions() -> dict[str, str]:
    """Version of every package that could change a record, a weight or a score; "not installed" is one too."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
