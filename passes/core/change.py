"""What a pass makes of one weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from compress.kernels.qtensor import QTensor


@dataclass(frozen=True)
class Change:
    """A weight as a pass leaves it, quantized or dense [out, in] fp32, and what there is to say about how it got there.

    `target` [out, in] fp32 is what a pass after it in the same stage starts from, if that is not `weight`.
    `tensors` go beside it into the checkpoint, named within the module: `input_scale`. `unreached`: no calibration
    token came to its inputs, so it was done without data; `unmeasured` are then those `tensors` that are yet to
    come, from linears of the same sort that tokens came to. `notes` are for the report.
    """

    weight: Tensor | QTensor
    target: Tensor | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    unreached: bool = False
    unmeasured: tuple[str, ...] = ()
    notes: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def values(self) -> Tensor:
        """What the weight computes with: [out, in] fp32."""
        return self.weight.dequantize() if isinstance(self.weight, QTensor) else self.weight

    def rows(self, part: slice) -> Change:
        """The change of some rows, where rows are independent; `tensors` speak of the input, which is one."""
        weight = self.weight
        if isinstance(weight, QTensor):
            params = {name: value[part] for name, value in weight.params.items()}
            cut: Tensor | QTensor = QTensor(weight.format, weight.codes[part], params)
        else:
            cut = weight[part]
        target = None if self.target is None else self.target[part]
        return replace(self, weight=cut, target=target)
