"""An importance matrix for other tools: the energy of every input, as llama-imatrix writes it.

    llama-quantize --imatrix out/imatrix.gguf model-f16.gguf Q4_K_M

Passes of a recipe need none: what they need of the calibration sequences they gather themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.formats.gguf.importance.file import write_imatrix
from compress.formats.gguf.importance.modules import Names, entries_of
from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.statistics import Energy
from compress.passes.model.anatomy import Anatomy
from compress.passes.sweep.energies import gathered_energies


class Imatrix(ModelPass):
    """Write the energy of every linear layer's inputs as llama.cpp's importance matrix, for llama-quantize."""

    alters: ClassVar[bool] = False
    writes: ClassVar[bool] = True
    calibrated: ClassVar[bool] = True
    reshapes: ClassVar[bool] = False

    path: str = Field("imatrix.gguf", pattern=r"^\w[\w.-]*\.gguf$", description="the file in the output directory")

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        if unknown := self._unknown(model, anatomy):
            raise RefusedError(
                f"imatrix: GGUF has no tensor for {unknown[0]}", "leave imatrix out: llama.cpp does not load this model"
            )
        return model

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, (count, length) = setting.model, setting.anatomy, setting.sequences
        walk = Passage(model, anatomy, (count, length), statistics=True, squares=False).cost(setting.budget)
        inputs = [names[0] for layer in anatomy.layers for names in layer.siblings]
        efforts = [Energy.effort(count * length, model.tensors[f"{name}.weight"].shape[1], None) for name in inputs]
        return replace(walk, effort=sum(efforts, walk.effort))

    def model(self, run: Run, stage: Stage) -> Outcome:
        sequences, energies = run.left.calibration, gathered_energies(run, stage)
        assert sequences is not None  # the plan refuses a run without
        entries = entries_of(energies, run.model.spec.config)
        write_imatrix(run.output / self.path, entries, _texts(stage.depends), sequences.count, sequences.length)
        run.reporter.note(f"imatrix: written to {run.output / self.path}")
        if unreached := [name for name, energy in energies.items() if not energy.tokens]:
            run.reporter.note(f"imatrix: no calibration token reached {', '.join(unreached)}")
        return Outcome()

    @staticmethod
    def _unknown(model: ModelSpec, anatomy: Anatomy) -> list[str]:
        names = Names(model.config)
        return [name for name in anatomy.linears if not names.parts(name)]


def _texts(depends: Mapping[str, Any]) -> list[str]:
    """The calibration sequences by their digest: a path would tell where the text lay."""
    return [f"{name} {value}" for name, value in depends.items() if name.endswith(".tokens")]
