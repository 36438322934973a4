"""A lock between processes: of several runs in one directory, the first has it."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from compress.formats.errors import InputError, RefusedError
from compress.formats.files.storage import read_bytes, storage_error


class Lock:
    """An exclusive lock that the kernel drops when its process ends, however it ends.

    `with Lock(path):` creates the file `path`, which says which process holds it, and removes it at the end.
    Raises RefusedError if another process holds it, StorageError if the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Lock:
        try:
            while not self._acquire():
                pass
            self._sign()
        except BlockingIOError:
            raise self._held() from None
        except OSError as error:
            raise storage_error(self.path, None, error) from error
        return self

    def _sign(self) -> None:
        """Say who holds the lock; a lock that cannot say so is let go."""
        try:
            os.truncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)
        except OSError:
            os.close(self._file)
            raise

    def _acquire(self) -> bool:
        """Lock the file; False if its last holder removed it between our opening and our locking it."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                return True
        except FileNotFoundError:
            pass
        except OSError:
            os.close(self._file)
            raise
        os.close(self._file)
        return False

    def _held(self) -> RefusedError:
        try:
            holder = read_bytes(self.path, 32).decode("ascii", "replace")
        except InputError:
            holder = "unknown"
        return RefusedError(
            f"another run (process {holder}) is working on {self.path.parent}",
            "wait until it ends, stop it, or choose another output directory",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self.path.unlink()
        os.close(self._file)
