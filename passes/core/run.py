"""What a pass may use: the model so far, what stages before it left, the work folder and its journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from compress.formats.base import Checkpoint
from compress.kernels.share import ALONE, WHOLE, Crew, Share
from compress.passes.core.journal import Journal
from compress.passes.core.outcome import Outcome
from compress.passes.core.processes import Processes
from compress.passes.core.report import Reporter
from compress.passes.core.working_model import WorkingModel
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.flow import Flow
from compress.passes.forward.cost.passage import Passage
from compress.passes.model.sequences import Sequences

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton

T = TypeVar("T")


@dataclass
class Run:
    """The state of one run.

    `machine` is what computes now (device, threads, memory cap), recorded beside each unit of work. `manifest`
    is what every artifact says of the run; `source_digest` names the source by its bytes; `loads` gives the line
    that loads an artifact, by engine. `processes` are those that carry it out. `skeleton` and `model` are those of the
    stage at hand, `left` is what stages before it left. With `half` statistics of calibration, and the model where it
    walks alone, take products of bfloat16 (kernels/half.py). `untouched` is what that model is held against where both
    walk side by side: the source, or what a stage that changed shapes made of it.
    """

    source: Checkpoint
    skeleton: Skeleton
    output: Path
    work: Path
    journal: Journal
    reporter: Reporter
    max_ram: int
    seed: int
    machine: Mapping[str, str | int] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    source_digest: str = ""
    loads: Callable[[Checkpoint], Mapping[str, str]] = lambda _: {}
    processes: Processes = field(default_factory=Processes)
    half: bool = False

    model: WorkingModel = field(init=False)
    untouched: Checkpoint = field(init=False)
    left: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.model = WorkingModel(self.source)
        self.untouched = self.source

    @property
    def device(self) -> torch.device:
        return self.skeleton.device

    def passage(
        self, sequences: Sequences, streams: int = 1, statistics: bool = False, squares: bool = True
    ) -> Passage:
        """Those sequences on their way through so many models of the stage at hand."""
        extent = (sequences.count, sequences.length)
        return Passage(self.model.spec, self.skeleton.anatomy, extent, streams, statistics, squares)

    def flow(self, sequences: Sequences, streams: int = 1) -> Flow:
        """How sequences go through the layers of so many models within `max_ram`, where nothing is gathered."""
        return self.passage(sequences, streams).flow(self.max_ram)

    def reads_ahead(self, passage: Passage, share: Share) -> bool:
        """Whether a layer is read while the one before is computed."""
        return passage.reads_ahead(self.max_ram, ALONE if share is WHOLE else self.crew)

    @property
    def crew(self) -> Crew:
        """The processes that work together."""
        return self.processes.crew(self.device.type)

    def share(self, cost: Cost) -> Share:
        """The part of this process in what has this `cost`: all of it where no others are to share it."""
        return self.processes.share(str(self.device)) if cost.shared else WHOLE

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives. The main process does it; the others then do it too, and find done what is committed."""
        with self.processes.turn():
            self.journal.refresh()
            return work()
