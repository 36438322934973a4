"""Calibration data: the sequences of tokens whose activations the passes after it go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from compress.formats.base import Checkpoint
from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.sample import completed, sample_cost
from compress.passes.core.stage import Stage
from compress.passes.forward.cost import Cost
from compress.passes.forward.text import TextOptions, sequences_of
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer


class Calibrate(TextOptions, ModelPass):
    """Choose the text that the passes after this one calibrate on."""

    calibrates: ClassVar[bool] = True

    def read(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Sequences | None:
        return sequences_of(self, load_tokenizer(source), False, folder, note)

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        assert sequences is not None  # `read` gave them
        return {"tokens": sequences.sha256()}

    def cost(self, setting: Setting) -> Cost:
        model, anatomy = setting.model, setting.anatomy
        nothing = super().cost(setting)
        return nothing.after(sample_cost(model, anatomy, self.own, self.seq_len))

    def model(self, run: Run, stage: Stage) -> Outcome:
        assert stage.sequences is not None  # `read` gave them
        sequences = completed(run, stage, stage.sequences)
        figures = {"sha256": sequences.sha256(), "tokens": sequences.tokens}
        return Outcome(calibration=sequences, manifest={"calibration": figures})
