"""Which function holds which equation: writes the marked parts of docs/method.md from the docstrings.

    python tools/equation_map.py            writes the page
    python tools/equation_map.py --check    changes nothing; exit code 1 when page or docstrings are not in order

Read are the `Paper:` and `Release:` lines of docstrings and the `DEVIATION:` tags of docstrings and comments.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/method.md")
PACKAGES = ("nvg", "eval", "cluster", "pipelines")

# Every numbered equation and every line of the two algorithms of the paper.
NUMBERED = {
    "Eq. (1)": "flow: the channels of known splits are given clean",
    "Eq. (2)": "of a generated embedding only the channel of this stage's split is taken over",
    "Eq. (3)": "content loss: squared error of the final canvas plus cross-entropy of the tokens",
    "Eq. (4)": "contents c_i: the codes nearest to the cluster means of R_i",
    "Eq. (5)": "residual R_i: what is left of Z after painting φ_i(a(c_i, s_i))",
    "Eq. (6)": "structure embedding of a label and a stage",
    "Eq. (7)": "label of stage i of a structure embedding",
    "Eq. (8)": "content generator: width 64d, d heads, drop path 0.1 · d / 24",
    "Eq. (9)": "weights of its backbone: 15 d w²",
    "Eq. (10)": "structure generator: width 32d, d / 2 heads, otherwise the same",
    "Alg. 1 line 1": "encoded latent Z, K, L",
    "Alg. 1 line 2": "s_K = range(L), c_0 by Eq. (4)",
    "Alg. 1 line 3": "for k = K - 1, …, 0",
    "Alg. 1 line 4": "cluster in pairs",
    "Alg. 1 line 5": "for the stages from coarse to fine",
    "Alg. 1 line 6": "reorganise s_k: cluster j becomes 2j and 2j + 1",
    "Alg. 1 line 7": "R_k by Eq. (5)",
    "Alg. 1 line 8": "c_k by Eq. (4)",
    "Alg. 1 line 9": "the sequence {c_i, s_i}",
    "Alg. 2 line 1": "class condition, ε_s",
    "Alg. 2 line 2": "x = 0, s_e = 1",
    "Alg. 2 line 3": "for k = 0, …, K",
    "Alg. 2 line 4": "structure where 0 < k < K",
    "Alg. 2 line 5": "s_e from f_s",
    "Alg. 2 line 6": "s_{K-1} → s_K needs no prediction",
    "Alg. 2 line 7": "s_k by Eq. (7)",
    "Alg. 2 line 8": "c_k from f_c",
    "Alg. 2 line 9": "x = x + s_k(x_k)",
    "Alg. 2 line 10": "the sequence, or x",
}
SECTIONS = {
    "§2.1": "visual granularity sequence",
    "§2.2": "generation pipeline",
    "§2.2.1": "structure generator",
    "§2.2.2": "content generator",
    "§3.1": "generation results",
    "§3.2": "ablations, control by given structure",
    "App. A.2": "content construction",
    "App. A.3": "structure embedding",
    "App. A.4": "architecture",
    "App. A.5": "training setup",
    "App. A.6": "sampling method",
    "App. B.1": "reconstruction compared",
    "Table 1": "generation results",
    "Table 2": "ablations",
    "Table 3": "reconstruction",
    "Fig. 1": "images painted stage by stage",
    "Fig. 2": "canvas, content, structure",
    "Fig. 3": "structure embedding",
    "Fig. 4": "generation pipeline",
    "Fig. 5": "generation stage by stage",
    "Fig. 6": "structure-guided generation",
    "Fig. 7": "stage-wise control",
}
# The public functions and classes of these packages say where they come from. Dataclasses (containers) and functions
# named check_… hold no equation; of the rest, these do not either.
METHOD_FOLDERS = tuple(
    f"nvg/{name}/" for name in ("granularity", "layers", "tokenizer", "models", "sampling", "training")
)
PLUMBING = {
    "Companion": "a network beside its user",
    "ImageNetRange": "units of images",
    "PlainEngine": "the engine's interface",
    "capture_passes": "launches of kernels",
    "freeze": "no gradient to the weights",
    "frozen": "parameters to buffers",
    "level_options": "how a kernel is compiled",
    "replay_passes": "launches of kernels",
    "require_clustered": "a check",
    "sequences_at_once": "a processor's cache",
}


@dataclass(frozen=True)
class Place:
    """A module, class or function and its docstring."""

    path: str
    name: str
    docstring: str
    is_dataclass: bool

    @property
    def link(self) -> str:
        """Its name as a link from the page."""
        return f"[`{self.name or self.path}`](../{self.path})"


def main(arguments: list[str]) -> int:
    """Write or check the page; returns the exit code."""
    places = list(read_places())
    problems = [*wrong_references(places), *missing_references(places), *homeless(places)]
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    written = rewrite(page, places)
    if "--check" in arguments:
        if written != page:
            problems.append(f"{PAGE} is stale: run `make docs`")
    elif written != page:
        (ROOT / PAGE).write_text(written, encoding="utf-8")
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


def read_places() -> Iterator[Place]:
    """Every module, class and function of the packages that has a docstring, in the order of the files."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            yield from _places_below(ast.parse(file.read_text(encoding="utf-8")), path, "")


def _places_below(node: ast.Module | ast.ClassDef | ast.FunctionDef, path: str, name: str) -> Iterator[Place]:
    decorators = [] if isinstance(node, ast.Module) else [ast.unparse(item) for item in node.decorator_list]
    is_dataclass = any(text.startswith("dataclass") for text in decorators)
    yield Place(path, name, ast.get_docstring(node) or "", is_dataclass)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from _places_below(child, path, f"{name}.{child.name}" if name else child.name)


