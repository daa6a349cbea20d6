"""A page of Markdown in its parts: blocks of code, code in the line, links, prose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
_SITE_ONLY = re.compile(r"^\{[\w:-]+\}")  # a fence with a directive of the site


@dataclass(frozen=True)
class Block:
    """A block of code and the line on which it begins, counted from 1."""

    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Page:
    """A page, read once."""

    path: Path

    @classmethod
    def of(cls, text: str, folder: Path = ROOT) -> Page:
        """A page that is no file: its links start in `folder`."""
        page = cls(folder / "page.md")
        page.__dict__["source"] = text
        return page

    @property
    def name(self) -> str:
        """Its path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name

    @cached_property
    def source(self) -> str:
        """The whole text."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tokens(self) -> list[Token]:
        """Of markdown-it, tables included."""
        return MarkdownIt("commonmark").enable("table").parse(self.source)

    @cached_property
    def blocks(self) -> list[Block]:
        """Code in blocks, without directives of the site."""
        return [
            Block((token.map or [0])[0] + 1, token.info.strip(), token.content)
            for token in self.tokens
            if token.type in ("fence", "code_block") and not _SITE_ONLY.match(token.info)
        ]

    def _inline(self) -> Iterator[tuple[int, Token]]:
        line = 0
        for token in self.tokens:
            line = token.map[0] + 1 if token.map else line
            for child in token.children or []:
                yield line, child

    @cached_property
    def code(self) -> list[tuple[int, str]]:
        """Code in the line, with the line on which its paragraph begins."""
        return [(line, token.content) for line, token in self._inline() if token.type == "code_inline"]

    @cached_property
    def links(self) -> list[tuple[int, str]]:
        """Targets of links and pictures."""
        found = [(line, token.attrs.get("href") or token.attrs.get("src")) for line, token in self._inline()]
        raw = re.findall(r"(?:src|href)=\"([^\"]+)\"", self.source)
        return [(line, str(target)) for line, target in found if target] + [(1, target) for target in raw]

    @cached_property
    def anchors(self) -> frozenset[str]:
        """Of its headings, as GitHub and MyST make them."""
        texts = [
            "".join(child.content for child in inline.children or [])
            for opening, inline in zip(self.tokens, self.tokens[1:], strict=False)
            if opening.type == "heading_open"
        ]
        return frozenset(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts)

    @cached_property
    def without_code(self) -> str:
        """The source with empty lines instead of blocks of code, so that lines keep their numbers."""
        lines = self.source.splitlines()
        for token in self.tokens:
            if token.type in ("fence", "code_block") and token.map:
                lines[token.map[0] : token.map[1]] = [""] * (token.map[1] - token.map[0])
        return "\n".join(lines)

    @cached_property
    def prose(self) -> list[str]:
        """Paragraphs and items as a reader sees them; no headings, tables, code blocks or pictures."""
        found, in_table = [], False
        for before, token in zip([None, *self.tokens], self.tokens, strict=False):
            in_table = token.type == "table_open" or (in_table and token.type != "table_close")
            if token.type == "inline" and not in_table and before and before.type == "paragraph_open":
                children = token.children or []
                texts = [
                    " " if child.type.endswith("break") else child.content
                    for child in children
                    if child.type in ("text", "code_inline", "softbreak", "hardbreak")
                ]
                found.append("".join(texts))
        return [text for text in found if text.strip()]


def pages() -> list[Page]:
    """All pages of the repository, but the changelog: what that tells of was so once."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
    made = ("docs/reference/generated", "docs/_build")
    kept = [page for page in map(Page, sorted(found)) if page.name != "CHANGELOG.md"]
    return [page for page in kept if not page.name.startswith(made)]
