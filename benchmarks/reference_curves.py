"""Curves to compare one's own training with: thinned from the metrics of finished runs.

    python benchmarks/reference_curves.py runs/demo/content runs/demo/structure --output docs/results/reference

Writes REFERENCE.json (losses, accuracies and use of the codebook, overall and per stage, by images seen; with the
settings of each run) and REFERENCE.png. A run of one's own may differ by what another seed differs; the demo's three
seeds say how much.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from eval.pictures.plots import loss_curves
from nvg.checkpoints.runs import resolve_checkpoint
from pipelines.run_folder import read_metrics
from pipelines.train.state import TrainerState

NUM_ROWS = 60
NUMBERS = (
    *("loss", "accuracy", "cross_entropy", "mse", "repa", "velocity", "grad_norm", "lr"),
    *("l1", "feature", "quantizer", "codebook"),
)


def main() -> None:
    """Reads the runs, writes the two files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="path of both files without their ending")
    given = parser.parse_args()
    curves: dict[str, dict[str, Any]] = {}
    for run in given.runs:
        state = TrainerState.read(resolve_checkpoint(run))
        rows = read_metrics(run)
        spread = np.linspace(0, len(rows) - 1, min(NUM_ROWS, len(rows))).astype(int)
        curves[str(state.config["kind"])] = {
            "settings": {name: value for name, value in state.config.items() if value is not None},
            "rows": [_numbers(rows[index]) for index in spread],
        }
    given.output.with_suffix(".json").write_text(json.dumps(curves, indent=1) + "\n")
    given.output.with_suffix(".png").write_bytes(
        loss_curves({kind: curve["rows"] for kind, curve in curves.items()}).light
    )
    for kind, curve in curves.items():
        last = curve["rows"][-1]
        said = (f"{name} {last[name]:.4f}" for name in ("loss", "accuracy", "codebook_usage") if name in last)
        sys.stdout.write(f"{kind}: {last['images']} images, {', '.join(said)}\n")


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: value for name, value in row.items() if name.startswith(NUMBERS)}
    rounded = {name: value if value is None else float(f"{value:.5g}") for name, value in chosen.items()}
    return {"step": row["step"], "images": row["images"], **rounded}


if __name__ == "__main__":
    main()
