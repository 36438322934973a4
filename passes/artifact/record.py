"""What an artifact's `compress.json` records of it, so that it can be verified without the model it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from compress.formats.base import Checkpoint
from compress.formats.files.storage import parse_json, read_bytes, sha256_file
from compress.passes.artifact.fingerprint import Fingerprint
from compress.passes.artifact.inventory import Entry

MANIFEST = "compress.json"
STATEMENT = "compress.intoto.json"
SIGNATURE = "compress.sig"
_BESIDE = (MANIFEST, STATEMENT, SIGNATURE)
"""Files that speak of the others: the manifest of them all, the other two of the manifest as well."""
_SETTINGS = "config.json"  # and generation_config.json, tokenizer_config.json, quantize_config.json
_LARGEST = 1 << 18


class Record(BaseModel):
    """The part of the manifest that speaks of what lies beside it; no times, no paths.

    `files` are the SHA-256 of every file on disk but the manifest and what speaks of that. `settings` are
    configurations in full, by file name, so that a changed key can be named. `embedded` are the SHA-256 of files that
    the weight file carries inside (a GGUF's tokenizer), as our reader gives them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    files: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    embedded: Mapping[str, str]
    inventory: Mapping[str, Entry]
    fingerprint: Fingerprint


def hashes(directory: Path, tell: Callable[[str], None] = lambda label: None) -> dict[str, str]:
    """SHA-256 of every file below `directory`, by path, as in `Record.files`. Raises InputError for what is no file."""
    found = {}
    for path in sorted(path for path in directory.rglob("*") if not path.is_dir()):
        if (name := path.relative_to(directory).as_posix()) not in _BESIDE:
            tell(f"hashing {name}")
            found[name] = sha256_file(path)
    return found


def settings_on_disk(directory: Path) -> dict[str, Mapping[str, Any]]:
    """Every small `*config.json` in `directory`, parsed. Raises InputError for one that is not JSON."""
    paths = sorted(directory.glob(f"*{_SETTINGS}"))
    return _settings((path.name, read_bytes(path, _LARGEST)) for path in paths if path.stat().st_size <= _LARGEST)


def settings_inside(artifact: Checkpoint) -> dict[str, Mapping[str, Any]]:
    """The same of the files that the weight file carries inside."""
    return _settings((name, data) for name, data in _inside(artifact).items() if name.endswith(_SETTINGS))


def embedded_of(artifact: Checkpoint) -> dict[str, str]:
    """SHA-256 of the other files that the weight file carries inside."""
    inside = _inside(artifact).items()
    return {name: hashlib.sha256(data).hexdigest() for name, data in inside if not name.endswith(_SETTINGS)}


def _settings(files: Iterable[tuple[str, bytes]]) -> dict[str, Mapping[str, Any]]:
    parsed = {name: parse_json(data, name) for name, data in files}
    return {name: value for name, value in parsed.items() if isinstance(value, dict)}


def _inside(artifact: Checkpoint) -> dict[str, bytes]:
    directory = artifact.path if artifact.path.is_dir() else artifact.path.parent
    return {name: data for name, data in sorted(artifact.files().items()) if not (directory / name).exists()}
