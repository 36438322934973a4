"""The artifact that a path means: its own folder, or that of the run which wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.formats.errors import UsageError
from compress.formats.files.storage import parse_json, read_bytes
from compress.passes.artifact.record import MANIFEST

_MAX_MANIFEST = 1 << 28


def manifest_at(path: Path) -> Mapping[str, Any] | None:
    """What `compress` wrote about the artifact or the run at `path`; None if it wrote nothing there.

    Raises InputError for a file that is not JSON.
    """
    where = path / MANIFEST
    if not where.is_file():
        return None
    data = parse_json(read_bytes(where, _MAX_MANIFEST), where)
    return data if isinstance(data, Mapping) else {}


def artifact_at(path: Path, command: str = "") -> Path:
    """`path` itself, or the only artifact of the run whose folder it is.

    Raises UsageError if the run wrote several, naming each (as `command` is to be given), or none.
    """
    manifest = manifest_at(path)
    if manifest is None or "artifact" in manifest or not isinstance(manifest.get("report"), Mapping):
        return path
    written = [path / str(found["path"]) for found in manifest["report"].get("artifacts", [])]
    if len(written) == 1:
        return written[0]
    if not written:
        raise UsageError(f"{path} is the folder of a run that wrote no artifact", "add an export to its recipe")
    ways = ", or ".join(f"{command} {artifact}".strip() for artifact in written)
    raise UsageError(f"{path} is the folder of a run that wrote {len(written)} artifacts", f"say which: {ways}")


def missed_gates(path: Path) -> list[str]:
    """The gates that the artifact at `path` has missed, as they were told."""
    missed = (manifest_at(path) or {}).get("missed_gates", [])
    return [str(gate) for gate in missed] if isinstance(missed, list) else []
