"""Figures of pages, each with the file it comes from, named in a comment right behind it:

    reads 96.6 %<!-- docs/results/demo.json: runs.*.scores.generated.class_accuracy --> of its digits

Behind a JSON file stands the way to the value: keys and numbers with dots between them. `*` takes all of a list, and
the mean of what it finds; `min`, `max`, `count` or `sum` before the way take that instead. `* 100` or `/ 60` at the end
turn units; a figure followed by % is of a share, if nothing is turned. The value, rounded to the figure's digits, must
be the figure. Behind any other file stand words of it, in which the figure stands, or nothing: then the figure itself
must stand in that file; in tables `|` is written `\\|`. A page that gives one source gives all: `unsourced` names
figures with a unit and no source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tools.pages.text import ROOT, Page

_UNIT = r"(?:%|seconds?|minutes?|hours?|days?|GB|MB|GiB|TB|MiB|dB|images/s|images a second)"
_FIGURE = r"(?P<figure>\d[\d,]*(?:\.\d+)?|\.\d+)(?P<unit>(?:[\s\u00a0*]|&nbsp;)*(?:%|[A-Za-z/ ]{1,24})?\**)"
_SOURCED = re.compile(rf"{_FIGURE}<!-- (?P<file>[\w./-]+\.\w+)(?:: (?P<way>[^>]*?))? -->")
_BARE = re.compile(rf"(?<![\w./])\d[\d,]*(?:\.\d+)?(?:\s|\u00a0)*{_UNIT}(?![\w])(?P<behind>[^<|\n]{{0,1}}<!--)?")
_TAKES = {
    "min": min,
    "max": max,
    "sum": sum,
    "count": len,
    "mean": lambda values: sum(values) / len(values),
}


def problems_of(page: Page) -> Iterator[tuple[int, str]]:
    """Line and problem of every figure that its source does not have."""
    for number, line in enumerate(page.without_code.splitlines(), 1):
        for match in _SOURCED.finditer(line):
            if problem := _problem_of(match):
                yield number, problem
        strange = len(re.findall(r"<!-- [\w./-]+/[\w.-]+\.\w+(?:: |\s*-->)", line)) - len(_SOURCED.findall(line))
        if strange:
            yield number, "a source stands behind no figure"


def unsourced(page: Page) -> Iterator[tuple[int, str]]:
    """Figures with a unit, outside of code, behind which no source stands; of settings and rules there are none."""
    for number, line in enumerate(page.without_code.splitlines(), 1):
        plain = re.sub(r"<!--.*?-->", "<!---->", re.sub(r"`[^`]*`", "", line))
        for match in _BARE.finditer(plain):
            if not match["behind"]:
                yield number, f"{match[0].strip()!r} has no source"


def is_sourced(page: Page) -> bool:
    """Whether a page gives sources."""
    return bool(_SOURCED.search(page.without_code))


def _problem_of(match: re.Match[str]) -> str | None:
    figure, file, way = match["figure"], match["file"], (match["way"] or "").replace("\\|", "|")
    path = ROOT / file
    if not path.exists():
        return f"{figure} is of {file}, which is not there"
    if path.suffix != ".json":
        text = _text(file)
        words = way or figure
        held = words in text and figure in words
        return None if held else f"{figure}: {file} does not have {words!r}"
    if not way:
        return f"{figure}: say where in {file} it stands"
    try:
        value = value_at(json.loads(_text(file)), way, is_share="%" in match["unit"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return f"{figure}: {file} has no {way!r} ({error})"
    digits = len(figure.partition(".")[2])
    found = f"{value:.{digits}f}"
    return None if float(figure.replace(",", "")) == float(found) else f"{figure}: {file} has {value:.6g} at {way}"


def value_at(content: Any, way: str, is_share: bool = False) -> float:
    """The number at a way through JSON.

    Raises:
        KeyError, IndexError, TypeError, ValueError: there is none.
    """
    words = way.split()
    take = _TAKES[words.pop(0)] if words[0] in _TAKES else _TAKES["mean"]
    path, *turn = words
    values = [float(value) for value in _found(content, path.split("."))]
    number = float(take(values))
    if not turn:
        return number * 100 if is_share else number
    if len(turn) != 2 or turn[0] not in "*/":
        raise ValueError(f"found {' '.join(turn)!r} behind the way, expected such as '* 100' or '/ 60'")
    return number * float(turn[1]) if turn[0] == "*" else number / float(turn[1])


def _found(content: Any, parts: list[str]) -> list[Any]:
    if not parts:
        return [content]
    part, rest = parts[0], parts[1:]
    if part == "*":
        items = content.values() if isinstance(content, dict) else content
        return [value for item in items for value in _found(item, rest)]
    return _found(content[int(part)] if isinstance(content, list) else content[part], rest)


@cache
def _text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")
