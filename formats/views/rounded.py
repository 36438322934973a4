"""A model seen with some matrices rounded by what their inputs are, of which a container knows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from compress.formats.base import Checkpoint
from compress.formats.views.view import View
from compress.kernels.qtensor import NumberFormat, QTensor


class Rounded(View):
    """`inner` with the dense matrices that `importance` speaks of, by name, on `formats`.

    `importance` [columns] fp32 ≥ 0 is Σx² of the inputs, which the number format's search weighs errors with; None
    where that is not known, and all count alike.
    """

    def __init__(
        self, inner: Checkpoint, formats: Mapping[str, NumberFormat], importance: Mapping[str, Tensor | None]
    ) -> None:
        self._importance = {name: each for name, each in importance.items() if name in formats}
        tensors = inner.spec.tensors
        rounded = {name: replace(tensors[name], format=formats[name]) for name in self._importance}
        super().__init__(inner, replace(inner.spec, tensors={**tensors, **rounded}))

    def read(self, name: str) -> Tensor | QTensor:
        tensor, number_format = self.inner.read(name), self.spec.tensors[name].format
        if name not in self._importance or isinstance(tensor, QTensor) or number_format is None:
            return tensor
        known = self._importance[name]
        return number_format.search(tensor.float(), torch.ones(tensor.shape[1]) if known is None else known)
