"""What a pass makes of one weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from compress.kernels.qtensor import QTensor


@dataclass(frozen=True)
class Change:
    """A weight as a pass leaves it, quantized or dense [out, in] fp32, and what there is to say about how it got there.

    `target` [out, in] fp32 is what a pass after it in the same stage starts from, if that is not `weight`.
    `tensors` go beside it into the checkpoint, named within the module: `input_scale`. `unreached`: no calibration
    token came to its inputs, so it was done without data; `unmeasured` are then those `tensors` that are yet to
    come, from linears of the same sort that tokens came to. `notes` are for the report.
    `mask` [out, in] bool, of a pass that prunes: True where the weight stays; all else is 0 here and stays 0.
    """

    weight: Tensor | QTensor
    target: Tensor | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    unreached: bool = False
    unmeasured: tuple[str, ...] = ()
    notes: Mapping[str, float | str] = field(default_factory=dict)
    mask: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """What the weight computes with: [out, in] fp32."""
        return self.weight.dequantize() if isinstance(self.weight, QTensor) else self.weight

    def rows(self, part: slice) -> Change:
        """The change of some rows, where rows are independent; `tensors` speak of the input, which is one."""
        weight = self.weight
        cut = weight.rows(part) if isinstance(weight, QTensor) else weight[part]
        target = None if self.target is None else self.target[part]
        return replace(self, weight=cut, target=target, mask=None if self.mask is None else self.mask[part])


def stacked(parts: Sequence[Change]) -> Change:
    """The change of a weight from those of parts of its rows, in order; `tensors` are the same in all.

    Several parts want a number format in which rows stand apart. Of notes the largest is kept: the most damping, and
    a fallback if any part has one.
    """
    if len(parts) == 1:
        return parts[0]
    targets = [part.target for part in parts if part.target is not None]
    masks = [part.mask for part in parts if part.mask is not None]
    notes = {name: max(part.notes[name] for part in parts) for name in parts[0].notes}
    weight = _joined([part.weight for part in parts])
    target, mask = (torch.cat(found) if found else None for found in (targets, masks))
    return replace(parts[0], weight=weight, target=target, mask=mask, notes=notes)


def _joined(weights: Sequence[Tensor | QTensor]) -> Tensor | QTensor:
    quantized = [weight for weight in weights if isinstance(weight, QTensor)]
    if not quantized:
        return torch.cat([weight for weight in weights if isinstance(weight, Tensor)])
    params = {name: torch.cat([each.params[name] for each in quantized]) for name in quantized[0].params}
    return replace(quantized[0], codes=torch.cat([each.codes for each in quantized]), params=params)
