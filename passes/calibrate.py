"""Calibration data: the sequences of tokens whose activations the passes after it go by."""

from __future__ import annotations

from pydantic import Field

from compress.passes.core.base import ModelPass
from compress.passes.core.run import Run
from compress.passes.core.sample import sample_sequences
from compress.passes.forward.text import TextOptions, sequences_of
from compress.passes.model.tokenizer import load_tokenizer


class Calibrate(TextOptions, ModelPass):
    """Choose the text that the passes after this one calibrate on."""

    data: str = Field(
        "builtin",
        description="a text file, a .jsonl file (`text`, or `messages` for the chat template), "
        "`builtin` (text that ships with Python), `self` (text sampled from the model), or a dataset's name",
    )

    def prepare(self, run: Run) -> None:
        if self.data != "self":
            run.sequences[run.stage] = sequences_of(self, load_tokenizer(run.source), held_out=False)

    def model(self, run: Run) -> None:
        if self.data == "self":
            run.sequences[run.stage] = sample_sequences(run, load_tokenizer(run.source), self.samples, self.seq_len)
        run.calibration = run.sequences[run.stage]
        run.manifest["calibration"] = {"sha256": run.calibration.sha256(), "tokens": run.calibration.tokens}
