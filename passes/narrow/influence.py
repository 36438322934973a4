"""How far a decoder layer turns the hidden states that pass through it (block influence, ShortGPT, 2403.03853)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from compress.passes.forward.walk import Walk


def influence(walk: Walk, boundary: int) -> float:
    """1 − cos(x, y), its mean over tokens, of what the layer before `boundary` takes and what it gives.

    Of the first stream, whose two boundaries lie there still. Padding is left out.
    """
    (hidden, *_), total, tokens = [stream.hidden for stream in walk.streams], 0.0, 0
    for batch in walk.batches:
        taken, given = (_flat(hidden.read(at, *batch)) for at in (boundary - 1, boundary))
        cosines, mask = cosine_similarity(taken, given, dim=1), walk.sequences.batch(*batch).mask
        real = cosines if mask is None else cosines[mask.flatten().bool()]
        total, tokens = total + float(real.double().sum()), tokens + len(real)
    return 1 - total / tokens


def _flat(hidden: Tensor) -> Tensor:
    return hidden.flatten(0, 1)
