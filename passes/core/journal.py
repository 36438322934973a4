"""The record of committed work: append-only, checked line by line, so that a killed run loses one step at most.

Each line is `{"record": {"kind": …, "took": …, …}, "sha256": "…"}`; the digest covers the record's JSON. A step's
files are on disk under their final names before its line is appended. Reading stops at the first damaged line: what
follows is redone, never trusted. What a kind of record holds is said by a class: that of the stage that commits it.

`took` are the seconds that the step took, in whatever process: their sum is what a stage took, however often it was
cut off. What a process did after its last line is lost, and its time is not counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.formats.errors import InputError, StorageError


class Committed(BaseModel):
    """One record. `stage` is the key of the stage that it belongs to (core/stage.py); its kind is its class's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str


class Begun(Committed):
    """A stage was begun: what it is called, and what its bytes depend on.

    `products` are those of its run where it calibrates (recipes/workshop.py), "" where nothing asked.
    """

    title: str
    depends: Mapping[str, Any]
    products: str = ""


class Done(Committed):
    """A stage is complete. `seconds`: what it took in all, in every process that had a part in it."""

    seconds: float


C = TypeVar("C", bound=Committed)

_KIND, _TOOK = "kind", "took"


class Journal:
    """Records in the order in which they were committed."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self._path, self._clock = path, clock
        self._since = clock()
        self.records, good = _read(path)
        self._open(good)

    def _open(self, good: int) -> None:
        """Make ready what is to be written to, of which the first `good` bytes are sound."""
        if self._path.exists() and good < self._path.stat().st_size:
            os.truncate(self._path, good)

    def refresh(self) -> None:
        """See what other processes have committed: none does, to a journal that is written here."""

    def append(self, record: Committed) -> None:
        """Commit: on return the record is on disk. Raises StorageError if the disk fails."""
        took = self._clock() - self._since
        body = {_KIND: type(record).__name__, _TOOK: took, **record.model_dump(mode="json")}
        line = json.dumps({"record": body, "sha256": _digest(body)}, sort_keys=True) + "\n"
        try:
            with open(self._path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}", "free space and run again; it resumes") from error
        # As a resumed run will read it: what is made of records must not depend on who wrote them.
        self.records.append(json.loads(line)["record"])
        self._since += took

    def take_up(self) -> None:
        """A stage is begun or gone on with: what is committed next takes from now on."""
        self._since = self._clock()

    def seconds(self, stage: str) -> float:
        """What `stage`, the one at hand, took so far: before each of its records, and since the last."""
        before = (record.get(_TOOK, 0.0) for record in self.records if record.get("stage") == stage)
        return sum(before, self._clock() - self._since)

    def of(self, kind: type[C], stage: str | None = None) -> list[C]:
        """The records of a kind, of one stage or of all. Raises InputError for one that this version did not write."""
        found = (record for record in self.records if record[_KIND] == kind.__name__)
        bodies = [{key: value for key, value in record.items() if key not in (_KIND, _TOOK)} for record in found]
        try:
            return [kind.model_validate(body) for body in bodies if stage is None or body.get("stage") == stage]
        except ValidationError as error:
            raise InputError(
                f"{self._path} holds a record {kind.__name__} that this version did not write",
                "finish with the version that began it, or start over with --fresh",
            ) from error


class Followed(Journal):
    """A journal that another process writes, and this one reads along."""

    def _open(self, good: int) -> None:
        """Nothing: a line that is not whole is being written."""

    def refresh(self) -> None:
        self.records, _ = _read(self._path)

    def append(self, record: Committed) -> None:
        """Raises RuntimeError: what is not committed by now is for the main process to do."""
        raise RuntimeError(f"{type(record).__name__} is to be committed by the main process")


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records up to the first damaged line, and how many bytes they take."""
    records, good = list[dict[str, Any]](), 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        record = _parse(line)
        if record is None:
            break
        records.append(record)
        good += len(line)
    return records, good


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        record = entry["record"]
        intact = isinstance(record, dict) and _KIND in record and entry["sha256"] == _digest(record)
    except (ValueError, KeyError, TypeError):
        return None
    return record if intact and line.endswith(b"\n") else None
