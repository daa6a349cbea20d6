"""Versions of the packages, which every product of a run names, and what brings a package that is missing."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "deepspeed", "einops", "mosaicml-streaming", "numba", "numpy", "nvg", "pillow", "ray", "safetensors", "torch",
    "torch-fidelity", "torchmetrics", "torchvision",
)  # fmt: skip
# Modules that extras of pyproject.toml bring, by what pip is to be asked for; what `import nvg` needs is always there.
MODULES = {
    "train,eval": (
        "PIL", "deepspeed", "fsspec", "matplotlib", "numba", "omegaconf", "packaging", "psutil", "pyarrow", "ray",
        "rich", "sklearn", "streaming", "tensorboardX", "timm", "torch_fidelity", "torchmetrics", "torchvision",
        "typer", "webdataset", "yaml",
    ),
    "app": ("gradio",),
    "hub": ("huggingface_hub",),
    "wandb": ("wandb",),
}  # fmt: skip


def library_versions() -> dict[str, str]:
    """Version of every package that could change a record, a weight or a score; "not installed" is one too."""
    return {package: _version(package) for package in PACKAGES}


def commit() -> str | None:
    """Commit of the code, None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def say_missing(error: ModuleNotFoundError) -> str | None:
    """What to install for a module that was not found; None where no extra brings it: then it is a mistake of ours."""
    module = (error.name or "").split(".")[0]
    for extras, modules in MODULES.items():
        if module in modules:
            return (
                f'the Python package {module!r} is missing; expected it for this command; pip install "nvg[{extras}]"'
            )
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
