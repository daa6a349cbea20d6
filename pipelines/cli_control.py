"""Options of `nvg sample` that give it something to follow."""

from __future__ import annotations

import json
from typing import Annotated

import typer

StructureFrom = Annotated[
    str | None,
    typer.Option("--structure-from", metavar="IMAGE", help="Give this image's maps (or a .npy finest map)."),
]
StructureMask = Annotated[
    str | None,
    typer.Option("--structure-mask", metavar="MASK.png", help="Give a drawn mask, white on black, as first split."),
]
FixContentFrom = Annotated[
    str | None,
    typer.Option("--fix-content-from", metavar="IMAGE", help="Give this image's first contents and their maps."),
]
Stages = Annotated[
    int | None,
    typer.Option("--stages", metavar="M", help="How many splits (or stages of contents) are given; the rest is drawn."),
]
MaskForeground = Annotated[
    int | None,
    typer.Option("--mask-foreground", metavar="0|1", help="Child that the mask's foreground becomes; 1 by default."),
]


def control_overrides(
    structure_from: str | None,
    structure_mask: str | None,
    fix_content_from: str | None,
    stages: int | None,
    mask_foreground: int | None,
) -> list[str]:
    """The options as `key=value` texts; those not given are left out.

    Args:
        structure_from, structure_mask, fix_content_from: files.
        stages: M.
        mask_foreground: 0 or 1.

    Returns:
        Overrides of the configuration's `control` section.
    """
    options = {
        "structure_from": structure_from,
        "structure_mask": structure_mask,
        "fix_content_from": fix_content_from,
        "stages": stages,
        "mask_foreground": mask_foreground,
    }
    return [f"control.{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
