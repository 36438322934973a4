"""The model as a run has changed it so far: the source's tensors, overlaid with those that were rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.files.hf_config import CONFIG
from compress.formats.files.native import NativeFile
from compress.formats.files.storage import encode_json, parse_json
from compress.formats.views.view import View
from compress.kernels.qtensor import QTensor


class WorkingModel(View):
    """A checkpoint over a source: reads rewritten tensors from the run's work folder, the others from the source."""

    def __init__(self, source: Checkpoint) -> None:
        super().__init__(source, source.spec)
        self.dialect = "work"
        self._rewritten: dict[str, NativeFile] = {}

    def frozen(self) -> WorkingModel:
        """The model as it is now, whatever becomes of this one."""
        copy = WorkingModel(self.inner)
        copy.spec, copy._rewritten = self.spec, dict(self._rewritten)
        return copy

    def overlay(self, path: Path) -> None:
        """Take the tensors of a committed file in the source's stead."""
        file = NativeFile(path)
        self._rewritten.update(dict.fromkeys(file.specs, file))
        known = self.spec.tensors
        tensors = {
            name: replace(known[name], shape=spec.shape, format=spec.format) if name in known else spec
            for name, spec in file.specs.items()
        }
        self.spec = replace(self.spec, tensors={**known, **tensors})

    def become(self, planned: ModelSpec) -> None:
        """Take over what a stage planned beside tensors, which have come with `overlay`.

        That is the configuration, what is rounded at run time, and which tensors there are no more.
        """
        tensors = {name: spec for name, spec in self.spec.tensors.items() if name in planned.tensors}
        self.spec = replace(planned, tensors=tensors, files=self.spec.files)

    @property
    def rewritten(self) -> frozenset[str]:
        return frozenset(self._rewritten)

    def read(self, name: str) -> Tensor | QTensor:
        return self._rewritten.get(name, self.inner).read(name)

    def files(self) -> Mapping[str, bytes]:
        """The source's own; its config.json with the settings that stages changed."""
        files, before = dict(self.inner.files()), self.inner.spec.config
        if CONFIG in files and dict(self.spec.config) != dict(before):
            changed = {key: value for key, value in self.spec.config.items() if before.get(key) != value}
            files[CONFIG] = encode_json({**parse_json(files[CONFIG], CONFIG), **changed})
        return files
