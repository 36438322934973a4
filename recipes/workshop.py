"""The folder that a run works in: made, locked, gone again if nothing was committed there; what is gone on with."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from compress.formats.errors import RefusedError
from compress.formats.files.lock import Lock
from compress.kernels.half import half_pays, has_half
from compress.passes.artifact.write import FOLDER, Written
from compress.passes.core.journal import Begun, Done, Followed, Journal
from compress.passes.core.processes import Processes
from compress.passes.core.report import Reporter
from compress.passes.core.stage import Stage
from compress.passes.sweep.units import Unit
from compress.recipes.stages import calibrated

WORK = ".compress"
_JOURNAL = "journal.jsonl"
HALF, WHOLE = "bfloat16", "float32"


@contextmanager
def workshop(output: Path, fresh: bool) -> Iterator[Journal]:
    """The journal of the work in `output`, which nobody else may touch meanwhile; with `fresh`, an empty one.

    Where nothing was committed, nothing stays. Raises RefusedError if another process works there.
    """
    work = output / WORK
    made = _make_directory(work)
    try:
        with Lock(output / f"{WORK}.lock"):
            if fresh:
                _clear(output, work)
            journal = Journal(work / _JOURNAL)
            try:
                yield journal
            finally:
                if not journal.records:
                    shutil.rmtree(work)
    finally:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def shared_workshop(output: Path, fresh: bool, processes: Processes) -> Iterator[Journal]:
    """The journal of the main process's `workshop` for each of `processes`: the others read along."""
    with ExitStack() as held:
        with processes.turn():
            own = workshop(output, fresh) if processes.main else nullcontext(Followed(output / WORK / _JOURNAL))
            journal = held.enter_context(own)
        yield journal


def begin(
    journal: Journal, stages: Sequence[Stage], number: int, machine: Mapping[str, str | int], reporter: Reporter
) -> bool:
    """Whether stage `number` was complete before; else it begins, or goes on, and what is not as before is said."""
    stage = stages[number]
    if journal.of(Done, stage.key):
        return True
    journal.take_up()
    if not journal.of(Begun, stage.key):
        ours = {each.key for each in stages}
        earlier = [found for found in journal.of(Begun) if found.title == stage.title and found.stage not in ours]
        if earlier:
            _tell_changes(stage, earlier, stages[number - 1].depends if number else {}, reporter)
        products = str(machine.get("products", ""))
        journal.append(Begun(stage=stage.key, title=stage.title, depends=stage.depends, products=products))
    elif units := journal.of(Unit, stage.key):
        reporter.note(f"{stage.title}: goes on, {len(units)} layers are done")
        _tell_machine(units, machine, reporter)
    return False


def products_of(journal: Journal, stages: Sequence[Stage], device: torch.device) -> str:
    """`HALF` or `WHOLE`, as the first of these stages that asked was begun; "" where none that is left asks.

    Where none has asked before it is measured, which the same machine might answer otherwise on another day.
    """
    if not any(calibrated(stage.passes) and not journal.of(Done, stage.key) for stage in stages):
        return ""
    ours = {stage.key for stage in stages}
    before = [begun.products for begun in journal.of(Begun) if begun.stage in ours and begun.products]
    if device.type != "cpu" or not has_half():
        return WHOLE
    return before[0] if before else HALF if half_pays() else WHOLE


def _tell_changes(stage: Stage, earlier: Sequence[Begun], inherited: Mapping[str, Any], reporter: Reporter) -> None:
    """Why the work of before does not serve, field by field; of what is `inherited` the stage before has told."""
    _, before = min(((len(_differing(stage, found)), found) for found in earlier), key=lambda pair: pair[0])
    changed = [
        f"{name} was {_short(before.depends.get(name))} and is {_short(stage.depends.get(name))}"
        for name in _differing(stage, before)
        if name not in inherited
    ]
    if changed:
        reporter.note(f"{stage.title} is computed anew: {'; '.join(changed)}")


def _differing(stage: Stage, before: Begun) -> list[str]:
    names = sorted({*before.depends, *stage.depends})
    return [name for name in names if before.depends.get(name) != stage.depends.get(name)]


def _tell_machine(units: Sequence[Unit], machine: Mapping[str, str | int], reporter: Reporter) -> None:
    """Thread counts and the like decide last bits, not what is meant: noted, not refused."""
    before = units[-1].machine
    changed = [
        f"{name} {before.get(name, '?')}, now {value}" for name, value in machine.items() if before.get(name) != value
    ]
    if changed:
        reporter.note(f"the layers of before were computed with other settings: {'; '.join(changed)}")


def _short(value: object) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:19]}…"


def _make_directory(work: Path) -> list[Path]:
    """Make the folder; returns those that were not there, innermost first."""
    missing = [folder for folder in (work, *work.parents) if not folder.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"cannot make {work}: {error.strerror}", "choose an output directory that you may write to"
        ) from error
    return missing


def _clear(output: Path, work: Path) -> None:
    """Forget an earlier run: its work, and the artifacts that it recorded as its own."""
    for folder in _recorded(Journal(work / _JOURNAL)):
        shutil.rmtree(output / folder, ignore_errors=True)
    shutil.rmtree(work)
    work.mkdir()


def _recorded(journal: Journal) -> list[str]:
    """The folders of recorded artifacts, whatever else the version that wrote the records says of them."""
    artifacts = (record.get("artifact") for record in journal.records if record["kind"] == Written.__name__)
    names = (artifact.get("path") for artifact in artifacts if isinstance(artifact, dict))
    return [name for name in names if isinstance(name, str) and re.fullmatch(FOLDER, name)]
