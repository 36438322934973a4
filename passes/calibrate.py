"""Calibration data: the sequences of tokens whose activations the passes after it go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.files.storage import sha256_file
from compress.formats.gguf.importance.file import read_imatrix
from compress.formats.gguf.importance.modules import Energy, energies
from compress.kernels.effort import Effort
from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.sample import completed, sample_cost
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import RUNTIME, Cost
from compress.passes.forward.cost.shapes import Extent
from compress.passes.forward.texts.blend import beside
from compress.passes.forward.texts.text import TextOptions, sequences_of
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer


class Calibrate(TextOptions, ModelPass):
    """Choose the text that the passes after this one calibrate on, or an importance matrix that stands for it."""

    calibrates: ClassVar[bool] = True
    reshapes: ClassVar[bool] = False

    imatrix: str | None = Field(
        None,
        description="in place of text, what llama-imatrix wrote (GGUF or the older .dat): the energy of every input, "
        "for passes that need no more (rtn with search: inputs, awq, prune by wanda or obd)",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        said = sorted(self.model_fields_set & TextOptions.model_fields.keys())
        if self.imatrix is not None and said:
            raise ValueError(f"an imatrix stands for text: leave {said[0]} out")
        return self

    @property
    def energies_alone(self) -> bool:
        return self.imatrix is not None

    def located(self, folder: Path) -> Self:
        return self if self.imatrix is None else self.model_copy(update={"imatrix": str(beside(folder, self.imatrix))})

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        if self.imatrix is not None:
            self._energies(self.imatrix, model, anatomy)  # or it is refused
        return model

    def extent(self) -> Extent | None:
        return None if self.imatrix is not None else super().extent()

    def texts(self, folder: Path) -> Mapping[tuple[str | int, ...], str]:
        return {} if self.imatrix is not None else super().texts(folder)

    def basis(self, source: Checkpoint, folder: Path) -> Mapping[str, Any] | None:
        return None if self.imatrix is not None else super().basis(source, folder)

    def read(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Sequences | None:
        if self.imatrix is not None:
            return None
        return sequences_of(self, load_tokenizer(source), False, folder, note)

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        if self.imatrix is not None:
            return {"imatrix": sha256_file(Path(self.imatrix))}
        assert sequences is not None  # `read` gave them
        return {"tokens": sequences.sha256()}

    def cost(self, setting: Setting) -> Cost:
        reading = Cost(Effort(), RUNTIME, 0)  # of text: no weight is
        return reading.after(sample_cost(setting.model, setting.anatomy, self.own, self.seq_len))

    def model(self, run: Run, stage: Stage) -> Outcome:
        if self.imatrix is not None:
            found = self._energies(self.imatrix, run.model.spec, run.skeleton.anatomy)
            return Outcome(energies=found, manifest={"calibration": dict(self.depends(None))})
        assert stage.sequences is not None  # `read` gave them
        sequences = completed(run, stage, stage.sequences)
        figures = {"sha256": sequences.sha256(), "tokens": sequences.tokens}
        return Outcome(calibration=sequences, manifest={"calibration": figures})

    @staticmethod
    def _energies(path: str, model: ModelSpec, anatomy: Anatomy) -> dict[str, Energy]:
        return energies(read_imatrix(Path(path)), [*anatomy.linears, *anatomy.routers, *_heads(anatomy)], model)


def _heads(anatomy: Anatomy) -> list[str]:
    """The ends of the model that multiply something: the output projection."""
    return [name for name, others in anatomy.ends.items() if anatomy.head.removesuffix(".weight") in others]
