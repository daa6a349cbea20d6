"""What is in a tar shard, and where: one pass over its headers, after which every byte and member is accounted for.

`tarfile` takes a damaged header, or zeros, for the end of an archive. Here the end is where nothing but zeros follows,
and anything else is refused with its place.
"""

from __future__ import annotations

import logging
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from eval.locations import junk_heading, open_binary, size_of
from nvg.errors import UserError

logger = logging.getLogger(__name__)

LABEL_EXTENSIONS = ("cls", "json")
_LEFT_BY_OTHERS = "left by other programs"
_METADATA = re.compile(r"__[^/]*__$")
_BLOCK_BYTES = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
_LARGEST_RECORD_BYTES = 1 << 20  # archives are filled up to whole records, of 20 blocks where no one says otherwise
_MAX_LINKS = 40  # from one to the next, as many as Linux follows
_COMPRESSED_CONTENT = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PK": "zip"}
# what tarfile raises where a header's fields make no sense
_UNREADABLE = (tarfile.TarError, ValueError, LookupError, OverflowError, MemoryError, RecursionError)


@dataclass
class TarSample:
    """One sample of a shard.

    Attributes:
        key: name shared by its members.
        members: extension → name, offset in the tar, size in bytes.
        labels: content of its label members, by extension.
        faults: why members cannot be read, by extension.
        is_regular: whether the webdataset library sees it: counted in its `index.json`.
    """

    key: str
    members: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    is_regular: bool = False


@dataclass
class TarIndex:
    """What a shard holds.

    Attributes:
        samples: by key, in order of first appearance, whatever the order of their members.
        files: name, offset and size of each regular member.
        links: sample, extension and the name linked to, of each link.
        passed_over: names of members that are no inputs, with the reason.
    """

    samples: dict[str, TarSample] = field(default_factory=dict)
    files: list[tuple[str, int, int]] = field(default_factory=list)
    links: list[tuple[TarSample, str, str]] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)


