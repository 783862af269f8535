"""Deterministic tar shards: equal samples give equal bytes, and every payload's place is known."""

import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE  # 512
_RECORD = tarfile.RECORDSIZE  # a tar ends with two zero blocks, padded to a record of 10,240 bytes


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where one payload lies in its tar."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where one sample lies in its tar: `length` bytes from `offset`, headers and padding included."""

    offset: int
    length: int
    members: dict[str, Member]


class TarWriter:
    """Writes samples to an open binary file, front to back, hashing as it goes.

    Attributes:
        size: bytes written so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, key: str, payloads: dict[str, bytes]) -> Span:
        """Appends one sample: `payloads` maps member names (`sample.member_names`) to bytes, in tar order."""
        start = self.size
        members = {}
        for member, payload in payloads.items():
            self._write(_header(f"{key}.{member}", len(payload)))
            members[member] = Member(offset=self.size, length=len(payload), crc32=zlib.crc32(payload))
            self._write(payload)
            self._write(bytes(-len(payload) % _BLOCK))
        return Span(offset=start, length=self.size - start, members=members)

    def finish(self) -> str:
        """Writes the end-of-archive mark and returns the sha256 of the whole tar, in hex."""
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self.size % _RECORD))
        self._file.flush()
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644  # mtime, uid and gid are 0 by default
    return info.tobuf(tarfile.PAX_FORMAT)  # PAX: names over 100 bytes get an extra header
