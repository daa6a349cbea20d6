"""The notebook docs/tour.py, run; and the page made of it, docs/tour.md with its figures.

python -m tools.tour_page runs/demo

The page is for readers without a model. It says where its figures come from.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "tour.py"
PAGE = ROOT / "docs" / "tour.md"
FIGURES = ROOT / "docs" / "results"
RUN = "runs/demo"  # what the notebook loads
_FRONT = """<!-- written by tools/tour_page.py from docs/tour.py -->
"""


def read_notebook() -> NotebookNode:
    """The notebook as Jupyter has it, not run."""
    import jupytext

    return jupytext.read(NOTEBOOK)


def run_notebook(folder: Path, *, timeout_s: int = 240) -> NotebookNode:
    """The notebook after a run.

    Args:
        folder: where it runs; holds `runs/demo`.
        timeout_s: of one cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    notebook = read_notebook()
    client = NotebookClient(
        notebook, timeout=timeout_s, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return client.execute(env={**os.environ, "PYTHONPATH": path})


def figures(cell: Any) -> list[bytes]:
    """PNG files that a cell has shown."""
    shown = [output.get("data", {}) for output in cell.get("outputs", [])]
    return [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]


def texts(cell: Any) -> str:
    """What a cell has printed, and the value of its last line where that is no picture."""
    found = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            found.append(output.text)
        elif output.output_type == "execute_result":
            found.append(output["data"]["text/plain"])
    return "\n".join(found).strip()


def page_of(notebook: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """The page, and the figures that belong into `docs/results` by name."""
    parts, pictures, about = [_FRONT], {}, "the tour"
    number = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if found := re.search(r"\*\*\d+\. (.+?)\.\*\*", cell.source):
                about = found[1]
            continue
        number += 1
        parts.append(f"```python\n{cell.source}\n```")
        if said := texts(cell):
            parts.append(f"```text\n{said}\n```")
        for picture in figures(cell):
            name = f"tour-{number:02d}.png"
            pictures[name] = picture
            parts.append(f"![{about}](results/{name})")
    return "\n\n".join(parts) + "\n", pictures


def main(run: Path) -> None:
    """Run the notebook on a run folder and write page and figures."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / RUN).parent.mkdir()
        (Path(folder) / RUN).symlink_to(run.resolve())
        page, pictures = page_of(run_notebook(Path(folder)))
    PAGE.write_text(page, encoding="utf-8")
    for name, picture in pictures.items():
        (FIGURES / name).write_bytes(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
