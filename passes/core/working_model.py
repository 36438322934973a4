"""The model as a run has changed it so far: the source's tensors, overlaid with those that were rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec, TensorSpec
from compress.formats.files.hf_config import CONFIG
from compress.formats.files.native import NativeFile
from compress.formats.files.storage import encode_json, parse_json
from compress.formats.views.view import View
from compress.kernels.qtensor import QTensor
from compress.kernels.solve.mask import unpacked
from compress.passes.model.weights import decoded

KEPT = ".kept"
"""What the mask of a quantized tensor that was pruned is called beside it."""


class WorkingModel(View):
    """A checkpoint over a source: reads rewritten tensors from the run's work folder, the others from the source."""

    def __init__(self, source: Checkpoint) -> None:
        super().__init__(source, source.spec)
        self.dialect = "work"
        self._rewritten: dict[str, tuple[NativeFile, str]] = {}
        self._called: Mapping[str, str] = {}
        self._masks: dict[str, tuple[NativeFile, str]] = {}

    def frozen(self) -> WorkingModel:
        """The model as it is now, whatever becomes of this one."""
        copy = WorkingModel(self.inner)
        copy.spec, copy._rewritten, copy._called = self.spec, dict(self._rewritten), self._called
        copy._masks = dict(self._masks)
        return copy

    def overlay(self, path: Path) -> None:
        """Take the tensors of a committed file in the source's stead, and the masks that lie beside them."""
        file = NativeFile(path)
        specs = {name: spec for name, spec in file.specs.items() if not name.endswith(KEPT)}
        for name, spec in specs.items():
            if f"{name}{KEPT}" in file.specs:
                self._masks[name] = file, f"{name}{KEPT}"
            elif spec.format is not None and name in self._rewritten:
                self._masks.setdefault(name, self._rewritten[name])  # the last dense values
        self._rewritten.update({name: (file, name) for name in specs})
        known = self.spec.tensors
        tensors = {
            name: replace(known[name], shape=spec.shape, format=spec.format) if name in known else spec
            for name, spec in specs.items()
        }
        self.spec = replace(self.spec, tensors={**known, **tensors})

    def kept(self, module: str) -> Tensor | None:
        """Which weights of a pruned module stay: [out, in] bool; None of one that was not pruned.

        A dense weight is its own mask. Of a quantized one the codes are not, for what stays may round to 0, too.
        """
        if module not in self.spec.pruned:
            return None
        name = f"{module}.weight"
        spec = self.spec.tensors[name]
        if spec.format is None or name not in self._masks:
            return decoded(self.read(name)) != 0
        file, stored = self._masks[name]
        mask = file.read(stored)
        if stored.endswith(KEPT):
            assert isinstance(mask, Tensor)
            return unpacked(mask, spec.shape)
        return decoded(mask) != 0

    def become(self, planned: ModelSpec) -> None:
        """Take over what a stage planned beside tensors, which have come with `overlay`.

        That is the configuration, what is rounded at run time, and which tensors there are no more.
        """
        tensors = {name: spec for name, spec in self.spec.tensors.items() if name in planned.tensors}
        self.spec = replace(planned, tensors=tensors, files=self.spec.files)

    def rename(self, names: Mapping[str, str]) -> None:
        """Keep the tensors that are values of `names` alone, each under its key from now on."""
        self._rewritten = {new: self._rewritten[old] for new, old in names.items() if old in self._rewritten}
        self._called = {new: self._called.get(old, old) for new, old in names.items()}
        tensors = {new: _moved(self.spec.tensors[old], old, new) for new, old in names.items()}
        self.spec = replace(self.spec, tensors=tensors)

    @property
    def rewritten(self) -> frozenset[str]:
        """The names under which the source has other tensors, or none."""
        return frozenset(self._rewritten) | {new for new, old in self._called.items() if new != old}

    def read(self, name: str) -> Tensor | QTensor:
        if name in self._rewritten:
            file, stored = self._rewritten[name]
            return file.read(stored)
        return self.inner.read(self._called.get(name, name))

    def files(self) -> Mapping[str, bytes]:
        """The source's own; its config.json with the settings that stages changed."""
        files, before = dict(self.inner.files()), self.inner.spec.config
        if CONFIG in files and dict(self.spec.config) != dict(before):
            changed = {key: value for key, value in self.spec.config.items() if before.get(key) != value}
            files[CONFIG] = encode_json({**parse_json(files[CONFIG], CONFIG), **changed})
        return files


def _moved(spec: TensorSpec, old: str, new: str) -> TensorSpec:
    """`spec` of a tensor that is called `new` and was called `old`: what it lies in in the files is renamed alike."""
    if spec.origin is None or new == old:
        return spec
    steps = list(zip(old.split("."), new.split(".")))
    depth = 1 + next(depth for depth, (before, after) in enumerate(steps) if before != after)
    prefix = ".".join(old.split(".")[:depth])
    name = ".".join(new.split(".")[:depth]) + spec.origin.name.removeprefix(prefix)
    return replace(spec, origin=replace(spec.origin, name=name))
