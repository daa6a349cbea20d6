"""The look of all pages: parts as HTML, for light and dark screens, phones and paper; scores and times as text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.pictures.drawing import Picture

CSS = """
:root { color-scheme: light dark; --page: #fbfaf8; --card: #ffffff; --ink: #22262b; --soft: #646c75;
  --line: #e5e2dc; --accent: #0f766e; --wash: #0f766e12; }
@media (prefers-color-scheme: dark) { :root { --page: #121416; --card: #191c1f; --ink: #e4e7ea;
  --soft: #9aa2ab; --line: #2b2f34; --accent: #4fd1c0; --wash: #4fd1c014; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.6;
  font: 17px/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: clamp(2rem, 7vw, 5.5rem) clamp(1.1rem, 5vw, 3rem) 4rem; }
header { margin-bottom: clamp(2.5rem, 6vw, 4.5rem); }
.eyebrow { margin: 0 0 .6rem; color: var(--accent); font-size: .8rem; font-weight: 650;
  letter-spacing: .09em; text-transform: uppercase; }
h1 { margin: 0 0 1rem; font-size: clamp(2rem, 5.5vw, 3.2rem); line-height: 1.12; letter-spacing: -.022em;
  font-weight: 700; text-wrap: balance; }
h2 { margin: 0 0 .5rem; font-size: 1.45rem; line-height: 1.25; letter-spacing: -.012em; font-weight: 680; }
p { margin: 0 0 1rem; max-width: 41rem; text-wrap: pretty; }
.lead { color: var(--soft); font-size: 1.1rem; }
section { margin-top: clamp(3.2rem, 8vw, 5.5rem); }
.why { color: var(--soft); margin-bottom: 1.5rem; }
.headline { display: grid; gap: 1px; margin: 2.2rem 0 0; padding: 0; border: 1px solid var(--line);
  border-radius: 14px; background: var(--line); overflow: hidden;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.headline div { background: var(--card); padding: 1.15rem 1.3rem 1.05rem; display: flex;
  flex-direction: column; }
.headline dt { order: 2; color: var(--soft); font-size: .84rem; line-height: 1.4; }
.headline dd { order: 1; margin: 0 0 .2rem; font-size: 1.9rem; font-weight: 680; letter-spacing: -.02em;
  line-height: 1.2; font-variant-numeric: tabular-nums; }
.headline div:first-child dd { color: var(--accent); }
figure { margin: 0; padding: clamp(.8rem, 2.6vw, 1.7rem); background: var(--card);
  border: 1px solid var(--line); border-radius: 14px; overflow-x: auto; }
figure + figure { margin-top: 1.2rem; }
figure img { display: block; width: 100%; height: auto; min-width: var(--least, 0); }
figcaption { margin-top: 1.3rem; color: var(--soft); font-size: .92rem; line-height: 1.55; max-width: 44rem;
  position: sticky; left: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 14px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .72rem 1.1rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); font-size: .8rem; font-weight: 600; vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
tbody tr.first { background: var(--wash); }
tbody tr.first th { color: var(--accent); }
tbody th { font-weight: 600; }
.note { color: var(--soft); font-size: .92rem; margin-top: 1rem; max-width: 46rem; }
td.wrap { white-space: normal; overflow-wrap: anywhere; text-align: left; min-width: 14rem; }
code { font: .86em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
details { border: 1px solid var(--line); border-radius: 14px; background: var(--card); overflow: hidden; }
details + details { margin-top: .8rem; }
summary { cursor: pointer; padding: .95rem 1.2rem; font-weight: 600; }
details .scroll { border: 0; border-top: 1px solid var(--line); border-radius: 0; }
footer { margin-top: 5rem; color: var(--soft); font-size: .88rem; }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
ROW_NAMES = {
    "generated": "Generated",
    "generated_guidance_1": "Generated, guidance 1",
    "reconstructions": "Reconstructions",
    "held_out": "Real, held out",
}
_SCORE_NAMES = {
    "class_accuracy": "read as asked",
    "fid": "FID",
    "sfid": "sFID",
    "rfid": "rFID",
    "inception_score": "IS",
    "distance_to_training": "nearness to training images",
}
_DAGGER = " †"


def distance_name(results: Mapping[str, Any]) -> str:
    """What the Fréchet distance of the results is called: FID, or FD with the name of another network."""
    return results.get("protocol", {}).get("extractor", {}).get("distance", "FID")


def page(title: str, *parts: str, again_s: float | None = None) -> str:
    """A whole page of these parts (HTML) that asks the network for nothing.

    Args:
        again_s: seconds after which it loads itself again; None for a page that stays as it is.
    """
    body = "\n".join(parts)
    again = "" if again_s is None else f'<meta http-equiv="refresh" content="{again_s:.0f}">\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{again}"
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def header(title: str, lead: str = "", *parts: str) -> str:
    """The head of a page: its title, a sentence or two under it, further parts (HTML)."""
    under = [f'<p class="lead">{escape(lead)}</p>'] if lead else []
    lines = ["<header>", '<p class="eyebrow">Next Visual Granularity</p>', f"<h1>{escape(title)}</h1>", *under, *parts]
    return "\n".join([*lines, "</header>"])


def section(title: str, why: str, *parts: str) -> str:
    """A section: its title, one paragraph that says what to look for, its content (HTML)."""
    return (
        f'<section>\n<h2>{escape(title)}</h2>\n<p class="why">{escape(why)}</p>\n' + "\n".join(parts) + "\n</section>"
    )


def figure(picture: Picture, alt: str, caption: str, *, least_width: int = 0) -> str:
    """A picture with its caption, the dark one on dark pages.

    Args:
        picture: both versions.
        alt: what it shows, for those who do not see it.
        caption: plain text that says how to read it.
        least_width: CSS pixels below which it scrolls sideways instead of shrinking.
    """
    return (
        f'<figure style="--least:{least_width}px"><picture>'
        f'<source srcset="{_data(picture.dark)}" media="(prefers-color-scheme: dark)">'
        f'<img src="{_data(picture.light)}" alt="{escape(alt, quote=True)}" width="{picture.width}" '
        f'height="{picture.height}"></picture><figcaption>{escape(caption)}</figcaption></figure>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, first: int | None = None, wrap: bool = False) -> str:
    """A table that scrolls sideways on a phone.

    Args:
        head: plain texts.
        rows: plain texts; the first of each row is its name.
        first: row to be marked.
        wrap: let the other columns break lines (for long texts).
    """
    kind = ' class="wrap"' if wrap else ""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row[1:])
        mark = ' class="first"' if number == first else ""
        lines.append(f'<tr{mark}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    header = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{header}<tbody>{"".join(lines)}</tbody></table></div>'


def headline(numbers: Sequence[tuple[str, str]]) -> str:
    """The few numbers one looks for first: pairs of a number and what it is, plain texts."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(number)}</dd></div>" for number, name in numbers)
    return f'<dl class="headline">{cells}</dl>'


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def dagger(results: Mapping[str, Any], name: str, score: str) -> str:
    """What stands behind a score of a set that `caveats` of the results name; empty where none does."""
    return _DAGGER if any(score in found["scores"] and name in found["sets"] for found in _caveats(results)) else ""


def caveat_notes(results: Mapping[str, Any], *, marked: bool = True) -> list[str]:
    """The reasons behind the daggers, and why a score was left out, a line each; with the dagger where `marked`."""
    notes, called = [], {**_SCORE_NAMES, "fd": distance_name(results), "rfd": f"r{distance_name(results)}"}
    for found in _caveats(results):
        scores = ", ".join(called.get(name) or name for name in found["scores"])
        sets = [(ROW_NAMES.get(name) or name).lower() for name in found["sets"]]
        whose = f" ({'; '.join(sets)})" if 0 < len(sets) < len(results["scores"]) else ""
        notes.append(f"{_DAGGER.strip() + ' ' if sets and marked else ''}{scores}{whose}: {found['reason']}")
    return notes


def _caveats(results: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return results.get("caveats", ())  # results of before have none


def score_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The score table as text, for the page and for the terminal: head and rows, the generated images first.

    A dagger marks the scores that `caveat_notes` says something of.
    """
    scores = results["scores"]
    titles = {
        "class_accuracy": ("read as asked ↑", ".1%"),
        "fid": ("FID ↓", ".2f"),
        "fd": (f"{distance_name(results)} ↓", ".2f"),
        "inception_score": ("IS ↑", ".2f"),
        "precision": ("precision ↑", ".3f"),
        "recall": ("recall ↑", ".3f"),
    }
    shown = {name: title for name, title in titles.items() if any(name in row for row in scores.values())}
    head = ["", *(title for title, _ in shown.values()), "images"]
    rows = []
    for name, row in ((name, scores[name]) for name in ROW_NAMES if name in scores):
        cells = [
            f"{row[score]:{form}}{dagger(results, name, score)}" if score in row else ""
            for score, (_, form) in shown.items()
        ]
        rows.append([ROW_NAMES[name], *cells, f"{row['num_images']:,}"])
    return head, rows


def time_text(seconds: float) -> str:
    """Seconds as a person would say them: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
