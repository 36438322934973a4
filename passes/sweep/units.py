"""The units of a sweep, committed one after the other: written beside what comes next, and there before it rewrites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compress.formats.files.native import save_tensors
from compress.formats.files.storage import sha256_file
from compress.kernels.laps import lap
from compress.kernels.later import Later
from compress.kernels.share import Share
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.core.working_model import KEPT
from compress.passes.forward.heap import return_freed_memory
from compress.passes.sweep.rewriting import Leavings
from compress.passes.sweep.tensor_report import TensorReport


class Unit(Committed):
    """One unit of a sweep: an end of the model, or a layer.

    `file` lies in the stage's folder; `tensors` are reports by module, `authors` the passes that rewrote each
    tensor, joined by +. `machine` is what computed it.
    """

    unit: str
    file: str
    sha256: str
    tensors: Mapping[str, TensorReport]
    authors: Mapping[str, str]
    seconds: float
    machine: Mapping[str, str | int]


@dataclass(frozen=True)
class _Pending:
    """A unit that is being committed: its name, its mean error, its file once it is."""

    name: str
    error: float
    written: Later[Path]


class Units:
    """Those of `stage` that are committed, and the one that is being written; `told` hears whose file is there.

    Of processes that `share` the stage the main one commits.
    """

    def __init__(self, run: Run, stage: Stage, share: Share, told: Callable[[str], None]) -> None:
        self._run, self._stage, self._share, self._told = run, stage, share, told
        self._pending: _Pending | None = None

    def committed(self) -> list[Unit]:
        """The units that are committed by now, as the process knows that does it."""
        return self._share.given(self._run.journal.of(Unit, self._stage.key))

    def take_over(self, units: list[Unit]) -> None:
        """Go on from `units`, which are committed."""
        for unit in units:
            self._run.model.overlay(self._stage.file(unit.file))

    def commit(self, name: str, left: Leavings, seconds: float) -> None:
        """Begin to write a unit down; the one before it is settled."""
        if self._share.main:
            self._pending = _Pending(name, left.error, Later(partial(self._write, name, left, seconds)))

    def settle(self) -> None:
        """Wait until the unit before is committed, and go on from it. Raises what its writing raised."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        with lap("write") as written:
            path = pending.written.result()
            written.nbytes += path.stat().st_size
        self._run.model.overlay(path)
        return_freed_memory()
        self._run.reporter.advance(pending.name, error=pending.error)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Whatever happens within, what is being written at its end is written and told before it is left."""
        try:
            yield
        finally:
            self.settle()

    def _write(self, name: str, left: Leavings, seconds: float) -> Path:
        """Write a unit down; its file. Beside other work, of which nothing may count on it before `settle`."""
        number = len(self._run.journal.of(Unit, self._stage.key))
        path = self._stage.file(f"unit-{number:04d}.safetensors")
        save_tensors(path, {**left.tensors, **{f"{name}{KEPT}": mask for name, mask in left.masks.items()}})
        self._run.journal.append(
            Unit(
                stage=self._stage.key,
                unit=name,
                file=path.name,
                sha256=sha256_file(path),
                tensors=left.reports,
                authors=left.authors,
                seconds=seconds,
                machine=self._run.machine,
            )
        )
        self._told(name)
        return path