def references(place: Place, source: str) -> list[str]:
    """Texts after `Paper:` or `Release:` in a docstring, each up to the next of the two or the end of its paragraph."""
    pattern = rf"\b{source}: (.*?)(?=;?\s+(?:Paper|Release): |\n\s*\n|\Z)"
    return [_one_line(text).rstrip(".;") for text in re.findall(pattern, place.docstring, re.DOTALL)]


def cited(text: str) -> list[str]:
    """What a text after `Paper:` names: "Eq. (4)-(5), Alg. 1 lines 2-3, §2.1" → four numbered entries and a section."""
    found = []
    for first, last in re.findall(r"Eq\. \((\d+)\)(?:-\((\d+)\))?", text):
        found += [f"Eq. ({number})" for number in range(int(first), int(last or first) + 1)]
    for algorithm, lines in re.findall(r"Alg\. (\d+) lines? (\d+(?:(?:-|, )\d+)*)", text):
        for part in lines.split(", "):
            first, _, last = part.partition("-")
            found += [f"Alg. {algorithm} line {number}" for number in range(int(first), int(last or first) + 1)]
    found += re.findall(r"§\d+(?:\.\d+)*|(?:Table|Fig\.) \d+", text)
    found += [f"App. {section}" for section in re.findall(r"\b[AB]\.\d+", text)]
    return found


def wrong_references(places: list[Place]) -> list[str]:
    """`Paper:` lines that name nothing, or something the paper does not have."""
    problems = []
    for place in places:
        for text in references(place, "Paper"):
            names = cited(text)
            strange = [name for name in names if name not in NUMBERED and name not in SECTIONS]
            if strange or not names:
                what = ", ".join(strange) or "nothing that can be found in the paper"
                problems.append(f"{place.path} {place.name}: `Paper: {text}` names {what}")
    return problems


def homeless(places: list[Place]) -> list[str]:
    """Equations and algorithm lines that no docstring names."""
    homes = by_citation(places)
    return [f"{name} ({what}) has no function" for name, what in NUMBERED.items() if name not in homes]


def missing_references(places: list[Place]) -> list[str]:
    """Public names of the method of which neither docstring, methods nor module say where they come from."""
    sourced = {(p.path, p.name) for p in places if references(p, "Paper") or references(p, "Release")}
    problems, idle = [], set(PLUMBING)
    for place in places:
        if not place.path.startswith(METHOD_FOLDERS) or not place.name or re.search(r"\.|^_|^check_", place.name):
            continue
        known = {(place.path, place.name), (place.path, "")} & sourced
        inside = any(path == place.path and name.startswith(f"{place.name}.") for path, name in sourced)
        if place.is_dataclass or known or inside:
            continue
        if place.name not in PLUMBING:
            problems.append(f"{place.path} {place.name}: no `Paper:` or `Release:` line says where it comes from")
        idle.discard(place.name)
    return problems + [f"PLUMBING names {name}, which needs no exception" for name in sorted(idle)]


def by_citation(places: list[Place]) -> dict[str, list[Place]]:
    """Equation, algorithm line or section → the places whose docstrings name it."""
    homes: dict[str, list[Place]] = {}
    for place in places:
        for name in dict.fromkeys(name for text in references(place, "Paper") for name in cited(text)):
            homes.setdefault(name, []).append(place)
    return homes


def deviations(places: list[Place]) -> list[tuple[str, str]]:
    """Every `DEVIATION:` text with a link to where it stands, docstrings first, then comments."""
    found = []
    for place in places:
        for text in re.findall(r"DEVIATION: (.*?)(?=\n\s*\n|\Z)", place.docstring, re.DOTALL):
            found.append((_one_line(text), place.link))
    for path in dict.fromkeys(place.path for place in places):
        found += [(text, f"[`{path}`](../{path})") for text in _tagged_comments((ROOT / path).read_text("utf-8"))]
    return found


def _tagged_comments(source: str) -> list[str]:
    """Texts of `# DEVIATION:` comments, each with the comment lines that directly follow it."""
    texts, last_line = [], 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("# ")
        if text.startswith("DEVIATION: "):
            texts.append(text.removeprefix("DEVIATION: "))
        elif texts and token.start[0] == last_line + 1:
            texts[-1] += f" {text}"
        else:
            continue
        last_line = token.start[0]
    return texts


def rewrite(page: str, places: list[Place]) -> str:
    """The page with each marked part written anew.

    Raises:
        ValueError: the page lacks a pair of markers.
    """
    for name, part in (("equations", equation_table), ("release", release_list), ("deviations", deviation_list)):
        pattern = rf"(<!-- {name}: written by tools/equation_map\.py -->\n).*?(<!-- end of {name} -->)"
        text = "\n".join(part(places))
        page, count = re.subn(pattern, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE} has {count} parts between the markers of {name!r}, expected one")
    return page


def equation_table(places: list[Place]) -> list[str]:
    """Lines of the table: every numbered entry and section with its functions."""
    homes = by_citation(places)
    lines = ["| paper | what | here |", "|---|---|---|"]
    for name, what in {**NUMBERED, **SECTIONS}.items():
        if name in homes:
            lines.append(f"| {name} | {what} | {' · '.join(place.link for place in homes[name])} |")
    return lines


def release_list(places: list[Place]) -> list[str]:
    """Lines of the list of what only the authors' release settles."""
    return [f"* {place.link}: {text}" for place in places for text in references(place, "Release")]


def deviation_list(places: list[Place]) -> list[str]:
    """Lines of the list of deviations."""
    return [f"* {text[:1].upper()}{text[1:]} ({link})" for text, link in deviations(places)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
