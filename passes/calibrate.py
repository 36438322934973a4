"""Calibration data: the sequences of tokens whose activations the passes after it go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.files.native import NativeFile, save_tensors
from compress.formats.files.storage import sha256_file
from compress.passes.core.base import LayerPass, ModelPass
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.sample import sample_effort, sample_sequences
from compress.passes.core.stage import Stage
from compress.passes.forward.blend import BUILTIN, OWN
from compress.passes.forward.cost import Cost, Extent
from compress.passes.forward.text import Data, TextOptions, sequences_of
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer

_FILE = "sampled.safetensors"


class Sampled(Committed):
    """Text of the model's own: the tokens lie in the stage's folder."""

    sha256: str


class Calibrate(TextOptions, ModelPass):
    """Choose the text that the passes after this one calibrate on."""

    calibrates: ClassVar[bool] = True

    data: Data = Field(
        BUILTIN,
        description="a text file, a .jsonl file (`text`, or `messages` for the chat template), `builtin` (text that "
        "ships with Python), `self` (text sampled from the model), or a dataset's name; or several, each with a weight",
    )

    def read(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Sequences | None:
        return None if self.data == OWN else sequences_of(self, load_tokenizer(source), False, folder, note)

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        return super().depends(sequences) if sequences is None else {"tokens": sequences.sha256()}

    def cost(
        self, model: ModelSpec, anatomy: Anatomy, sequences: Extent, budget: int, following: Sequence[LayerPass] = ()
    ) -> Cost:
        nothing = super().cost(model, anatomy, sequences, budget, following)
        if self.data != OWN:
            return nothing
        effort = sample_effort(model, self.samples, self.seq_len)
        return replace(nothing, effort=effort, memory=nothing.memory + 4 * model.parameters)

    def model(self, run: Run, stage: Stage) -> Outcome:
        sequences = stage.sequences or self._sampled(run, stage)
        figures = {"sha256": sequences.sha256(), "tokens": sequences.tokens}
        return Outcome(calibration=sequences, manifest={"calibration": figures})

    def _sampled(self, run: Run, stage: Stage) -> Sequences:
        """Text of the model's own; sampled once."""
        path = stage.file(_FILE)
        if not run.journal.of(Sampled, stage.key):
            made = sample_sequences(run, load_tokenizer(run.source), self.samples, self.seq_len)
            save_tensors(path, {"ids": made.ids})
            run.journal.append(Sampled(stage=stage.key, sha256=sha256_file(path)))
        ids = NativeFile(path).read("ids")
        assert isinstance(ids, Tensor)
        return Sequences(ids)
