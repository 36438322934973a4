"""One checkpoint seen as another: what every view leaves as it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.kernels.qtensor import QTensor


class View(Checkpoint):
    """`inner` under another `spec`. Subclasses say what differs: most of them in `read`."""

    def __init__(self, inner: Checkpoint, spec: ModelSpec) -> None:
        self.inner = inner
        self.path, self.dialect = inner.path, inner.dialect
        self.spec = spec

    def read(self, name: str) -> Tensor | QTensor:
        return self.inner.read(name)

    def files(self) -> Mapping[str, bytes]:
        return self.inner.files()

    def nbytes(self) -> int:
        return self.inner.nbytes()
