"""What has learned becomes ordinary units of the run: files under the journal, and tensors of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from compress.formats.files.native import save_tensors
from compress.formats.files.storage import sha256_file
from compress.kernels.qtensor import QTensor
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.train.loop import Curve
from compress.passes.train.options import TrainOptions
from compress.passes.train.student import Student


class Learned(Committed):
    """What a layer has learned lies in `file`."""

    unit: str
    file: str
    sha256: str
    tensors: tuple[str, ...]


class Trained(Committed):
    """The training is over and all that it left is committed: the curve of it, and how many processes trained.

    `unit` is the layer that it was of, where layers are trained one by one.
    """

    unit: str = ""
    losses: tuple[float, ...]
    measured: tuple[tuple[int, float], ...]
    best: int
    tokens: int
    processes: int = 1


def commit(run: Run, stage: Stage, student: Student, curve: Curve, tokens: int) -> None:
    """Write what `student` has learned, unit by unit. A killed run writes what is missing, to the same bytes.

    All processes do this together.
    """
    commit_units(run, stage, student)
    run.processes.on_main(lambda: conclude(run, stage, curve, tokens))


def commit_units(run: Run, stage: Stage, student: Student) -> None:
    """The first half of `commit`: what was learned."""
    there = {record.unit for record in run.journal.of(Learned, stage.key)}
    for unit, names in student.units(run).items():
        with student.gathered(unit):  # by all processes, whatever the main one finds there
            if run.processes.main and unit not in there:
                _commit_unit(run, stage, unit, len(there), student.tensors(names))
                there.add(unit)


def _commit_unit(run: Run, stage: Stage, unit: str, number: int, tensors: Mapping[str, Tensor | QTensor]) -> None:
    path = stage.file(f"unit-{number:04d}.safetensors")
    save_tensors(path, tensors)
    digest = sha256_file(path)
    run.journal.append(Learned(stage=stage.key, unit=unit, file=path.name, sha256=digest, tensors=tuple(tensors)))


def conclude(run: Run, stage: Stage, curve: Curve, tokens: int, unit: str = "") -> None:
    """The second half of `commit`: the training, of a `unit` or of all, is over. An empty curve: there was none.

    Units are trained by the main process alone.
    """
    best, _ = curve.best if curve.measured else (0, 0.0)
    run.journal.append(
        Trained(
            stage=stage.key,
            unit=unit,
            losses=tuple(curve.losses),
            measured=tuple(curve.measured),
            best=best,
            tokens=tokens,
            processes=1 if unit else run.processes.count,
        )
    )


def take_over(run: Run, stage: Stage, options: TrainOptions) -> Outcome:
    """The committed units into the run's model, and what is to be said of the training."""
    authors = dict[str, str]()
    for record in run.journal.of(Learned, stage.key):
        run.model.overlay(stage.file(record.file))
        authors |= {
            name: " + ".join(filter(None, (run.left.authors.get(name), stage.title))) for name in record.tensors
        }
    earlier = run.left.manifest.get("training", [])
    named = {"held_out": options.held_out_name} if options.held_out_name else {}
    summary = _summary([each for each in run.journal.of(Trained, stage.key) if each.losses])
    figures = {"pass": stage.title, **named, **summary}
    return Outcome(authors=authors, manifest={"training": [*earlier, figures]})


def _summary(trained: Sequence[Trained]) -> dict[str, Any]:
    """What is to be said of a training; of one unit by unit, the means of their curves and what became of each."""
    if len(trained) == 1 and not trained[0].unit:
        return trained[0].model_dump(mode="json", exclude={"stage", "unit"})
    points = [(each[0][0], fmean(loss for _, loss in each)) for each in zip(*(unit.measured for unit in trained))]
    curve = Curve([fmean(losses) for losses in zip(*(unit.losses for unit in trained))], points)
    return {
        "losses": curve.losses,
        "measured": [list(point) for point in points],
        "best": curve.best[0],
        "tokens": sum(unit.tokens for unit in trained),
        "units": [
            {
                "unit": unit.unit,
                "best": unit.best,
                "before": unit.measured[0][1],
                "after": dict(unit.measured)[unit.best],
            }
            for unit in trained
        ],
    }
