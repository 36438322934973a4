"""What the manifest says of one rewritten weight."""

from __future__ import annotations

from torch import Tensor

from compress.kernels.error import relative_error, sqnr_db
from compress.passes.core.base import Rewritten
from compress.passes.core.stats import Hessian, LinearStats


_LOSSLESS = 200.0  # dB; JSON has no infinity


def tensor_report(
    weight: Tensor, values: Tensor, rewritten: Rewritten, stats: LinearStats
) -> dict[str, float | str]:
    """Number format, bits per weight, SQNR in dB, and the relative error of the output ‖(W − Ŵ)X‖² / ‖WX‖².

    Without statistics the inputs are taken to be white: the relative error is then that of the weight.
    """
    hessian = stats[Hessian].matrix if Hessian in stats else None
    return {
        "format": rewritten.weight.format.name,
        "bits": rewritten.weight.format.bits_per_weight(rewritten.weight.shape),
        "sqnr_db": min(sqnr_db(weight, values), _LOSSLESS),
        "relative_error": relative_error(weight, values, hessian),
        **rewritten.notes,
    }
