"""What has learned becomes ordinary units of the run: files under the journal, and tensors of the model."""

from __future__ import annotations

from compress.formats.files.native import save_tensors
from compress.formats.files.storage import sha256_file
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.train.loop import Curve
from compress.passes.train.student import Student


class Learned(Committed):
    """What a layer has learned lies in `file`."""

    unit: str
    file: str
    sha256: str
    tensors: tuple[str, ...]


class Trained(Committed):
    """The training is over and all that it left is committed: the curve of it."""

    losses: tuple[float, ...]
    measured: tuple[tuple[int, float], ...]
    best: int
    tokens: int


def commit(run: Run, stage: Stage, student: Student, curve: Curve, tokens: int) -> None:
    """Write what `student` has learned, unit by unit. A killed run writes what is missing, to the same bytes."""
    there = {record.unit for record in run.journal.of(Learned, stage.key)}
    for number, (unit, names) in enumerate(student.units(run).items()):
        if unit in there:
            continue
        path = stage.file(f"unit-{number:04d}.safetensors")
        save_tensors(path, student.tensors(names))
        digest = sha256_file(path)
        run.journal.append(Learned(stage=stage.key, unit=unit, file=path.name, sha256=digest, tensors=tuple(names)))
    best, _ = curve.best
    run.journal.append(
        Trained(
            stage=stage.key,
            losses=tuple(curve.losses),
            measured=tuple(curve.measured),
            best=best,
            tokens=tokens,
        )
    )


def take_over(run: Run, stage: Stage) -> Outcome:
    """The committed units into the run's model, and what is to be said of the training."""
    (trained,) = run.journal.of(Trained, stage.key)
    authors = dict[str, str]()
    for record in run.journal.of(Learned, stage.key):
        run.model.overlay(stage.file(record.file))
        authors |= {
            name: " + ".join(filter(None, (run.left.authors.get(name), stage.title))) for name in record.tensors
        }
    earlier = run.left.manifest.get("training", [])
    figures = {"pass": stage.title, **trained.model_dump(mode="json", exclude={"stage"})}
    return Outcome(authors=authors, manifest={"training": [*earlier, figures]})
