"""One pass over the headers of a tar shard: what is inside, where, and whether it is whole."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field

from webdataset.tariterators import base_plus_ext

from nvg.errors import UserError
from pipelines.sources.locations import open_binary, read_range, size_of

LABEL_EXTENSIONS = ("cls", "json")
_BLOCK_BYTES = tarfile.BLOCKSIZE


@dataclass
class TarSample:
    """One sample of a shard.

    Attributes:
        key: Name shared by its members.
        members: Extension → (offset in the tar, size in bytes).
        labels: Content of its label members, by extension.
    """

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)


def index_tar(path: str) -> list[TarSample]:
    """List the samples of a shard, in order of first appearance, whatever the order of their members.

    Args:
        path: Location of an uncompressed tar in the webdataset convention: members of a sample share the name up to the
            first dot.

    Returns:
        The samples with offsets and sizes of their members.

    Raises:
        UserError: The file is missing, truncated or no tar, or a member appears twice.
    """
    samples: dict[str, TarSample] = {}
    num_members, end = 0, 0
    try:
        file_bytes = size_of(path)
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                num_members += 1
                end = member.offset_data + _padded(member.size if member.isreg() else 0)
                if end > file_bytes:
                    raise _truncated(path, file_bytes, end, num_members)
                base, extension = base_plus_ext(member.name)
                if not member.isreg() or base is None or extension is None or _is_hidden(member.name):
                    continue
                extension = extension.lower()
                sample = samples.setdefault(base, TarSample(base))
                if extension in sample.members:
                    raise UserError(f"{path}: member {member.name} appears twice; write the shard again")
                sample.members[extension] = (member.offset_data, member.size)
                content = archive.extractfile(member) if extension in LABEL_EXTENSIONS else None
                if content is not None:
                    sample.labels[extension] = content.read()
            end = archive.offset
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except tarfile.TarError as error:
        if num_members == 0 and file_bytes >= _BLOCK_BYTES:
            raise UserError(f"{path}: found no tar archive ({error}), expected an uncompressed tar") from error
        raise _truncated(path, file_bytes, end + _BLOCK_BYTES, num_members) from error
    if file_bytes < end + _BLOCK_BYTES:
        raise _truncated(path, file_bytes, end + 2 * _BLOCK_BYTES, num_members)
    return list(samples.values())


def read_member(path: str, offset: int, num_bytes: int) -> bytes:
    """Read one member of an indexed tar.

    Raises:
        OSError: The file is not what was indexed any more.
    """
    data = read_range(path, offset, num_bytes)
    if len(data) != num_bytes:
        raise OSError(f"{path}: got {len(data)} bytes at {offset}, expected {num_bytes}; it changed while in use")
    return data


def _truncated(path: str, file_bytes: int, expected_bytes: int, num_members: int) -> UserError:
    return UserError(
        f"{path}: truncated: got {file_bytes} bytes, expected at least {expected_bytes} "
        f"(the end of archive was not reached after {num_members} members); copy or write the shard again"
    )


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))
