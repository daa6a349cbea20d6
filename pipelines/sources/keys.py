"""Names of images, in one way everywhere: as bytes, a line of text, a number. They may be of no encoding."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable

import numpy as np

_NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def key_bytes(key: str) -> bytes:
    """A key for hashing: UTF-8, and the very bytes of a name that is not."""
    return key.encode("utf-8", "surrogateescape")


def key_line(key: str) -> str:
    """A key as one printable line, such as those of `sources.txt`.

    It stands for itself unless it holds control characters or bytes that are not UTF-8, or begins with a quote: then it
    is a JSON string, from which the key can be read again.
    """
    return json.dumps(key) if key.startswith('"') or _NO_LINE.search(key) else key


def hash_name(name: str) -> int:
    """64 bits of a name."""
    return int.from_bytes(hashlib.blake2b(key_bytes(name), digest_size=8).digest(), "big")


def hash_names(names: Iterable[str]) -> np.ndarray:
    """uint64, `hash_name` of each."""
    return np.fromiter((hash_name(name) for name in names), dtype=np.uint64)
