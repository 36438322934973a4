"""Bytes to and from the disk: files that stand whole under their name or not at all, and bounded reads.

A file is written as `<name>.partial`, flushed to the disk, renamed, and its directory flushed: after a crash
at any moment the name holds the old content or the new, never a part. Nothing is memory-mapped: a full disk
or a truncated file must be an error, and a mapping makes it SIGBUS.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from compress.formats.errors import InputError, RefusedError, StorageError

PARTIAL = ".partial"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


class DurableFile:
    """The file that `atomic_write` fills. Raises StorageError when the disk is full, read-only or failing."""

    def __init__(self, path: Path, nbytes: int | None) -> None:
        self.path = path
        self._nbytes = nbytes
        self._partial = path.with_name(path.name + PARTIAL)
        self._end = 0
        with self._named():
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._partial, flags, 0o644)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data` after what `write` wrote so far."""
        self.write_at(data, self._end)
        self._end += len(data)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write `data` (bytes, or a view of items of one byte) at `offset`."""
        with self._named():
            _write_all(self._file, data, offset)

    def preallocate(self) -> None:
        """Claim the file's bytes on the disk."""
        if self._nbytes:
            with self._named():
                os.posix_fallocate(self._file, 0, self._nbytes)

    def commit(self) -> None:
        """Flush the file and give it its name."""
        with self._named():
            os.fsync(self._file)
            os.replace(self._partial, self.path)
            try:
                sync_directory(self.path.parent)
            except OSError:
                # Nobody can say any more what the disk will hold: better no file than a doubtful one.
                self.path.unlink()
                raise

    def close(self) -> None:
        """Close, and remove what was not committed."""
        with suppress(OSError):
            os.close(self._file)
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn an OSError into a StorageError that names this file."""
        try:
            yield
        except OSError as error:
            raise storage_error(self.path, self._nbytes, error) from error


@contextmanager
def atomic_write(path: Path, nbytes: int | None = None) -> Iterator[DurableFile]:
    """A file that stands under `path` when the `with` block ends well, and leaves nothing if not.

    With `nbytes` the whole file is preallocated, so that a full disk is found before any work is done.
    Raises StorageError.
    """
    file = DurableFile(path, nbytes)
    try:
        file.preallocate()
        yield file
        file.commit()
    finally:
        file.close()


def write_into(path: Path, data: bytes | memoryview, offset: int) -> None:
    """Write at `offset` into the file that `atomic_write` of another process fills and flushes. Raises StorageError."""
    try:
        file = os.open(path.with_name(path.name + PARTIAL), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _write_all(file, data, offset)
        finally:
            os.close(file)
    except OSError as error:
        raise storage_error(path, None, error) from error


def _write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write `data` (bytes, or a view of items of one byte) at `offset` of an open file. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        if written == 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        view, offset = view[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Flush the names in `directory` to the disk. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(directory: Path) -> None:
    """Make `directory`, and flush its name. Raises StorageError."""
    try:
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
    except OSError as error:
        raise storage_error(directory, None, error) from error


def storage_error(path: Path, nbytes: int | None, error: OSError) -> StorageError:
    """What to raise for `error`, met when `path` was written, with so many `nbytes` if that is known."""
    need = f" ({nbytes:,} bytes)" if nbytes else ""
    if error.errno in _FULL:
        hint = f"free some space on the disk that holds {path.parent} and run the same command again"
    elif error.errno in _FORBIDDEN:
        hint = "choose an output directory that you may write to"
    else:
        hint = "check the disk (system log, cables, quota), then run the same command again"
    return StorageError(f"cannot write {path}{need}: {error.strerror or error}", hint)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file durably. Raises StorageError."""
    with atomic_write(path, len(data)) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in their own order. Raises StorageError."""
    write_bytes(path, encode_json(value))


def encode_json(value: Any) -> bytes:
    """`value` as the indented JSON that every file of ours holds."""
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, UTF-8 cannot
        return (json.dumps(value, indent=2) + "\n").encode()


def require_space(directory: Path, nbytes: int) -> None:
    """Raise RefusedError if the disk that will hold `directory` has less than `nbytes` free."""
    existing = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise RefusedError(
            f"{directory} needs {nbytes:,} bytes, and its disk has {free:,} free",
            f"free {nbytes - free:,} bytes or choose an output directory on another disk",
        )


class RegularFile:
    """A regular file opened for positioned reads; symlinks are followed, anything else is refused.

    Raises InputError, here and in `read_at`, for what is missing, not a regular file, or shorter than asked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # O_NONBLOCK: opening a FIFO must not wait for a writer that never comes.
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot open {path}: {getattr(error, 'strerror', error)}") from error
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._file)
            raise InputError(f"{path} is not a regular file")
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def read_at(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` (items of one byte) from `offset` on."""
        view = memoryview(buffer)
        while view:
            try:
                count = os.preadv(self._file, [view], offset)
            except OSError as error:
                raise InputError(f"cannot read {self.path}: {error.strerror}") from error
            if count == 0:
                raise InputError(f"{self.path} ends at byte {offset:,}: it is truncated")
            view, offset = view[count:], offset + count

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole small file. Raises InputError if it is not a regular file or larger than `limit` bytes."""
    with RegularFile(path) as file:
        if file.size > limit:
            raise InputError(f"{path} has {file.size:,} bytes; at most {limit:,} are accepted")
        buffer = bytearray(file.size)
        file.read_at(0, buffer)
    return bytes(buffer)


def parse_json(data: bytes, where: object) -> Any:
    """JSON in UTF-8 in which no object has a key twice. Raises InputError naming `where`."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("an object holds a key twice")
    return unique


def sha256_file(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal. Raises InputError."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with RegularFile(path) as file:
        for offset in range(0, file.size, len(buffer)):
            block = buffer[: file.size - offset]
            file.read_at(offset, block)
            digest.update(block)
    return digest.hexdigest()
