"""The record of committed work: append-only, checked line by line, so that a killed run loses one step at most.

Each line is `{"record": {…}, "sha256": "…"}`; the digest covers the record's JSON. A step's files are on disk
under their final names before its line is appended. Reading stops at the first damaged line: what follows is
redone, never trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from compress.formats.errors import StorageError

Record = dict[str, Any]


class Journal:
    """Records in the order in which they were committed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: list[Record] = []
        good = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                record = _parse(line)
                if record is None:
                    break
                self.records.append(record)
                good += len(line)
            if good < path.stat().st_size:
                os.truncate(path, good)

    def append(self, record: Record) -> None:
        """Commit: on return the record is on disk. Raises StorageError if the disk fails."""
        line = json.dumps({"record": record, "sha256": _digest(record)}, sort_keys=True) + "\n"
        try:
            with open(self._path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}", "free space and run again; it resumes") from error
        # As a resumed run will read it: what is made of records must not depend on who wrote them.
        self.records.append(json.loads(line)["record"])

    def of(self, **keys: object) -> list[Record]:
        """The records that have all these values."""
        return [r for r in self.records if all(r.get(key) == value for key, value in keys.items())]


def _digest(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _parse(line: bytes) -> Record | None:
    try:
        entry = json.loads(line)
        record = entry["record"]
        intact = isinstance(record, dict) and entry["sha256"] == _digest(record)
    except (ValueError, KeyError, TypeError):
        return None
    return record if intact and line.endswith(b"\n") else None
