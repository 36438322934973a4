"""Which passes run together: neighbouring layer-wise passes share one sweep, every other pass stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from compress.passes.core.base import LayerPass, ModelPass, Pass

Stage = ModelPass | tuple[LayerPass, ...]


def stages(passes: Sequence[Pass]) -> list[Stage]:
    """The recipe's passes in order, grouped into stages."""
    grouped: list[Stage] = []
    for layerwise, steps in groupby(passes, key=lambda step: isinstance(step, LayerPass)):
        if layerwise:
            grouped.append(tuple(step for step in steps if isinstance(step, LayerPass)))
        else:
            grouped.extend(step for step in steps if isinstance(step, ModelPass))
    return grouped
