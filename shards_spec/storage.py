"""Where files lie: a local folder, or an fsspec URL (s3://, gs://, memory://, ...). Nothing else asks which it is.

A local place is a Path and is used as one. A remote one is a Remote, which is named like a Path and read and written
here. Object stores have no renames and no appending: a file is made in full on the local disk, then uploaded whole.
"""

import contextlib
import errno
import io
import os
import posixpath
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards_spec.atomic import atomic_path, new_file
from shards_spec.errors import UserError

_LOCAL_SCHEMES = ("file", "local")
_READ_ONLY_SCHEMES = ("http", "https")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PIECE = 4 << 20  # bytes read at once
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_PACKAGES |= {"http": "aiohttp", "https": "aiohttp"}


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder behind a URL that fsspec understands, without a slash at its end."""

    url: str

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return posixpath.basename(self.url)

    def with_suffix(self, suffix: str) -> "Remote":
        """The same with another suffix."""
        return Remote(posixpath.splitext(self.url)[0] + suffix)

    def absolute(self) -> "Remote":
        """Itself."""
        return self


Place = Path | Remote


def place(text: str) -> Place:
    """The place that a person names: a URL, or a local path."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _LOCAL_SCHEMES:
        return Path(rest)
    return Remote(text.rstrip("/")) if separator else Path(text)


def check_place(where: Place, *, to_read: bool = False) -> None:
    """Raises UserError where no file system is known for a URL, or its package is not installed.

    Args:
        to_read: whether files of known names will be read there and nothing else, which http can do too.
    """
    if isinstance(where, Path):
        return
    scheme = where.url.partition("://")[0].split("::")[-1]
    if scheme in _READ_ONLY_SCHEMES and not to_read:
        raise UserError(f"{where}: {scheme} can be neither listed nor written: give a folder, s3://, gs:// or the like")
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise UserError(f"{where}: {scheme}:// is unknown: give a folder, s3://, gs:// or the like") from None
    except ImportError as error:
        mend = f"pip install {_PACKAGES[scheme]}" if scheme in _PACKAGES else str(error)
        raise UserError(f"{where}: the package for {scheme}:// is not installed: {mend}") from None


@contextlib.contextmanager
def _client(where: Remote, **options: Any) -> Iterator[tuple[Any, str]]:
    """The fsspec file system of a place, and the path in it. Whatever it raises names the place and is an OSError."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(where.url, **options)
        system.invalidate_cache()  # others write there too
        yield system, path
    except OSError as error:
        error.filename = where.url
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise OSError(errno.EIO, f"{type(error).__name__}: {told}", where.url) from error


# What is there.


def size(where: Place) -> int | None:
    """Bytes of a file, None where there is no file."""
    if isinstance(where, Path):
        return where.stat().st_size if where.is_file() else None
    try:
        with _client(where) as (system, path):
            facts = system.info(path)
    except FileNotFoundError:
        return None
    return None if facts["type"] == "directory" else int(facts["size"])


def is_file(where: Place) -> bool:
    """Whether a file is there."""
    return size(where) is not None


def is_folder(where: Place) -> bool:
    """Whether a folder is there; in an object store, something below that name."""
    if isinstance(where, Path):
        return where.is_dir()
    with _client(where) as (system, path):
        return bool(system.isdir(path))


def sizes(folder: Place) -> dict[str, int]:
    """Bytes of each file directly in a folder, by name; nothing where there is no folder."""
    if isinstance(folder, Path):
        if not folder.is_dir():
            return {}
        local = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process's temporary file may be gone again
                    if entry.is_file():
                        local[entry.name] = entry.stat().st_size
        return local
    try:
        with _client(folder) as (system, path):
            found = system.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {posixpath.basename(f["name"]): int(f["size"]) for f in found if f["type"] != "directory"}


def files_below(folder: Remote) -> list[str]:
    """Paths of all files below a remote folder, relative to it."""
    with _client(folder) as (system, path):
        prefix = path.rstrip("/") + "/"
        return [name[len(prefix) :] for name in system.find(path) if name.startswith(prefix)]


# Reading.


def read_bytes(where: Place) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read; FileNotFoundError, it is not there.
    """
    if isinstance(where, Path):
        return where.read_bytes()
    with _client(where) as (system, path):
        content: bytes = system.cat_file(path)
    return content


def pieces(where: Remote, timeout: float) -> Generator[bytes, None, None]:
    """The content of a remote file, in pieces of a few MB at most, as they arrive. Needs no listing of its folder.

    Args:
        timeout: seconds of silence after which http and S3 are given up. Other clients have limits of their own.

    Raises:
        OSError: it cannot be read, or its transfer was cut; FileNotFoundError, it is not there.
    """
    scheme = where.url.partition("://")[0]
    options: dict[str, Any] = {}
    opening: dict[str, Any] = {"block_size": _PIECE, "cache_type": "none"}
    if scheme in _READ_ONLY_SCHEMES:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        options = {"client_kwargs": {"timeout": limits}}
        opening = {"block_size": 0, "size": 1}  # one GET, read as it comes; the true size is not asked for
    elif scheme in ("s3", "s3a"):
        limits_s3 = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 1}}
        options = {"config_kwargs": limits_s3}
    with _client(where, **options) as (system, path), system.open(path, "rb", **opening) as file:
        while piece := file.read(_PIECE):
            yield piece


def readable(where: Place) -> Path | io.BytesIO:
    """What a library reads a file from: a local path as it is, a remote file's content."""
    return where if isinstance(where, Path) else io.BytesIO(read_bytes(where))


def fetch(where: Place, copy: Path) -> Path:
    """A local path with the content of a file: its own, or `copy`, to which a remote file is downloaded.

    Raises:
        OSError: it cannot be read; or there is no room for the copy, which `filename` names then.
    """
    if isinstance(where, Path):
        return where
    try:
        with _client(where) as (system, path):
            system.get_file(path, str(copy))
    except OSError as error:
        if error.errno in _NO_ROOM:
            error.filename = str(copy)
        raise
    return copy


# Writing.


@contextlib.contextmanager
def writing(where: Place) -> Iterator[Path]:
    """Yields a temporary local path; when the block ends well, `where` has its content, durably, all at once.

    Raises:
        OSError: it cannot be written; `filename` is the file for which there is no room, which the system does not say:
            `where`, or the local copy of a remote file.
    """
    if isinstance(where, Path):
        with _named(where), atomic_path(where) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="make-shards-") as scratch:
        temporary = Path(scratch) / where.name
        with _named(temporary):
            yield temporary
        with _client(where) as (system, path):
            system.put_file(str(temporary), path)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """OSErrors that name no file name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def create(where: Place, content: bytes) -> bool:
    """Writes a file if there is none; False where there is one. Of several writers at the same time one is told True.

    In an object store that is left to the store: S3, GCS and Azure can do it.
    """
    if isinstance(where, Path):
        return new_file(where, content)
    try:
        with _client(where) as (system, path):
            if system.exists(path):
                return False
            system.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    return True


def write_bytes(where: Place, content: bytes) -> None:
    """Writes a small file, at once; a reader may meet half of it."""
    if isinstance(where, Path):
        where.write_bytes(content)
        return
    with _client(where) as (system, path):
        system.pipe_file(path, content)


def remove(where: Place) -> None:
    """Removes a file, if it is there."""
    if isinstance(where, Path):
        where.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError), _client(where) as (system, path):
        system.rm_file(path)


def make_folder(where: Place) -> None:
    """Makes a local folder and those above it; object stores have none to make."""
    if isinstance(where, Path):
        where.mkdir(parents=True, exist_ok=True)
