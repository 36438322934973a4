"""What takes long to find and is always the same, kept on disk: the next process need not find it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from compress.formats.errors import InputError, StorageError
from compress.formats.files.storage import read_bytes, write_bytes

T = TypeVar("T")

_LARGEST = 1 << 28
_MOST = 256
"""Files that are kept; the oldest make way."""


def kept(folder: Path | None, key: Mapping[str, Any], kind: type[T], find: Callable[[], T]) -> T:
    """What `find` gives, a `kind` that pydantic can write as JSON; None for `folder` keeps nothing.

    It is found again only where another `key` (JSON), which must name all that it depends on, was asked for; or
    where a file was damaged. A folder that cannot be written to costs that time at every call, and nothing else.
    """
    if folder is None:
        return find()
    adapter, path = TypeAdapter(kind), folder / f"{_digest(key)}.json"
    with suppress(InputError, ValidationError):
        return adapter.validate_json(read_bytes(path, _LARGEST))
    found = find()
    with suppress(OSError, StorageError):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, adapter.dump_json(found))
        _make_way(folder)
    return found


def code_digest(files: Iterable[Path]) -> str:
    """Names the code that finds something, for its key: what other code found says nothing."""
    return _digest([[path.name, path.read_text()] for path in sorted(files)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _make_way(folder: Path) -> None:
    ages = sorted((path.stat().st_mtime, path) for path in folder.glob("*.json"))
    for _, path in ages[:-_MOST]:
        path.unlink(missing_ok=True)
