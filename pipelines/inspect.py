"""`nvg inspect`: images, or stored records decoded from their ids, at every stage, as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from cluster.files import write_atomically
from eval.pictures.paintings import Painting, paint_records, paint_tokenized
from eval.pictures.sheets import painting_rows
from nvg.bounds import at_least, check_fields
from nvg.checkpoints import load_network
from nvg.checkpoints.runs import require_tokenizer, weights_folder
from nvg.errors import UserError
from nvg.records import RecordDataset
from nvg.tokenizer import Tokenizer
from pipelines.precompute.plan import SOURCES_FILE, read_sources
from pipelines.sources import SourceConfig, open_source


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is drawn.

    Attributes:
        records: record data set to draw from, with the tokenizer that wrote it; empty draws images of `source`.
        tokenizer: training run, checkpoint or weights of the tokenizer.
        index: first image or record that is drawn.
        count: how many are drawn, one below the other.
        output: PNG file.
    """

    records: str = ""
    tokenizer: str = "runs/demo/tokenizer"
    tokenizer_weights: Literal["ema", "model"] = "ema"
    source: SourceConfig = field(default_factory=lambda: SourceConfig(split="test"))
    index: int = at_least(0, 0)
    count: int = at_least(1, 1)
    output: str = "inspect.png"

    def __post_init__(self) -> None:
        check_fields(self)
        self.source.keep_apart("output", self.output)

    def rows(self, num_there: int, kind: str) -> list[int]:
        """Which ones. Raises UserError where there are not so many."""
        last = self.index + self.count - 1
        if last >= num_there:
            raise UserError(
                f"index {self.index} and count {self.count} ask for {kind} up to {last}; expected at most "
                f"{num_there - 1}, there are {num_there}; lower index or count"
            )
        return list(range(self.index, last + 1))


def plan_inspect(config: InspectConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    source, last = config.source, config.index + config.count - 1
    first = [
        f"open the {source.kind} source, split {source.split}, images {config.index} to {last}",
        f"turn them into visual granularity sequences with {config.tokenizer}",
    ]
    if config.records:
        first = [
            f"open the records of {config.records}, rows {config.index} to {last}",
            f"decode their ids with {config.tokenizer}",
        ]
    return [*first, f"draw map and canvas of every stage in {config.output}"]


def inspect(config: InspectConfig, console: Console | None = None) -> Path:
    """Draws the picture; of records also says which images they are, one line each.

    Returns:
        The PNG file.

    Raises:
        UserError: tokenizer, images or records are missing or damaged, do not belong together, or the index is out of
            range.
    """
    if config.records:
        paintings = _paint_records(config, console or Console(stderr=True, highlight=False))
    else:
        paintings = _paint_images(config)
    output = Path(config.output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, painting_rows(paintings).light)
    return output


def _paint_images(config: InspectConfig) -> list[Painting]:
    source = open_source(config.source)
    rows = config.rows(len(source), f"images of the {config.source.split} split")
    tokenizer = load_network(Tokenizer, weights_folder("tokenizer", config.tokenizer), name=config.tokenizer_weights)
    images = np.stack([source.read(row, 0) for row in rows])
    return paint_tokenized(tokenizer, images, source.labels[rows], "round")


def _paint_records(config: InspectConfig, console: Console) -> list[Painting]:
    records = RecordDataset.open(Path(config.records).expanduser().absolute())
    rows = config.rows(len(records), f"records of {config.records}")
    folder = weights_folder("tokenizer", config.tokenizer)
    made_with = {f"the records in {config.records}": records.manifest["tokenizer_hash"]}
    require_tokenizer("tokenizer", folder, config.tokenizer_weights, made_with)
    names = read_sources(records.folder) or []
    if (last := int(records.image[rows].max())) >= len(names):
        raise UserError(
            f"{records.folder / SOURCES_FILE}: found {len(names)} names of images, expected at least {last + 1}; copy "
            "it again"
        )
    for row in rows:
        class_name = records.manifest["class_names"][records.label[row]]
        text = f"record {row}: {names[records.image[row]]}, view {records.view[row]}, class {class_name}"
        console.print(text, markup=False)
    tokenizer = load_network(Tokenizer, folder, name=config.tokenizer_weights)
    return paint_records(tokenizer, records.batch(rows), "round")
