"""A student's hidden states toward a teacher's, layer by layer (arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.formats.errors import UsageError

Pairs = Sequence[tuple[int, int]]
"""(the student's layer, the teacher's that it follows), counted from 1: the hidden states behind so many layers."""


class FeatureLoss(nn.Module):
    """Per token ‖P·s − t‖² / ‖t‖², the mean over `pairs` of a student's hidden state s and a teacher's t.

    It is relative because a norm comes next, which sees no more of an error. P [teacher_width, width] is the
    identity where both are of one width; else there is one for every pair, which learns beside the student and is
    dropped with this module (arXiv 1909.10351, equation 8). They begin as random rotations by `seed`.
    """

    def __init__(self, pairs: Pairs, width: int, teacher_width: int, seed: int = 0) -> None:
        super().__init__()
        self.pairs = pairs
        generator = torch.Generator().manual_seed(seed)
        self.projections = nn.ModuleList(
            _rotation(width, teacher_width, generator) if width != teacher_width else nn.Identity() for _ in pairs
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Losses [...], in fp32 or more, of hidden states [..., width] and [..., teacher_width] of the same tokens.

        `student[i]` stands behind i layers, so the embeddings come first.
        """
        losses = [
            relative_error(project(student[own]), teacher[other])
            for project, (own, other) in zip(self.projections, self.pairs)
        ]
        return torch.stack(losses).mean(0)


def layer_pairs(layers: int, teacher_layers: int, chosen: Mapping[int, int] | None = None) -> Pairs:
    """Which of a student's layers follows which of a teacher's: as `chosen`, or (None, {}) every one, evenly spread.

    Raises UsageError for a layer that is not there.
    """
    if not chosen:
        return [(own, max(1, round(own * teacher_layers / layers))) for own in range(1, layers + 1)]
    for who, count, named in (("model", layers, chosen), ("teacher", teacher_layers, chosen.values())):
        if absent := [layer for layer in named if not 1 <= layer <= count]:
            raise UsageError(f"the {who} has no layer {absent[0]}", f"its layers are 1 to {count}")
    return sorted(chosen.items())


def _rotation(width: int, teacher_width: int, generator: torch.Generator) -> nn.Linear:
    """A map that keeps lengths, as far as the narrower of both sides lets it."""
    linear = nn.Linear(width, teacher_width, bias=False)
    nn.init.orthogonal_(linear.weight, generator=generator)
    return linear


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """‖found − wanted‖² / ‖wanted‖² along the last axis, in fp32 or more."""
    precise = torch.promote_types(found.dtype, torch.float32)
    wanted = wanted.to(precise)
    energy = wanted.square().sum(-1)
    return (found.to(precise) - wanted).square().sum(-1) / energy.clamp_min(torch.finfo(precise).tiny)
