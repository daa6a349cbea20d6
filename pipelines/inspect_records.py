"""`nvg inspect DATASET`: stored records decoded from their ids, as a picture."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cluster.files import write_atomically
from eval.pictures.paintings import paint_records
from eval.pictures.sheets import painting_rows
from nvg.checkpoints import load_network, weights_hash
from nvg.errors import UserError
from nvg.records import RecordDataset
from nvg.tokenizer import Tokenizer
from pipelines.checkpoints import weights_folder
from pipelines.inspect import InspectConfig
from pipelines.precompute.merge import SOURCES_FILE


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
