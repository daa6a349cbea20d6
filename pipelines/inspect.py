"""`nvg inspect`: one image, its structure map and its reconstruction at every stage, as a picture.

`nvg inspect DATASET`: stored records decoded from their ids, as a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from cluster.files import write_atomically
from eval.pictures.paintings import paint_records, paint_tokenized
from eval.pictures.sheets import painting_rows
from nvg.checkpoints import load_network, weights_hash
from nvg.errors import UserError
from nvg.records import RecordDataset
from nvg.tokenizer import Tokenizer
from pipelines.checkpoints import weights_folder
from pipelines.precompute.plan import SOURCES_FILE
from pipelines.sources import SourceConfig, open_source


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is drawn.

    Attributes:
        records: record data set to draw from; empty draws images of `source`.
        tokenizer: training run, checkpoint or weights of the tokenizer.
        tokenizer_weights: which weights, "ema" or "model".
        source: the images.
        index: first image or record that is drawn.
        count: how many are drawn, one below the other.
        output: PNG file.
    """

    records: str = ""
    tokenizer: str = "runs/demo/tokenizer"
    tokenizer_weights: str = "ema"
    source: SourceConfig = field(default_factory=lambda: SourceConfig(split="test"))
    index: int = 0
    count: int = 1
    output: str = "inspect.png"

    def __post_init__(self) -> None:
        if self.index < 0 or self.count < 1:
            raise ValueError(f"index, count: found {self.index}, {self.count}; expected at least 0 and 1")


def plan_inspect(config: InspectConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    last = config.index + config.count - 1
    if config.records:
        return [
            f"open the records of {config.records}, rows {config.index} to {last}",
            f"decode their ids with {config.tokenizer}",
            f"draw map and canvas of every stage in {config.output}",
        ]
    return [
        f"open the {config.source.kind} source, split {config.source.split}, images {config.index} to {last}",
        f"turn them into visual granularity sequences with {config.tokenizer}",
        f"draw map and canvas of every stage in {config.output}",
    ]


def inspect_image(config: InspectConfig) -> Path:
    """Draws the picture.

    Args:
        config: what is drawn.

    Returns:
        The PNG file.

    Raises:
        UserError: tokenizer or images are missing, do not fit, or the index is out of range.
    """
    source = open_source(config.source)
    if config.index + config.count > len(source):
        raise UserError(
            f"index {config.index} and count {config.count} ask for images up to {config.index + config.count - 1}; "
            f"the {config.source.split} split has {len(source)}: lower index or count"
        )
    tokenizer = load_network(Tokenizer, weights_folder("tokenizer", config.tokenizer), name=config.tokenizer_weights)
    rows = range(config.index, config.index + config.count)
    images = np.stack([source.read(row, 0) for row in rows])
    picture = painting_rows(paint_tokenized(tokenizer, images, source.labels[list(rows)], "round"))
    output = Path(config.output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, picture.light)
    return output


def inspect_records(config: InspectConfig, console: Console | None = None) -> Path:
    """Draw records and say which images they are.

    Args:
        config: `records` is the data set, `tokenizer` the one that wrote it.
        console: Where a line for each record is printed.

    Returns:
        The PNG file.

    Raises:
        UserError: Records or tokenizer are missing or damaged, do not belong together, or the index is out of range.
    """
    console = console or Console(stderr=True, highlight=False)
    records = RecordDataset.open(Path(config.records).expanduser().absolute())
    if config.index + config.count > len(records):
        raise UserError(
            f"index {config.index} and count {config.count} ask for records up to {config.index + config.count - 1}; "
            f"{config.records} has {len(records)}: lower index or count"
        )
    folder = weights_folder("tokenizer", config.tokenizer)
    found = weights_hash(folder, config.tokenizer_weights)
    if found != records.manifest["tokenizer_hash"]:
        raise UserError(
            f"{config.records} was written with a tokenizer of hash {records.manifest['tokenizer_hash']}, {folder} "
            f"({config.tokenizer_weights}) has {found}; set tokenizer to the one that wrote the records"
        )
    tokenizer = load_network(Tokenizer, folder, name=config.tokenizer_weights)
    rows = list(range(config.index, config.index + config.count))
    names = (records.folder / SOURCES_FILE).read_text(encoding="utf-8").split("\n")
    for row in rows:
        class_name = records.manifest["class_names"][records.label[row]]
        text = f"record {row}: {names[records.image[row]]}, view {records.view[row]}, class {class_name}"
        console.print(text, markup=False)
    picture = painting_rows(paint_records(tokenizer, records.batch(rows), "round"))
    output = Path(config.output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, picture.light)
    return output
