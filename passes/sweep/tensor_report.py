"""What the manifest says of one rewritten weight."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from compress.kernels.measure.error import relative_error, sqnr
from compress.kernels.qtensor import QTensor
from compress.passes.core.change import Change
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Hessian

UNREACHED = "no calibration token reached it"
_LOSSLESS = 200.0  # dB; JSON has no infinity


class TensorReport(BaseModel):
    """Number format (or dtype), bits per weight, SQNR in dB, relative error of the output ‖(W − Ŵ)X‖² / ‖WX‖².

    Without statistics the inputs are taken to be white: the relative error is then that of the weight.
    `unreached`: no calibration token came to it. `notes` are what passes said of how they got there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: str
    bits: float
    sqnr_db: float
    relative_error: float
    unreached: bool = False
    notes: Mapping[str, float | str] = {}

    def noting(self, name: str, note: float | str) -> TensorReport:
        """This, with one more note."""
        return self.model_copy(update={"notes": {**self.notes, name: note}})

    def flat(self) -> dict[str, float | str]:
        """As the manifest has it: figures and notes side by side."""
        reason = {"reason": UNREACHED} if self.unreached else {}
        return {**self.model_dump(exclude={"notes", "unreached"}), **self.notes, **reason}


def tensor_report(
    weight: Tensor, values: Tensor, change: Change, stats: LinearStats, notes: Mapping[str, float | str]
) -> TensorReport:
    """The report of `change`, which turned `weight` into `values`, both [out, in] fp32; `notes` of passes before it."""
    noise = min(sqnr(weight, values), _LOSSLESS)
    if Hessian in stats and stats.tokens:
        error = relative_error(weight, values, stats[Hessian].matrix)
    else:
        error = 10 ** (-noise / 10)
    left = change.weight
    return TensorReport(
        format=left.format.name if isinstance(left, QTensor) else str(left.dtype).removeprefix("torch."),
        bits=left.format.bits_per_weight(left.shape) if isinstance(left, QTensor) else 8.0 * left.itemsize,
        sqnr_db=noise,
        relative_error=error,
        unreached=change.unreached,
        notes={**notes, **change.notes},
    )
