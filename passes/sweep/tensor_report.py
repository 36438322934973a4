"""What the manifest says of one rewritten weight."""

from __future__ import annotations

from torch import Tensor

from compress.kernels.measure.error import relative_error, sqnr
from compress.passes.core.base import Rewritten
from compress.passes.forward.statistics import Hessian, LinearStats

_LOSSLESS = 200.0  # dB; JSON has no infinity


def tensor_report(weight: Tensor, values: Tensor, rewritten: Rewritten, stats: LinearStats) -> dict[str, float | str]:
    """Number format, bits per weight, SQNR in dB, and the relative error of the output ‖(W − Ŵ)X‖² / ‖WX‖².

    Without statistics the inputs are taken to be white: the relative error is then that of the weight.
    """
    noise = min(sqnr(weight, values), _LOSSLESS)
    if Hessian in stats and stats.tokens:
        error = relative_error(weight, values, stats[Hessian].matrix)
    else:
        error = 10 ** (-noise / 10)
    return {
        "format": rewritten.weight.format.name,
        "bits": rewritten.weight.format.bits_per_weight(rewritten.weight.shape),
        "sqnr_db": noise,
        "relative_error": error,
        **rewritten.notes,
    }
