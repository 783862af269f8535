"""One shard's tar against its table: length and hash, the tar's own structure, every payload's crc32 and content."""

import bisect
import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from isal import isal_zlib

from shards_spec import storage
from shards_spec.sample import member_column
from shards_spec.storage import Place
from shards_spec.tar import TarWriter
from tools.verify.damage import Findings
from tools.verify.sample import problems_of
from tools.verify.undecoded import UNDECODED, looks_undecoded

Row = dict[str, Any]
Count = Callable[[int], None]  # is told how many more bytes have been checked

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Tar:
    """What the tables say of a tar.

    Attributes:
        rows: of its samples, in the order of the tar; None where the shard's own table cannot be read.
        members: of each sample, in tar order.
    """

    path: Place
    bytes: int
    sha256: str
    rows: list[Row] | None
    members: tuple[str, ...]

    def places(self) -> Iterator["Payload"]:
        """Where each member should lie, front to back."""
        for row in self.rows or ():
            header = row["offset"]
            for member in self.members:
                offset, length = (row[member_column(member, field)] for field in ("offset", "length"))
                yield Payload(row["key"], member, header, offset, length)
                header = offset + length + -length % _BLOCK


@dataclass(frozen=True)
class Payload:
    """Where one member should lie: its header, its payload."""

    key: str
    member: str
    header: int
    offset: int
    length: int


def check_tar(tar: Tar, count: Count) -> Findings:
    """Everything that is wrong with a tar."""
    found = Findings()
    name = tar.path.name
    try:
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-shards-"))
            local = storage.fetch(tar.path, Path(scratch) / name)
            _check_open(tar, stack.enter_context(local.open("rb")), found, count)
    except FileNotFoundError:
        first = tar.rows[0] if tar.rows else None
        found.add(
            name,
            "is missing" + (f", with its {len(tar.rows or ()):,} samples, of which this is the first" if first else ""),
            key=first["key"] if first else None,
            offset=first["offset"] if first else None,
        )
    except OSError as error:
        found.refused(name, error)
    return found


def _check_open(tar: Tar, file: BinaryIO, found: Findings, count: Count) -> None:
    name = tar.path.name
    size = os.fstat(file.fileno()).st_size
    sha256, readable, refused = _sha256(file)
    if refused is not None:
        found.refused(name, refused, offset=readable)
    checked = 0
    if tar.rows is not None:
        if size < tar.bytes:
            _report_cut(tar, size, found)
        _check_structure(tar, file, readable, found)
        for row in tar.rows:
            if row["offset"] + row["length"] <= size:
                _check_sample(tar, file, row, found)
                count(row["length"])
                checked += row["length"]
        if sha256 != tar.sha256 and refused is None:
            _locate(tar, file, size, found)
    if size > tar.bytes:
        found.add(name, f"has {size - tar.bytes:,} bytes too many", offset=tar.bytes)
    elif not found.count and size < tar.bytes:
        found.add(name, f"is cut: {size:,} of {tar.bytes:,} bytes", offset=size)
    elif not found.count and sha256 != tar.sha256:
        found.add(name, f"has sha256 {sha256}, the tables say {tar.sha256}")
    count(max(0, tar.bytes - checked))


def _sha256(file: BinaryIO) -> tuple[str, int, OSError | None]:
    """The hash of what can be read, how many bytes that is, and why the rest cannot be."""
    digest = hashlib.sha256()
    position = 0
    while True:
        try:
            chunk = os.pread(file.fileno(), _CHUNK, position)
        except OSError as error:
            return digest.hexdigest(), position, error
        if not chunk:
            return digest.hexdigest(), position, None
        digest.update(chunk)
        position += len(chunk)


def _report_cut(tar: Tar, size: int, found: Findings) -> None:
    lost = [row for row in tar.rows or () if row["offset"] + row["length"] > size]
    what = f"is cut: {size:,} of {tar.bytes:,} bytes"
    if lost:
        more = f", and {len(lost) - 1:,} behind it are gone" if len(lost) > 1 else ""
        what += f"; this sample is not whole{more}"
        found.add(tar.path.name, what, key=lost[0]["key"], offset=lost[0]["offset"])
    else:
        found.add(tar.path.name, f"{what}; only its end mark is gone", offset=size)


# -------------------------------------------------------------------- structure


