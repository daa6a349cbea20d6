"""A file in every state in which a user may have it: fields of a JSON document in turn, bytes anywhere."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MISSING = object()
VALUES: tuple[Any, ...] = (
    *(MISSING, None, True, -1, 0, 1 << 31, 10**30, 0.5, -2.5, 1e308, float("nan"), float("inf")),
    *("", "text", "../../x", "\x00", "ü" * 5000, [], [None], [-1], {}, {"a": None}),
)
NO_JSON = (
    b"",
    b"\n",
    b"{",
    b"[]",
    b"null",
    b"5",
    b'"text"',
    b"\xff\xfe{}",
    b"\xe9",
    bytes(64),
    b"[" * 100_000,
    b"{}{}",
)


class Damage(NamedTuple):
    """One state of a file.

    Attributes:
        name: what was done.
        content: of the file.
        tolerated: why it may be read all the same; empty where it may not.
    """

    name: str
    content: bytes
    tolerated: str = ""


def json_damages(
    document: Any, *, unread: tuple[str, ...] = (), may_lack: tuple[str, ...] = (), may_be: tuple[str, ...] = ()
) -> Iterator[Damage]:
    """Every field of a document missing, of another type, negative, huge, not finite; and no document at all.

    Args:
        document: a sound one.
        unread: beginnings of the fields that are carried and not read.
        may_lack: fields that may be missing or null.
        may_be: fields for which another value of the same type means something as well.
    """
    text = json.dumps(document, indent=1).encode()
    for place in _places(document):
        original = _at(document, place)
        key = ".".join(str(part) for part in place if not isinstance(part, int))
        for value in VALUES:
            if value is not MISSING and value is original:
                continue
            damaged = copy.deepcopy(document)
            parent = _at(damaged, place[:-1])
            if value is MISSING:
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
            reason = ""
            if key.startswith(unread):
                reason = "a field that is carried and not read"
            elif key in may_lack and (value is MISSING or value is None):
                reason = "a field that may be missing"
            elif value is MISSING and isinstance(place[-1], int):
                reason = "a shorter list"
            elif key in may_be and _is_alike(value, original):
                reason = "another value that means something"
            name = f"{'.'.join(map(str, place))} = {'missing' if value is MISSING else repr(value)[:30]}"
            yield Damage(name, json.dumps(damaged).encode(), reason)
    for content in NO_JSON:
        yield Damage(f"the file is {content[:10]!r}", content)
    for end in sorted({*range(0, len(text) - 1, max(1, len(text) // 25))}):
        yield Damage(f"cut off after {end} bytes", text[:end])
    for place in range(0, len(text), max(1, len(text) // 25)):
        yield Damage(f"not UTF-8 at {place}", text[:place] + b"\xe9" + text[place:])


def byte_damages(
    content: bytes,
    tolerated: str,
    *,
    header: int,
    tail: int = 0,
    num_cuts: int = 40,
    bits: tuple[int, ...] = (0, 3, 7),
    step: int = 1,
    cuts_tolerated: str = "",
) -> Iterator[Damage]:
    """A binary file cut off at many places, with bits flipped, with another beginning, and with more at its end.

    Args:
        content: of a sound file.
        tolerated: why a flipped bit may change nothing that is read.
        header, tail: bytes from the beginning and from the end in which bits are flipped.
        step: of these the bytes that are touched.
        cuts_tolerated: why a file that is cut off may be read.
    """
    size = len(content)
    for end in sorted({0, 1, 2, 3, 4, 7, 8, 9, size - 1, size // 2, *range(0, size, max(1, size // num_cuts))}):
        if end < size:
            yield Damage(f"cut off after {end} bytes", content[:end], cuts_tolerated if end else "")
    places = [*range(0, min(header, size), step), *range(max(0, size - tail), size, step)]
    for place in places:
        for bit in bits:
            flipped = bytes([content[place] ^ (1 << bit)])
            yield Damage(f"bit {bit} of byte {place}", content[:place] + flipped + content[place + 1 :], tolerated)
    for beginning in (b"\0" * 8, b"\xff" * 8, b"PK\3\4\0\0\0\0", b"\x93NUMPY\1\0", b"<html>..", b"\x80\2}q\0."):
        yield Damage(f"begins with {beginning!r}", beginning + content[8:], tolerated)
        yield Damage(f"is {beginning!r}", beginning)
    yield Damage("twice", content * 2, tolerated)
    yield Damage("a byte more", content + b"\0", tolerated)


def random_damages(content: bytes, tolerated: str, number: int, seed: int = 0) -> Iterator[Damage]:
    """A few bytes changed, cut out or put in, anywhere."""
    generator = random.Random(seed)
    for count in range(number):
        damaged = content
        for _ in range(generator.randint(1, 4)):
            place, length = generator.randrange(len(damaged) + 1), generator.choice([1, 1, 2, 8, 40])
            piece = generator.choice([b"", generator.randbytes(length), b"\0" * length])
            damaged = damaged[:place] + piece + damaged[place + generator.choice([0, length]) :]
        yield Damage(f"random {count}", damaged, tolerated)


def put(path: Path, content: bytes) -> None:
    """Another content under a new inode: whoever has mapped the old file keeps it."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _places(document: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every value of a document is; of a list the first and the last."""
    if place:
        yield place
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _places(value, (*place, key))
    elif isinstance(document, list):
        for number in sorted({0, len(document) - 1} if document else ()):
            yield from _places(document[number], (*place, number))


def _at(document: Any, place: tuple[str | int, ...]) -> Any:
    for part in place:
        document = document[part]
    return document


def _is_alike(value: Any, original: Any) -> bool:
    both = (type(value), type(original))
    return value == value and (both[0] is both[1] or {*both} == {int, float})
