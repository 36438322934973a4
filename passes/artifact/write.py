"""From a model in memory to a directory that engines load, whole or not at all."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compress.formats.base import Checkpoint, Dialect, ModelSpec
from compress.formats.errors import CompressError, RefusedError, StorageError
from compress.formats.files.storage import (
    PARTIAL,
    require_space,
    sync_directory,
    write_bytes,
    write_json,
)
from compress.formats.views.matrices import Restored
from compress.passes.artifact.card import model_card
from compress.passes.artifact.compare import verify
from compress.passes.artifact.fingerprint import Fingerprint
from compress.passes.artifact.inventory import Entry, take_inventory
from compress.passes.artifact.record import MANIFEST, Record, embedded_of, hashes, settings_inside, settings_on_disk
from compress.passes.core.run import Run
from compress.passes.model.blank import matrices


def write_artifact(model: Checkpoint, dialect: Dialect, target: Path, run: Run) -> dict[str, Any]:
    """Write, reopen, compare, then rename into place. Returns the artifact's line of the report.

    Raises RefusedError if `target` exists, StorageError if the disk fails, CompressError if what was written
    is not what was meant; in every case nothing new stands under the final name.
    """
    refuse_existing(target)
    stored = Restored(model)
    layout = dialect.layout(stored.spec)
    require_space(target.parent, layout.nbytes)
    for note in layout.notes:
        run.reporter.note(f"{target.name}: {note}")
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        run.reporter.start(f"export {dialect.name}", len(model.spec.tensors), "tensor")
        dialect.write(stored, partial, run.reporter.advance)
        run.reporter.finish()
        written = sum((partial / file.name).stat().st_size for file in layout.files)
        if written != layout.nbytes:
            raise CompressError(f"{target}: {written:,} bytes written, {layout.nbytes:,} planned", "please report this")
        artifact = matrices(dialect.open(partial))
        verified = verify(model, type(dialect), artifact, run.skeleton, run.work)
        record = {
            "dialect": dialect.name,
            "path": target.name,
            "bytes": written,
            "bits_per_weight": written * 8 / sum(spec.size for spec in model.spec.tensors.values()),
            "quantized_share": _quantized_share(model.spec),
            "verification": verified.figures,
        }
        inventory = take_inventory(artifact, model, run.source, _authors(run), _tied(run))
        _describe(partial, record, run, artifact, inventory, verified.fingerprint)
        os.rename(partial, target)
        sync_directory(target.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {target}: {error.strerror}", "free space and run again: it resumes"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def _quantized_share(model: ModelSpec) -> float:
    """The part of all weights that is quantized: 0 … 1."""
    quantized = sum(spec.size for spec in model.tensors.values() if spec.format is not None)
    return quantized / sum(spec.size for spec in model.tensors.values())


def refuse_existing(target: Path) -> None:
    """Raise RefusedError if something stands where an artifact should go."""
    if target.exists() or target.is_symlink():
        raise RefusedError(f"{target} exists already", "choose another output directory with -o, or move it away")


def _authors(run: Run) -> dict[str, str]:
    """The passes that rewrote each tensor, joined by +."""
    return {name: author for unit in run.journal.of(kind="unit") for name, author in unit["authors"].items()}


def _tied(run: Run) -> str | None:
    """The head's own tensor, if the embedding stands for it."""
    anatomy = run.skeleton.anatomy
    return anatomy.head if anatomy.tied else None


def _describe(
    directory: Path,
    record: dict[str, Any],
    run: Run,
    artifact: Checkpoint,
    inventory: dict[str, Entry],
    fingerprint: Fingerprint,
) -> None:
    """The model card and the manifest. Neither holds a time or a path: the same run gives the same bytes."""
    tensors = {name: report for unit in run.journal.of(kind="unit") for name, report in unit["tensors"].items()}
    scores = asdict(run.scores) if run.scores else None
    manifest = {**run.manifest, "artifact": record, "scores": scores, "tensors": tensors}
    write_bytes(directory / "README.md", model_card(manifest).encode())
    proof = Record(
        files=hashes(directory),
        settings={**settings_on_disk(directory), **settings_inside(artifact)},
        embedded=embedded_of(artifact),
        inventory=inventory,
        fingerprint=fingerprint,
    )
    write_json(directory / MANIFEST, {**manifest, **proof.model_dump(mode="json")})
