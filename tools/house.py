"""The house counted and drawn from its imports: `python -m tools.house [--draw docs/architecture.png]`.

Counted are modules, rooms, import circles and lines; drawn are the floors that pyproject.toml's contracts name, the
packages on them with their modules, and imports between packages. The same code gives the same picture, byte by byte.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOUSES = ("pipelines", "eval", "cluster", "nvg")


@dataclass(frozen=True)
class Module:
    """A file of the house; a front door is an `__init__.py`."""

    path: str
    text: str

    @property
    def name(self) -> str:
        """Dotted name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_front_door(self) -> bool:
        """Whether it is a package's `__init__.py`."""
        return self.path.endswith("/__init__.py")

    @property
    def docstring(self) -> str:
        """The module's own."""
        return ast.get_docstring(ast.parse(self.text)) or ""

    @property
    def num_lines(self) -> int:
        """All lines."""
        return self.text.count("\n")

    @property
    def num_code_lines(self) -> int:
        """Lines that are neither blank nor comment nor docstring."""
        documented: set[int] = set()
        for node in ast.walk(ast.parse(self.text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if node.body else None
                if isinstance(first, ast.Expr) and ast.get_docstring(node, clean=False) is not None:
                    documented |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        lines = enumerate((line.strip() for line in self.text.splitlines()), 1)
        return sum(1 for number, line in lines if line and not line.startswith("#") and number not in documented)


class House:
    """All modules and who imports whom, wherever in a module the import stands."""

    def __init__(self, root: Path = ROOT) -> None:
        files = [file for house in HOUSES for file in sorted((root / house).rglob("*.py"))]
        modules = [Module(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")) for file in files]
        self.modules = {module.name: module for module in modules}
        self.imports = {name: set(self._imported(module)) - {name} for name, module in self.modules.items()}
        self.contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]

    def _imported(self, module: Module) -> Iterator[str]:
        for node in ast.walk(ast.parse(module.text)):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [part if part in self.modules else node.module for part in parts]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            yield from (name for name in names if name in self.modules)

    def circles(self) -> list[str]:
        """Modules from which imports lead back to themselves."""
        return sorted(name for name in self.imports if name in reachable(self.imports, name))

    def rooms(self, package: str) -> list[str]:
        """Names of the modules and packages directly in a package."""
        found = (name.removeprefix(f"{package}.") for name in self.modules if name.startswith(f"{package}."))
        return sorted({name.split(".")[0] for name in found})

    def is_package(self, name: str) -> bool:
        """Whether a name is that of a package."""
        return name in self.modules and self.modules[name].is_front_door

    def below(self, *packages: str) -> list[Module]:
        """All modules of packages, front doors among them."""
        return [module for module in self.modules.values() if module.name.split(".")[0] in packages]

    def counts(self) -> dict[str, int]:
        """The figures of docs/architecture.md that can be counted without running anything."""
        ours = self.below("pipelines", "eval")
        return {
            "modules of pipelines + eval, front doors not counted": sum(not module.is_front_door for module in ours),
            "rooms at the top of pipelines": len(self.rooms("pipelines")),
            "modules in import circles": len(self.circles()),
            "lines of pipelines + eval": sum(module.num_lines for module in ours),
            "code lines of pipelines + eval + cluster": sum(
                module.num_code_lines for module in [*ours, *self.below("cluster")]
            ),
        }

    def floors(self, package: str) -> list[list[str]]:
        """Rooms of a package by floor, top first, as the import contracts name them."""
        floors: list[list[str]] = []
        for contract in self.contracts["contracts"]:
            inside = contract.get("containers") == [package]
            for layer in contract.get("layers", []):
                names = [name if not inside else f"{package}.{name}" for name in re.findall(r"[\w.]+", layer)]
                if all(name.startswith(f"{package}.") for name in names):
                    floors.append(names)
        return floors

    def beside(self, package: str) -> list[str]:
        """Rooms of a package that stand on no floor."""
        named = {name for floor in self.floors(package) for name in floor}
        return [room for room in (f"{package}.{name}" for name in self.rooms(package)) if room not in named]

    def in_reading_order(self, package: str) -> list[str]:
        """Packages of a package, those that use fewest of the others first."""
        packages = [f"{package}.{room}" for room in self.rooms(package) if self.is_package(f"{package}.{room}")]
        graph: dict[str, set[str]] = {room: set() for room in packages}
        for source, target in self.arrows(packages):
            graph[source].add(target)
        return sorted(packages, key=lambda room: (len(reachable(graph, room)), room))

    def arrows(self, rooms: Iterable[str]) -> list[tuple[str, str]]:
        """Imports between packages; one that follows from others (a → b → c, so a → c) is left out."""
        packages = [room for room in rooms if self.is_package(room)]
        graph: dict[str, set[str]] = {room: set() for room in packages}
        for name, imported in self.imports.items():
            for source in packages:
                if _is_in(name, source):
                    graph[source] |= {room for room in packages if any(_is_in(other, room) for other in imported)}
        for source in packages:
            graph[source].discard(source)
        for source in packages:
            for target in sorted(graph[source]):
                graph[source].discard(target)
                if target not in reachable(graph, source):
                    graph[source].add(target)
        return [(source, target) for source in packages for target in sorted(graph[source])]


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """What one or more steps from `start` lead to."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def _is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def main(arguments: list[str]) -> int:
    """Print the figures; draw where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draw", type=Path, metavar="FILE", help="write the picture (.png)")
    given = parser.parse_args(arguments)
    house = House()
    sys.stdout.writelines(f"{value:>7,}  {name}\n" for name, value in house.counts().items())
    if circles := house.circles():
        sys.stdout.write(f"import circles go through {', '.join(circles)}\n")
    if given.draw is not None:
        from tools.house_picture import draw  # matplotlib is needed for it alone

        draw(house, given.draw)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
