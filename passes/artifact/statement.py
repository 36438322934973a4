"""Where an artifact came from, in the words of software supply chains: an in-toto statement with SLSA provenance.

in-toto Attestation Framework, Statement v1; SLSA v1.0, Build Provenance. It holds no time and no path: what is made
again gets the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from compress.formats.files.storage import sha256_file, write_json
from compress.passes.artifact.record import MANIFEST, STATEMENT

_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://slsa.dev/provenance/v1"
_BUILD = "pkg:pypi/compress-llm#run/v1"
"""The kind of build: `compress run` with a recipe, its one external parameter."""
_OURS = "compress-llm"
_TEXTS = ("calibration", "evaluation", "training")
"""Entries of a manifest that tell the digest of what was read, or are lists of such."""

Json = dict[str, Any]


def write_statement(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write the statement beside the `manifest`, which lies in `directory` as it is. Raises StorageError."""
    write_json(directory / STATEMENT, statement(manifest, sha256_file(directory / MANIFEST)))


def statement(manifest: Mapping[str, Any], sha256: str) -> Json:
    """The statement that goes with `manifest`, whose own digest is `sha256`."""
    versions = manifest["versions"]
    return {
        "_type": _TYPE,
        "subject": [_named(name, digest) for name, digest in sorted({**manifest["files"], MANIFEST: sha256}.items())],
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD,
                "externalParameters": {"recipe": manifest["recipe_text"]},
                "internalParameters": {"artifact": manifest["artifact"]["path"]},
                "resolvedDependencies": [*_source(manifest["source"]), *_texts(manifest), *_packages(versions)],
            },
            "runDetails": {"builder": {"id": _package(_OURS, versions[_OURS])}},
        },
    }


def _named(name: str, sha256: str, **more: str) -> Json:
    """A resource descriptor."""
    return {"name": name, **more, "digest": {"sha256": sha256}}


def _source(source: Mapping[str, Any]) -> Iterator[Json]:
    """The files of the model that it was made of."""
    where = {"uri": f"pkg:huggingface/{quote(source['hub'])}"} if "hub" in source else {}
    for name, sha256 in source["files"].items():
        yield _named(f"source/{name}", sha256, **where)


def _texts(manifest: Mapping[str, Any]) -> Iterator[Json]:
    """What was calibrated, measured and trained with: tokens, or a file of importances."""
    for key in _TEXTS:
        entries = manifest.get(key, [])
        for entry in entries if isinstance(entries, list) else [entries]:
            for kind in ("sha256", "imatrix"):
                if kind in entry:
                    yield _named(f"{key} {'tokens' if kind == 'sha256' else kind}", entry[kind])


def _packages(versions: Mapping[str, str]) -> Iterator[Json]:
    """What computed, by package URLs."""
    for name, version in versions.items():
        yield {"name": name, "uri": f"pkg:generic/python@{version}" if name == "python" else _package(name, version)}


def _package(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{quote(version, safe='')}"
