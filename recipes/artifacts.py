"""The artifact that a path means: its own folder, or that of the run which wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.formats.errors import InputError, UsageError
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

    Raises UsageError if the run wrote several, naming each (as `command` is to be given), or none; InputError for a
    manifest that names what does not lie beside it, as one from elsewhere may.
    """
    manifest = manifest_at(path)
    if manifest is None or "artifact" in manifest or not isinstance(manifest.get("report"), Mapping):
        return path
    written = [path / name for name in _names(manifest["report"], path)]
    if len(written) == 1:
        return written[0]
    if not written:
        raise UsageError(f"{path} is the folder of a run that wrote no artifact", "add an export to its recipe")
    ways = ", or ".join(f"{command} {artifact}".strip() for artifact in written)
    raise UsageError(f"{path} is the folder of a run that wrote {len(written)} artifacts", f"say which: {ways}")


def _names(report: Mapping[str, Any], path: Path) -> list[str]:
    """The folders of a run's artifacts, which lie beside its manifest. Raises InputError for others."""
    try:
        names = [found["path"] for found in report.get("artifacts", [])]
    except (TypeError, KeyError) as error:
        raise InputError(f"{path / MANIFEST} does not say what the run wrote") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise InputError(f"{path / MANIFEST} says that the run wrote {name!r}, which is no folder beside it")
    return names


def missed_gates(path: Path) -> list[str]:
    """The gates that the artifact at `path` has missed, as they were told."""
    missed = (manifest_at(path) or {}).get("missed_gates", [])
    return [str(gate) for gate in missed] if isinstance(missed, list) else []
