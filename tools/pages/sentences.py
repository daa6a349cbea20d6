"""How long the sentences of a page are: words from capital to full stop, in what a reader reads on."""

from __future__ import annotations

import re

from tools.pages.text import Page

_SHORT_FORMS = re.compile(r"\b(e\.g|i\.e|Eq|Fig|Alg|App|vs|etc)\.")


def sentence_lengths(page: Page) -> list[int]:
    """Words of each sentence of paragraphs and items; headings, tables and code blocks do not count."""
    lengths = []
    for paragraph in page.prose:
        text = _SHORT_FORMS.sub(r"\1", paragraph)
        for sentence in re.split(r"(?<=[.!?])[\"')*]*\s+(?=[\"'(*`]*[A-Z0-9`])", text):
            words = re.findall(r"[\w’'./=-]*\w[\w’'./=-]*", sentence)
            if words:
                lengths.append(len(words))
    return lengths


def mean_length(page: Page) -> float:
    """Mean words of a sentence; 0 for a page without one."""
    lengths = sentence_lengths(page)
    return sum(lengths) / len(lengths) if lengths else 0.0