def _check_structure(tar: Tar, file: BinaryIO, size: int, found: Findings) -> None:
    """Compares what tarfile finds with the table; behind a damaged header its walk goes on at the next one."""
    places = [place for place in tar.places() if place.offset + place.length <= size]
    headers = sorted(place.header for place in places)
    walked: dict[int, tuple[str, int]] = {}
    position = 0
    while True:
        end = _walk(file, position, walked)
        following = bisect.bisect_right(headers, end)
        if following == len(headers):
            break
        position = headers[following]
    for place in places:
        name = f"{place.key}.{place.member}"
        there = walked.pop(place.offset, None)
        if there is None:
            what = f"the tar header of its {place.member} is damaged"
        elif there != (name, place.length):
            what = f"the tar header of its {place.member} says {there[0]!r} of {there[1]:,} bytes"
        else:
            continue
        found.add(tar.path.name, what, key=place.key, offset=place.header)
    for offset, (name, length) in walked.items():
        if offset + length <= size:
            found.add(tar.path.name, f"holds {name!r}, which is not in the table", offset=offset)


def _walk(file: BinaryIO, position: int, walked: dict[int, tuple[str, int]]) -> int:
    """Adds name and length by payload offset of the members from `position` on; returns where it came to an end."""
    file.seek(position)
    try:
        with tarfile.TarFile(fileobj=file) as archive:
            for info in archive:
                walked[info.offset_data] = (info.name if info.isreg() else f"{info.name} (no file)", info.size)
                position = info.offset_data + info.size + -info.size % _BLOCK
    except (tarfile.TarError, OSError, ValueError):
        pass  # the members that are not found say where
    return position


# -------------------------------------------------------------------- samples


def _check_sample(tar: Tar, file: BinaryIO, row: Row, found: Findings) -> None:
    name, key = tar.path.name, row["key"]
    try:
        span = memoryview(os.pread(file.fileno(), row["length"], row["offset"]))
    except OSError as error:
        found.refused(name, error, key=key, offset=row["offset"])
        return
    for member in tar.members:
        offset, length, crc32 = (row[member_column(member, field)] for field in ("offset", "length", "crc32"))
        begin = offset - row["offset"]
        payload = span[max(begin, 0) : begin + length]
        if len(payload) != length:
            found.add(name, f"its {member} lies outside of it, by the table", key=key, offset=offset)
        elif (crc := isal_zlib.crc32(payload)) != crc32:
            what = f"its {member} ({length:,} bytes) has crc32 {crc:08x}, the table says {crc32:08x}"
            found.add(name, what, key=key, offset=offset)
        else:
            problems = problems_of(member, payload, row)
            for problem in problems:
                found.add(name, f"its {member} {problem}", key=key, offset=offset)
            if member.endswith("jpg") and not problems and looks_undecoded(payload):
                found.doubt(name, f"its {member} {UNDECODED}", key=key, offset=offset)


def _locate(tar: Tar, file: BinaryIO, size: int, found: Findings) -> None:
    """Where a tar with a wrong hash differs from one written anew out of its payloads: in headers and padding."""
    known = {damage.key for damage in found.listed}
    end = 0
    for row in tar.rows or ():
        end = row["offset"] + row["length"]
        if end > size or row["key"] in known:
            continue
        there = os.pread(file.fileno(), row["length"], row["offset"])
        payloads = {}
        for member in tar.members:
            begin = row[member_column(member, "offset")] - row["offset"]
            payloads[member] = there[begin : begin + row[member_column(member, "length")]]
        expected = io.BytesIO()
        TarWriter(expected).add(row["key"], payloads)
        if (at := _first_difference(there, expected.getvalue())) is not None:
            what = "a byte of a tar header or of the padding is not as it was written"
            found.add(tar.path.name, what, key=row["key"], offset=row["offset"] + at)
    rest = os.pread(file.fileno(), max(0, min(tar.bytes, size) - end), end)
    if (at := _first_difference(rest, bytes(len(rest)))) is not None:
        found.add(tar.path.name, "the end mark holds a byte that is not zero", offset=end + at)


def _first_difference(there: bytes, expected: bytes) -> int | None:
    if there == expected:
        return None
    return next((i for i, (a, b) in enumerate(zip(there, expected, strict=False)) if a != b), len(expected))
