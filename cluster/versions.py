"""Versions of the packages, which every product of a run names."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "deepspeed", "einops", "mosaicml-streaming", "numba", "numpy", "nvg", "pillow", "ray", "safetensors", "torch",
    "torch-fidelity", "torchmetrics", "torchvision",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Version of every package that could change a record, a weight or a score; "not installed" is one too."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
