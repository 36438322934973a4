"""What a pass may use: the model so far, the sequences of tokens, the work folder and its journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress.formats.base import Checkpoint
from compress.passes.core.base import LayerPass
from compress.passes.core.journal import Journal
from compress.passes.core.report import Reporter
from compress.passes.core.working_model import WorkingModel
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.scores import Scores
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton


@dataclass
class Run:
    """The state of one run: what does not change, then what stages leave for those after them.

    `following` are the layer-wise passes of the next stage, `bits` what was chosen for them, by module.
    """

    source: Checkpoint
    skeleton: Skeleton
    output: Path
    work: Path
    journal: Journal
    reporter: Reporter
    max_ram: int
    seed: int
    manifest: dict[str, Any]

    model: WorkingModel = field(init=False)
    stage: int = 0
    following: tuple[LayerPass, ...] = ()
    bits: Mapping[str, int] = field(default_factory=dict)
    sequences: dict[int, Sequences] = field(default_factory=dict)
    calibration: Sequences | None = None
    scores: Scores | None = None

    def __post_init__(self) -> None:
        self.model = WorkingModel(self.source)

    @property
    def device(self) -> torch.device:
        return self.skeleton.device

    def hidden_states(self, name: str, sequences: Sequences) -> HiddenStates:
        """A place for the hidden states of `sequences`, named so that a resumed run finds it again."""
        return HiddenStates(self.work / name, sequences.length, self.skeleton.width, sequences.count)

    def can_hold(self, nbytes: int) -> bool:
        """Whether activations of `nbytes` fit beside the model. Depends on the budget, never on the moment."""
        return nbytes <= self.max_ram // 2
