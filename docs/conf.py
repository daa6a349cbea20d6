"""The documentation site: `make site` builds it into build/site, warnings are errors.

Pages are Markdown that reads on its own as well. Two things are changed while the site is made: a link to a module of
the repository leads into the API reference, and what docstrings write as Markdown becomes reStructuredText.
"""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

project = "NVG"
author = "The nvg contributors"
project_copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_templates", "results/*.json*"]
templates_path = ["_templates"]

myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]

autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_class_signature = "mixed"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Links of pages to functions must lead somewhere. Types in signatures may not: those of others are nowhere here.
nitpick_ignore_regex = [(r"py:(?!obj).*", r".*"), (r"py:obj", r"typing\.Literal\[.*")]
suppress_warnings = ["ref.python"]  # a type in a signature may be called as some field is

html_theme = "furo"
html_title = f"NVG {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

DOCUMENTED = ("nvg", "eval", "cluster")  # pipelines are commands, which say of themselves what they take
_ROOT_PAGES = {"README": "index", "CONTRIBUTING": "contributing", "SECURITY": "security", "CHANGELOG": "changelog"}
_OUTWARD = re.compile(r"\[([^\]\n]*)\]\(((?:\.\./)+)([^)#\s]*)(#[^)\s]*)?\)")


def lead_inward(page: str, text: str) -> str:
    """A page's text with its links to files of the repository led to what the site has of them.

    Args:
        page: name of the page, "results/demo".
    """
    depth = page.count("/")

    def led(link: re.Match[str]) -> str:
        words, ups, path, anchor = link[1], link[2].count("../"), link[3], link[4] or ""
        if ups <= depth or not (ROOT / path).exists():
            return link[0]
        name = words.strip("`")
        if path.startswith(DOCUMENTED) and path.endswith(".py"):
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            target = f"{module}.{name}" if name != path and _is_documented(module, name) else module
            return f"{{py:obj}}`{name} <{target}>`"
        if path.endswith(".md") and (target := _ROOT_PAGES.get(path.removesuffix(".md"))):
            return f"[{words}]({'../' * depth}{target}.md{anchor})"
        return words if words.startswith("`") else f"{words} (`{path}`)"

    return _OUTWARD.sub(led, text)


def _is_documented(module: str, name: str) -> bool:
    """Whether autodoc shows it: a public function or class; no kernel, which a compiler has wrapped."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        if part.startswith("_"):
            return False
        found = getattr(found, part)
    return inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, property)


def _read_page(app: Any, page: str, source: list[str]) -> None:
    source[0] = lead_inward(page, source[0])


def to_restructured(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText: code in double back-ticks, examples and tables as they stand."""
    found: list[str] = []
    is_literal = False
    for before, line in zip(["", *lines], lines, strict=False):
        indent = len(line) - len(line.lstrip())
        if is_literal and line.strip() and indent < 4 and not line.startswith("|"):
            is_literal = False
            found.append("")
        starts = (line.startswith("    ") and not before.strip()) or line.startswith("| ")
        if starts and not is_literal and not _in_section(found):
            is_literal = True
            found += ["", "::", ""]
        if is_literal:
            found.append(f"    {line}")
            continue
        parts = re.split(r"(`+[^`]+`+)", line)
        parts[::2] = [re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
        found.append(re.sub(r"^(\s*)\\\* ", r"\1* ", "".join(parts)))
    return found


_SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Example|Examples|Note):$")


def _in_section(lines: list[str]) -> bool:
    """Whether the last unindented line opens a section, whose entries are indented."""
    unindented = [line for line in lines if line and not line.startswith(" ")]
    return bool(unindented and _SECTION.match(unindented[-1]))


def _read_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_restructured(lines)


def setup(app: Any) -> None:
    """Register both changes."""
    app.connect("source-read", _read_page)
    app.connect("autodoc-process-docstring", _read_docstring, priority=100)  # before napoleon
