"""Write the model as an artifact that engines load: written beside, reopened, compared, and only then named."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from compress.formats import dialects
from compress.formats.base import Dialect, Layout, ModelSpec
from compress.formats.errors import suggest
from compress.formats.views.fit import Decoded, fit_spec
from compress.formats.views.matrices import restored_spec
from compress.passes.artifact.write import refuse_existing, write_artifact
from compress.passes.core.base import ModelPass
from compress.passes.core.run import Run


class Export(ModelPass):
    """Write an artifact. Options beside those below are the dialect's own: see `compress dialects`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    dialect: str = Field(description="the container convention: `compress dialects` lists them")
    path: str | None = Field(
        None,
        pattern=r"^\w[\w.-]*$",
        description="folder in the output directory; by default the dialect's name",
    )
    requantize: bool = Field(False, description="decode what the container cannot hold exactly, and convert it")

    @model_validator(mode="after")
    def _check_dialect(self) -> Self:
        self.container()
        return self

    @property
    def folder(self) -> str:
        """The artifact's folder in the output directory."""
        return self.path or self.dialect

    def container(self) -> Dialect:
        """The dialect with its options. Raises ValueError (pydantic's, or ours for an unknown name)."""
        known = dialects()
        if self.dialect not in known:
            raise ValueError(f"there is no dialect '{self.dialect}'{suggest(self.dialect, known)}")
        return known[self.dialect].model_validate(self.__pydantic_extra__ or {})

    def layout(self, model: ModelSpec) -> Layout:
        """The exact files. Raises RefusedError for what the container cannot hold."""
        dialect = self.container()
        return dialect.layout(restored_spec(fit_spec(model, dialect, self.requantize)))

    def prepare(self, run: Run) -> None:
        if not run.journal.of(stage=run.stage, kind="artifact"):
            refuse_existing(run.output / self.folder)

    def model(self, run: Run) -> None:
        target = run.output / self.folder
        if not run.journal.of(stage=run.stage, kind="artifact"):
            dialect = self.container()
            fitted = Decoded(run.model, fit_spec(run.model.spec, dialect, self.requantize))
            record = write_artifact(fitted, dialect, target, run)
            run.journal.append({"stage": run.stage, "kind": "artifact", **record})
