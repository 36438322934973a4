"""From a model in memory to a directory that engines load, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict

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
from compress.passes.artifact.card import CARD, model_card
from compress.passes.artifact.compare import verify
from compress.passes.artifact.curves import curve_name, draw
from compress.passes.artifact.fingerprint import Fingerprint
from compress.passes.artifact.inventory import Entry, take_inventory
from compress.passes.artifact.record import MANIFEST, Record, embedded_of, hashes, settings_inside, settings_on_disk
from compress.passes.artifact.statement import write_statement
from compress.passes.artifact.zeros import zeros_told
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage

_BEFORE = ".before"
FOLDER = r"^\w[\w.-]*$"
"""What an artifact's folder may be called."""


class Artifact(BaseModel):
    """An artifact as reports and its own manifest speak of it. `path` is its folder's name.

    `quantized_share` is the part of all weights that is quantized, 0 … 1; `verification` what comparing gave.
    `zeros` says what those of a pruned model save; empty for others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dialect: str
    path: str
    bytes: int
    bits_per_weight: float
    quantized_share: float
    verification: Mapping[str, float]
    zeros: str = ""


class Written(Committed):
    """An artifact stands under its final name. `source` is the digest of the model that it was made of."""

    source: str
    artifact: Artifact


def write_artifact(model: Checkpoint, dialect: Dialect, target: Path, run: Run) -> Artifact:
    """Write, reopen, compare, then rename into place; an earlier artifact of this run's model makes way.

    Raises RefusedError if something else stands there, StorageError if the disk fails, CompressError if what was
    written is not what was meant; in every case nothing new stands under the final name.
    """
    refuse_foreign(run, target)
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
        run.reporter.tell("opening what was written")
        run.reporter.finish()
        written = sum((partial / file.name).stat().st_size for file in layout.files)
        if written != layout.nbytes:
            raise CompressError(f"{target}: {written:,} bytes written, {layout.nbytes:,} planned", "please report this")
        opened = dialect.open(partial)
        artifact = run.skeleton.matrices(opened)
        run.reporter.start(f"verify {dialect.name}", len(artifact.spec.tensors), "tensor")
        verified = verify(model, type(dialect), artifact, run.skeleton, run.reporter.advance)
        record = Artifact(
            dialect=dialect.name,
            path=target.name,
            bytes=written,
            bits_per_weight=written * 8 / model.spec.parameters,
            quantized_share=_quantized_share(model.spec),
            verification=verified.figures,
            zeros=zeros_told(model.spec),
        )
        inventory = take_inventory(
            artifact.spec,
            model.spec,
            run.source.spec,
            verified.readings,
            run.left.authors,
            container=f"export to {dialect.name}",
            rewritten=run.model.rewritten,
            tied=run.skeleton.anatomy.head if run.skeleton.anatomy.tied else None,
        )
        _describe(partial, record, run, artifact, inventory, verified.fingerprint, run.loads(opened))
        run.reporter.finish()
        _put(partial, target, run)
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
    return quantized / model.parameters


def written_at(run: Run, stage: Stage) -> Artifact | None:
    """The artifact that `stage` wrote, if it still stands: nothing was written over it since."""
    last = {record.artifact.path: record for record in run.journal.of(Written)}
    mine = [record.artifact for record in last.values() if record.stage == stage.key]
    return next((artifact for artifact in mine if (run.output / artifact.path / MANIFEST).is_file()), None)


def refuse_foreign(run: Run, target: Path) -> None:
    """Raise RefusedError if something stands where an artifact should go that was not made here of the same model."""
    if not (target.exists() or target.is_symlink()):
        return
    here = [record for record in run.journal.of(Written) if record.artifact.path == target.name]
    if not here:
        raise RefusedError(f"{target} exists already", "choose another output directory with -o, or move it away")
    if here[-1].source != run.source_digest:
        raise RefusedError(
            f"{target} is an artifact of another model", "choose another output directory with -o, or move it away"
        )


def _put(partial: Path, target: Path, run: Run) -> None:
    """Give a whole artifact its name; what an earlier recipe wrote there is gone only after."""
    before = target.with_name(f"{target.name}{_BEFORE}")
    if target.exists():
        run.reporter.note(f"{target.name}: takes the place of what an earlier recipe wrote there")
        shutil.rmtree(before, ignore_errors=True)
        os.rename(target, before)
    os.rename(partial, target)
    sync_directory(target.parent)
    shutil.rmtree(before, ignore_errors=True)


def _describe(
    directory: Path,
    record: Artifact,
    run: Run,
    artifact: Checkpoint,
    inventory: dict[str, Entry],
    fingerprint: Fingerprint,
    loads: Mapping[str, str],
) -> None:
    """The model card, the manifest, the statement of origin. None has a time or a path: a run gives the same bytes."""
    manifest = {
        **run.manifest,
        **run.left.manifest,
        "artifact": record.model_dump(mode="json"),
        "scores": asdict(run.left.scores) if run.left.scores else None,
        "tensors": run.left.reports,
        "loads": dict(loads),
    }
    for number, training in enumerate(manifest.get("training", ())):
        write_bytes(directory / curve_name(number), draw(training))
    write_bytes(directory / CARD, model_card(manifest).encode())
    proof = Record(
        files=hashes(directory, run.reporter.tell),
        settings={**settings_on_disk(directory), **settings_inside(artifact)},
        embedded=embedded_of(artifact),
        inventory=inventory,
        fingerprint=fingerprint,
    )
    manifest |= proof.model_dump(mode="json")
    write_json(directory / MANIFEST, manifest)
    write_statement(directory, manifest)