def index_tar(path: str) -> TarIndex:
    """Everything in a shard.

    It is an uncompressed tar in the webdataset convention: members of a sample share the name up to the first dot.

    Raises:
        UserError: the file is missing, truncated, damaged or no tar, or a member appears twice.
    """
    index = TarIndex()
    try:
        with open_binary(path) as file:
            for member in _members(path, file):
                if not _is_folder(member):
                    _add_member(index, member, file, path)
            _resolve_links(index, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return index


def _members(path: str, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Every member of an archive, whose end is looked at after the last one."""
    file_bytes, end, num_members = size_of(path), 0, 0
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it holds no more than the file given
        while True:
            file.seek(end)
            member = tarfile.TarInfo.fromtarfile(archive)
            if archive.offset <= end or member.size < 0:
                raise tarfile.ReadError("a member of negative size")
            num_members, end = num_members + 1, archive.offset
            if end > file_bytes:
                raise _truncated(path, file_bytes, end, num_members)
            yield member
    except UserError:
        raise
    except _UNREADABLE as error:
        is_cut = end + _BLOCK_BYTES > file_bytes or (num_members and file.tell() >= file_bytes)
        file.seek(end)
        if file.read(_BLOCK_BYTES) == bytes(_BLOCK_BYTES):
            _check_end(path, file, file_bytes, end, num_members)
            return
        if is_cut:
            raise _truncated(path, file_bytes, end + 2 * _BLOCK_BYTES, num_members) from error
        if num_members == 0:
            raise _no_archive(path, file, error) from error
        raise _damaged(path, end, f"found no header after {num_members} members ({error})") from error


def _check_end(path: str, file: BinaryIO, file_bytes: int, end: int, num_members: int) -> None:
    """After its last member an archive holds zeros: two blocks or more, filled up to a whole record."""
    file.seek(end)
    at = end
    while chunk := file.read(_CHUNK_BYTES):
        rest = chunk.lstrip(b"\0")
        if rest:
            at += (len(chunk) - len(rest)) // _BLOCK_BYTES * _BLOCK_BYTES
            file.seek(at)
            raise _not_the_end(path, end, at, num_members, file.read(_BLOCK_BYTES))
        at += len(chunk)
    record_bytes = max(tarfile.RECORDSIZE, min(file_bytes & -file_bytes, _LARGEST_RECORD_BYTES))
    if at - end > 2 * _BLOCK_BYTES + record_bytes:
        logger.warning(
            "%s: found %d bytes of zeros after the last of %d members (at byte %d), expected %d at most; a copy that "
            "was broken off can look so: compare it with the original",
            *(path, at - end, num_members, end, 2 * _BLOCK_BYTES + record_bytes),
        )


def _not_the_end(path: str, end: int, at: int, num_members: int, block: bytes) -> UserError:
    found = f"found zeros after {num_members} members and then"
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except _UNREADABLE:
        return _damaged(path, end, f"{found} other data from byte {at}")
    if at - end < 2 * _BLOCK_BYTES:
        return _damaged(path, end, f"{found} a further member at byte {at}")
    return UserError(
        f"{path}: {found} a further archive at byte {at}: two archives joined; expected one; use tar --concatenate "
        "to join archives, or keep them apart"
    )


def _no_archive(path: str, file: BinaryIO, error: BaseException) -> UserError:
    file.seek(0)
    start = file.read(_BLOCK_BYTES)
    for magic, name in _COMPRESSED_CONTENT.items():
        if start.startswith(magic):
            error = ValueError(f"its content is {name}; unpack it")
    return UserError(f"{path}: found no tar archive at byte 0 ({error}), expected an uncompressed tar")


def _damaged(path: str, at: int, what: str) -> UserError:
    return UserError(f"{path}: damaged at byte {at}: {what}; copy or write the shard again")


def _truncated(path: str, file_bytes: int, expected_bytes: int, num_members: int) -> UserError:
    return UserError(
        f"{path}: truncated: got {file_bytes} bytes, expected at least {expected_bytes} "
        f"(the end of archive was not reached after {num_members} members); copy or write the shard again"
    )


def _add_member(index: TarIndex, member: tarfile.TarInfo, file: BinaryIO, path: str) -> None:
    name, offset, num_bytes = member.name, member.offset_data, member.size
    is_whole = member.isreg() and not member.issparse()
    if is_whole:
        index.files.append((name, offset, num_bytes))
    if _is_junk(name):
        index.passed_over.append((name, _LEFT_BY_OTHERS))
        return
    if _METADATA.match(name):
        index.passed_over.append((name, "metadata of webdataset"))
        return
    base, extension = _base_and_extension(name)
    sample = index.samples.setdefault(base, TarSample(base))
    if extension in sample.members:
        raise UserError(f"{path}: member {name} appears twice; write the shard again")
    sample.members[extension] = (name, offset, num_bytes)
    sample.is_regular |= member.isreg() and extension != "" and not is_hidden(name)
    if member.issym() or member.islnk():
        start = posixpath.dirname(name) if member.issym() else ""
        index.links.append((sample, extension, posixpath.join(start, member.linkname)))
    elif not is_whole:
        kind = "a sparse file" if member.issparse() else f"of type {ascii(member.type)[2:-1]}"
        sample.faults[extension] = f"no regular file: {name} is {kind}"
    elif extension in LABEL_EXTENSIONS:
        sample.labels[extension] = file.read(num_bytes)


def _is_junk(name: str) -> bool:
    """As in folders, but that a name which begins with a dot is junk only where the Finder makes it."""
    parts = [
        part for part in name.split("/") if not part.startswith(".") or part.startswith("._") or part == ".DS_Store"
    ]
    return any(map(junk_heading, parts))


def _is_folder(member: tarfile.TarInfo) -> bool:
    """Also the folders of incremental backups (D) and the label of a volume (V)."""
    return member.isdir() or member.type == b"D" or (member.type == b"V" and member.size == 0)


def _resolve_links(index: TarIndex, file: BinaryIO) -> None:
    """Give links, hard and symbolic, the bytes they have where the archive is unpacked."""
    if not index.links:
        return
    places = {posixpath.normpath(name): (offset, size) for name, offset, size in index.files}
    targets = {posixpath.normpath(sample.members[ext][0]): target for sample, ext, target in index.links}
    for sample, extension, linked in index.links:
        target = posixpath.normpath(linked)
        for _ in range(_MAX_LINKS):
            if target not in targets:
                break
            target = posixpath.normpath(targets[target])
        name = sample.members[extension][0]
        if target not in places:
            sample.faults[extension] = f"link to no file of the archive: {name} to {linked}"
            continue
        offset, num_bytes = places[target]
        sample.members[extension] = (name, offset, num_bytes)
        if extension in LABEL_EXTENSIONS:
            file.seek(offset)
            sample.labels[extension] = file.read(num_bytes)


def _base_and_extension(name: str) -> tuple[str, str]:
    """What a sample's members share, and the rest in lower case: none where a file has no dot or begins with it."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, extension = file_name.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else (name, "")


def is_hidden(name: str) -> bool:
    """Whether a part of a name begins with a dot, `..` among them."""
    return any(part.startswith(".") and part != "." for part in name.split("/"))
