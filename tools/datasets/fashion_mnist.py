"""Fashion-MNIST, 70,000 photographs of clothes, from Debian's package: `python -m tools.datasets.fashion_mnist FOLDER`.

`FOLDER` then holds the four files of the data set (`source.kind=idx`): links to the installed package's, or, where it
is not installed, the files out of the package, which `apt-get download` and `dpkg-deb` give without root.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from nvg.bounds import refuse
from nvg.errors import UserError
from pipelines.entry import guard

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FILES = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
_WAYS = f"""have the data set in one of these ways:
  install the package:      sudo apt-get update && sudo apt-get install {PACKAGE}
  or let it be unpacked:    sudo apt-get update, then this command again
  or bring the four files:  {", ".join(FILES)}, gzipped or not, in any folder as source.path"""


def find_fashion_mnist(folder: Path, *, installed: Path = INSTALLED) -> str:
    """Put the four files into a folder; all of them or none.

    Args:
        folder: must not be there yet, or hold the four files.
        installed: where the package has its files.

    Returns:
        Where they are from, in words.

    Raises:
        UserError: the folder holds something else, or the package can neither be found nor downloaded; all ways to have
            the files are named.
    """
    if all((folder / name).is_file() for name in FILES):
        return "there already"
    if folder.exists():
        raise refuse("FOLDER", str(folder), "a folder that is not there yet, or one with the four files")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fashion-mnist-", dir=folder.parent) as name:
        work = Path(name)
        is_installed = all((installed / name).is_file() for name in FILES)
        source = installed if is_installed else _unpack(work) / INSTALLED.relative_to("/")
        (work / "files").mkdir()
        for name in FILES:
            target = work / "files" / name
            if is_installed:
                target.symlink_to(source / name)
            else:
                shutil.move(source / name, target)
        (work / "files").rename(folder)
    return f"links to {installed}" if is_installed else f"out of the package {PACKAGE}, downloaded"


def _unpack(work: Path) -> Path:
    """The package's files below a folder, nothing installed."""
    try:
        _run(["apt-get", "download", PACKAGE], work)
        package = next(work.glob("*.deb"))
        _run(["dpkg-deb", "-x", package.name, "root"], work)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UserError(
            f"{PACKAGE} is neither installed nor could it be downloaded ({' '.join(said.split())}); {_WAYS}"
        ) from None
    return work / "root"


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


def main() -> None:
    """Entry point."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help="Put the four files of Fashion-MNIST into a folder, from Debian's package, without root.")
    def fashion_mnist(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder.")]) -> None:
        typer.echo(f"{folder}: {find_fashion_mnist(folder)}")

    sys.exit(guard(app))


if __name__ == "__main__":
    main()
