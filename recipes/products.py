"""Whether a run takes its products in bfloat16 where it calibrates: chosen once for all that is computed of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compress.kernels.half import half_pays, has_half
from compress.passes.core.journal import Begun, Done, Journal
from compress.passes.core.stage import Stage
from compress.recipes.stages import calibrated

HALF, WHOLE = "bfloat16", "float32"


def products_of(journal: Journal, stages: Sequence[Stage], device: torch.device) -> str:
    """`HALF` or `WHOLE`, as the first of these stages that asked was begun; "" where none that is left asks.

    Where none has asked before it is measured, which the same machine might answer otherwise on another day.
    """
    if not any(calibrated(stage.passes) and not journal.of(Done, stage.key) for stage in stages):
        return ""
    ours = {stage.key for stage in stages}
    before = [begun.products for begun in journal.of(Begun) if begun.stage in ours and begun.products]
    if device.type != "cpu" or not has_half():
        return WHOLE
    return before[0] if before else HALF if half_pays() else WHOLE
