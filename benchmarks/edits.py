"""Measures edits on a finished demo: a region of held-out digits kept, the rest drawn anew: docs/results/edits.json.

    .venv/bin/python benchmarks/edits.py --run runs/demo

Every held-out digit, four masks, classes asked for: `own`; `shared`, every other class that goes with what is kept;
and `next`, the label after its own, which may contradict what is kept. What goes with it real digits decide: that one
of the class which comes nearest to what is kept is pasted into the reconstruction, and the judge reads the result. The
same paste made of canvases and decoded shows what the decoder alone loses. Beside the edits stand free samples of the
same classes from the same noise.

Legend: B digits, P pairs of a digit and a class, N digits that are pasted (the training's).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import nvg
from eval.pictures.drawing import LIGHT, mosaic, place, show, to_png, white_figure
from eval.scores.judge import train_judge
from nvg.pixels import ImageArray
from nvg.sampling import Given, keep_region, kept_positions
from nvg.tiles import enlarge, to_rgb
from pipelines.configuration import load_config
from pipelines.evaluate.config import EvaluateConfig
from pipelines.sources import load_images, open_source

ASKED = ("own", "shared", "next")
_BATCH = 99
_GREY = 128
_OWN, _OTHERS = 3, 3  # edits of a digit in the picture
_TILE_PIXELS = 128


def main() -> None:
    """Measures, prints, writes figures and a picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, default=Path("docs/results/edits.json"))
    given = parser.parse_args()
    began = time.monotonic()
    bench = Bench(given.run)
    rows = {name: bench.measure(keep_HW, given.seeds) for name, keep_HW in drawn_masks(bench.side).items()}
    protocol = {
        "command": "python " + " ".join(sys.argv),
        "sampling": asdict(bench.model.sampling),
        "digits": len(bench.digits.labels),
        "seeds": given.seeds,
        "torch_threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - began, 1),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({"masks": rows, "protocol": protocol}, indent=1) + "\n")
    given.output.with_suffix(".png").write_bytes(picture(bench))
    sys.stdout.write(table(rows))


class Bench:
    """A model, held-out digits with their reconstructions, and who reads them."""

    def __init__(self, run: Path) -> None:
        config = load_config(EvaluateConfig, run / "configs" / "evaluation.yaml", [])
        source = replace(config.source, num_views=1, view_policy="center")
        splits = [load_images(open_source(replace(source, split=name))) for name in ("test", "train", "judge")]
        self.digits, self.donors, judged = splits
        self.model = nvg.load(run)
        self.side = self.model.tokenizer.config.image_size
        self.num_classes = len(self.model.class_names)
        self.judge = train_judge(judged.images, judged.labels, num_classes=self.num_classes, config=config.judge)
        self.parts, self.given = (self.model.encode(list(part.images)) for part in (self.digits, self.donors))
        self.plain, self.donated = self.parts.decode(), self.given.decode()

    def edit(
        self, keep_HW: NDArray[np.bool_], rows_B: NDArray[np.int64], labels_B: NDArray[np.int64], seed: int
    ) -> ImageArray:
        """One edit of each of those digits."""
        keep_L = kept_positions(torch.from_numpy(keep_HW), self.parts.structure.shape[1])
        region = keep_region(
            keep_L.expand(len(rows_B), -1),
            self.parts.content_ids[rows_B],
            self.parts.structure[rows_B],
            self.model.tokenizer.dequantizer,
        )
        return self._drawn(Given(region=region), labels_B, seed)

    def free(self, labels_B: NDArray[np.int64], seed: int) -> ImageArray:
        """Free samples from the same noise."""
        return self._drawn(Given(), labels_B, seed)

    def _drawn(self, given: Given, labels_B: NDArray[np.int64], seed: int) -> ImageArray:
        images = []
        for rows in torch.arange(len(labels_B)).split(_BATCH):
            with torch.inference_mode():
                part = given.each(lambda tensor, rows=rows: tensor[rows])
                drawn = self.model.draw(torch.from_numpy(labels_B)[rows], rows, seed=seed, given=part)
            images.append(self.model.decode(drawn.canvases_BSLC[:, -1]))
        return np.concatenate(images)

    def asked(self, keep_HW: NDArray[np.bool_]) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Rows of the digits and labels asked of them, by the names of `ASKED`."""
        every_B, own_B = np.arange(len(self.digits.labels)), self.digits.labels.astype(np.int64)
        rows_P = every_B.repeat(self.num_classes)
        labels_P = np.tile(np.arange(self.num_classes), len(every_B))
        pasted_P = self.judge.read(self.pasted(keep_HW, rows_P, labels_P))
        shared_P = (pasted_P == labels_P) & (labels_P != own_B[rows_P])
        following_B = (own_B + 1) % self.num_classes
        return {
            "own": (every_B, own_B),
            "shared": (rows_P[shared_P], labels_P[shared_P]),
            "next": (every_B, following_B),
        }

    def pasted(self, keep_HW: NDArray[np.bool_], rows_P: NDArray[np.int64], labels_P: NDArray[np.int64]) -> ImageArray:
        """Reconstructions into which a real digit of the class asked for is pasted, the nearest to what is kept."""
        nearest_P = self._nearest(keep_HW, rows_P, labels_P)
        return np.where(keep_HW[..., None], self.plain[rows_P], self.donated[nearest_P])

    def decoded_paste(
        self, keep_HW: NDArray[np.bool_], rows_P: NDArray[np.int64], labels_P: NDArray[np.int64]
    ) -> ImageArray:
        """The same paste of canvases, decoded: what an edit would be whose every token is that digit's own."""
        keep_L1 = kept_positions(torch.from_numpy(keep_HW), self.parts.structure.shape[1])[:, None]
        given_PLC = self.given.canvases[self._nearest(keep_HW, rows_P, labels_P), -1]
        return self.model.decode(torch.where(keep_L1, self.parts.canvases[rows_P, -1], given_PLC))

    def _nearest(
        self, keep_HW: NDArray[np.bool_], rows_P: NDArray[np.int64], labels_P: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        distance_PN = self._distance(keep_HW)[rows_P]
        distance_PN[labels_P[:, None] != self.donors.labels[None]] = np.inf
        return distance_PN.argmin(1)

    def _distance(self, keep_HW: NDArray[np.bool_]) -> NDArray[np.float64]:
        kept_BP, kept_NP = (images[:, keep_HW].reshape(len(images), -1) for images in (self.plain, self.donated))
        one, other = (torch.from_numpy(kept.astype(np.float64)) for kept in (kept_BP, kept_NP))
        return torch.cdist(one, other).numpy()

    def measure(self, keep_HW: NDArray[np.bool_], seeds: list[int]) -> dict[str, Any]:
        """Figures of one mask: by what is asked, and how well the picture is kept."""
        rows: dict[str, Any] = {}
        errors: dict[str, list[float]] = {}
        for name, (digits_B, labels_B) in self.asked(keep_HW).items():
            found = []
            for seed in seeds:
                edited, free = self.edit(keep_HW, digits_B, labels_B, seed), self.free(labels_B, seed)
                own_B = self.digits.labels[digits_B].astype(np.int64)
                found.append([float((self.judge.read(edited) == read_B).mean()) for read_B in (labels_B, own_B)])
                found[-1].append(float((self.judge.read(free) == labels_B).mean()))
                for where, pixels_HW in distances(keep_HW, self.model.tokenizer.config.num_positions):
                    apart = edited[:, pixels_HW].astype(np.float64) - self.plain[digits_B][:, pixels_HW]
                    errors.setdefault(where, []).append(float((apart**2).mean()))
            read, as_own, free_read = np.mean(found, axis=0).tolist()
            reach, decoded = (
                float((self.judge.read(paste(keep_HW, digits_B, labels_B)) == labels_B).mean())
                for paste in (self.pasted, self.decoded_paste)
            )
            rows[name] = {
                "pairs": len(labels_B),
                "read as asked": read,
                "free read as asked": free_read,
                "over free": read / free_read,
                "real digits pasted, read as asked": reach,
                "canvases of real digits pasted, read as asked": decoded,
                "read as the picture's own": as_own,
            }
        psnr = {where: 10 * np.log10(255**2 / max(np.mean(squares), 1e-9)) for where, squares in errors.items()}
        return {"kept": float(keep_HW.mean()), "psnr_db": psnr, **rows}


def distances(keep_HW: NDArray[np.bool_], num_positions: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Kept pixels by how far from the border they lie: `beside` it, or a latent cell `away` and further; if any do."""
    keep_L = kept_positions(torch.from_numpy(keep_HW), num_positions)
    side = int(num_positions**0.5)
    made = (~keep_L).float().view(1, 1, side, side)
    near = F.max_pool2d(made, 3, stride=1, padding=1).bool().view(side, side).numpy()
    keep, pixels = keep_L.view(side, side).numpy(), len(keep_HW) // side
    for where, cells in (("beside", keep & near), ("away", keep & ~near)):
        if cells.any():
            yield where, cells.repeat(pixels, 0).repeat(pixels, 1)


def drawn_masks(side: int) -> dict[str, NDArray[np.bool_]]:
    """What is kept: the left half; all but a circle, a border, a strip. True is kept."""
    y, x = np.mgrid[0:side, 0:side] / side + 0.5 / side
    return {
        "half": x < 0.5,
        "circle": (x - 0.75) ** 2 + (y - 0.25) ** 2 > 0.25**2,
        "border": np.maximum(abs(x - 0.5), abs(y - 0.5)) < 0.25,
        "strip": abs(y - 0.625) > 0.125,
    }


def table(rows: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| kept | dB beside | dB away | "
        + " | ".join(f"{name}: read / free = ratio (pasted, canvases)" for name in ASKED)
        + " |"
    ]
    lines.append("|" + "---|" * (len(ASKED) + 3))
    for mask, row in rows.items():
        decibels = [f"{row['psnr_db'][where]:.1f}" if where in row["psnr_db"] else "–" for where in ("beside", "away")]
        cells = [
            f"{row[name]['read as asked']:.3f} / {row[name]['free read as asked']:.3f} = {row[name]['over free']:.2f} "
            f"({row[name]['real digits pasted, read as asked']:.2f}, "
            f"{row[name]['canvases of real digits pasted, read as asked']:.2f}; n {row[name]['pairs']})"
            for name in ASKED
        ]
        lines.append(f"| {mask} | " + " | ".join([*decibels, *cells]) + " |")
    return "\n".join(lines) + "\n"


def picture(bench: Bench) -> bytes:
    """For each mask the first digit of a class not shown yet with which enough classes go: what is kept, edits; PNG."""
    masks = drawn_masks(bench.side)
    names, rows = ["reconstruction", "kept"], []
    shown: set[int] = set()
    for name, keep_HW in masks.items():
        own_B, shared = bench.digits.labels, bench.asked(keep_HW)["shared"]
        counts_B = np.bincount(shared[0], minlength=len(own_B))
        enough = min(_OTHERS, counts_B.max())
        digit = next(row for row in np.flatnonzero(counts_B >= enough).tolist() if own_B[row] not in shown)
        shown.add(int(own_B[digit]))
        others = shared[1][shared[0] == digit][:_OTHERS]
        digits_B = np.full(_OWN + len(others), digit)
        labels_B = np.concatenate([np.full(_OWN, own_B[digit]), others]).astype(np.int64)
        kept_HW = np.any([pixels_HW for _, pixels_HW in distances(keep_HW, bench.parts.structure.shape[1])], axis=0)
        kept_HWC = np.where(kept_HW[..., None], bench.plain[digit], np.uint8(_GREY))
        rows.append((name, [bench.plain[digit], kept_HWC, *bench.edit(keep_HW, digits_B, labels_B, 0)], labels_B))
    columns = len(names) + _OWN + _OTHERS
    tile, margin, head, line = 0.82, 0.62, 0.32, 0.22
    figure = white_figure(margin + tile * columns, head + len(rows) * (tile + line))
    for row, (name, tiles, labels_B) in enumerate(rows):
        y = head + row * (tile + line)
        for column, image in enumerate(tiles):
            axes = place(figure, margin + column * tile, y, 0.94 * tile, 0.94 * tile)
            show(axes, mosaic([list(to_rgb(enlarge(image, least=_TILE_PIXELS)[None]))]))
            below = "" if column < len(names) else f"as {bench.model.class_names[labels_B[column - len(names)]]}"
            axes.text(0.5, -0.05, below, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=LIGHT.ink)
            if row == 0 and column < len(names):
                axes.set_title(names[column], fontsize=8, color=LIGHT.ink, pad=4)
            if column == 0:
                axes.text(
                    -0.08, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=8, color=LIGHT.ink
                )
    return to_png(figure)


if __name__ == "__main__":
    main()
