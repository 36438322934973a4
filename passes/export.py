"""Write the model as an artifact that engines load: written beside, reopened, compared, and only then named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from compress.formats import dialects
from compress.formats.base import Checkpoint, Dialect, ModelSpec
from compress.formats.errors import RefusedError, suggest
from compress.formats.views.fit import Decoded, fit_spec, misfit_of
from compress.formats.views.matrices import restored_spec
from compress.formats.views.rounded import Rounded
from compress.kernels.effort import Effort
from compress.passes.artifact.fingerprint import TOKENS
from compress.passes.artifact.write import FOLDER, Written, refuse_foreign, write_artifact, written_at
from compress.passes.core.base import ModelPass, Product, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.rules import refuse_idle_rules
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import HEAP, RUNTIME, Cost
from compress.passes.forward.cost.logits import score_effort
from compress.passes.forward.cost.passage import Passage
from compress.passes.model.anatomy import Anatomy
from compress.passes.sweep.energies import gathered_energies
from compress.passes.sweep.tensor_report import UNREACHED

_VERIFIED = 0.022
"""Calls for each weight: packed, written, hashed, compared as two readers read it, on one thread. Measured."""
_NAMED = 730
"""The same for each tensor of the files, whatever its size: headers are read, it is found by name. Measured."""
_COMPARED = 3
"""The largest tensor as it was meant, as it lies there, and as the witness reads it, fp32: all in memory at once."""


class Export(ModelPass):
    """Write an artifact. Options beside those below are the dialect's own: see `compress dialects`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    alters: ClassVar[bool] = False
    writes: ClassVar[bool] = True

    dialect: str = Field(description="the container convention: `compress dialects` lists them")
    path: str | None = Field(
        None,
        pattern=FOLDER,
        description="folder in the output directory; by default the dialect's name, with the type of a gguf if given",
    )
    requantize: bool = Field(False, description="decode what the container cannot hold exactly, and convert it")

    @model_validator(mode="after")
    def _check_dialect(self) -> Self:
        self.container()
        return self

    @property
    def folder(self) -> str:
        """The artifact's folder in the output directory."""
        return self.path or self.container().folder

    def container(self) -> Dialect:
        """The dialect with its options. Raises ValueError (pydantic's, or ours for an unknown name)."""
        known = dialects()
        if self.dialect not in known:
            raise ValueError(f"there is no dialect '{self.dialect}'{suggest(self.dialect, known)}")
        return known[self.dialect].model_validate(self.__pydantic_extra__ or {})

    def products(self, model: ModelSpec) -> Sequence[Product]:
        dialect = self.container()
        written = restored_spec(self._fitted(model, dialect))
        matrices = {name: spec for name, spec in written.tensors.items() if len(spec.shape) > 1}
        dense = {name.removesuffix(".weight") for name, spec in matrices.items() if spec.format is None}
        refuse_idle_rules(dialect, self.dialect, dense, {name.removesuffix(".weight") for name in matrices} - dense)
        options, layout = dialect.options(written), dialect.layout(written)
        return [Product(self.dialect, self.folder, written, options, layout, dialect.roundings(written))]

    def _fitted(self, model: ModelSpec, dialect: Dialect) -> ModelSpec:
        """The headers of `model` as the container holds them; a refusal names containers that hold them exactly."""
        try:
            return fit_spec(model, dialect, self.requantize)
        except RefusedError as error:
            able = [f"`dialect: {name}`" for name, kind in dialects().items() if not misfit_of(model, kind())]
            able.sort(key=lambda name: "dense" in name)  # last: it holds values, and saves no byte
            if not able:
                raise
            more = f" (so does {', '.join(able[1:])})" if able[1:] else ""
            raise RefusedError(str(error), f"{able[0]} holds it exactly{more}; {error.hint}") from error

    def calibrated_by(self) -> Self:
        dialect = self.container()
        return self.model_copy(update=dialect.weighing()) if dialect.rounds else self

    @property
    def heeds_calibration(self) -> bool:
        return self.container().rounds

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, budget = setting.model, setting.anatomy, setting.budget
        few = Passage(model, anatomy, (1, TOKENS)).cost(budget)
        answers = few.effort + score_effort(model, anatomy, (1, TOKENS), 1)
        largest = max(spec.size for spec in model.tensors.values()) * 4
        named = self.container().tensors(restored_spec(fit_spec(model, self.container(), self.requantize)))
        written = replace(
            few,
            effort=answers * 2 + Effort(calls=_VERIFIED * model.parameters + _NAMED * named),
            memory=max(few.memory, RUNTIME + int(HEAP * _COMPARED * largest)),
            forwards=0,
        )
        return written.after(self._weighing(setting)) if self._weighed(model, anatomy) else written

    def _weighing(self, setting: Setting) -> Cost:
        """What it takes to gather the energy of inputs; nothing where no text was chosen."""
        passage = Passage(setting.model, setting.anatomy, setting.sequences, statistics=True, squares=False)
        walk = passage.cost(setting.budget)
        return walk if setting.sequences[0] else Cost(Effort(), 0, 0)

    def _weighed(self, model: ModelSpec, anatomy: Anatomy) -> list[str]:
        """The linear layers that its container rounds: their errors are weighed with the energy of inputs, if known."""
        found = self.container().roundings(fit_spec(model, self.container(), self.requantize))
        return [name for name in anatomy.linears if f"{name}.weight" in found]

    def prepare(self, run: Run, stage: Stage) -> None:
        refuse_foreign(run, run.output / self.folder)

    def model(self, run: Run, stage: Stage) -> Outcome:
        if written_at(run, stage) is None:
            dialect = self.container()
            fitted = self._rounded(Decoded(run.model, fit_spec(run.model.spec, dialect, self.requantize)), run, stage)
            artifact = write_artifact(fitted, dialect, run.output / self.folder, run)
            run.journal.append(Written(stage=stage.key, source=run.source_digest, artifact=artifact))
        return Outcome()

    def _rounded(self, model: Checkpoint, run: Run, stage: Stage) -> Checkpoint:
        """`model` with what its container rounds rounded by what the inputs are, where calibration tells that."""
        names = self._weighed(run.model.spec, run.skeleton.anatomy) if self.container().rounds else []
        if not names or (run.left.energies is None and run.left.calibration is None):
            return model
        energies = gathered_energies(run, stage) if run.left.energies is None else run.left.energies
        known = {name: energies[name] for name in names if name in energies and energies[name].tokens}
        if left := [name for name in names if name not in known]:
            run.reporter.note(f"{UNREACHED}, so it is rounded without data: {', '.join(left)}")
        # Experts lie in one tensor: one that was not reached is rounded beside the others, its inputs taken as alike.
        importance = {f"{name}.weight": known[name].sums if name in known else None for name in names}
        return Rounded(model, self.container().roundings(model.spec), importance)
