"""Sequences through a whole model as a part of a stage: each boundary is journalled, so a killed run goes on there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compress.kernels.share import WHOLE, Share
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import Weights

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton


class Boundary(Committed):
    """The walk of that name has reached a boundary between layers."""

    walk: str
    boundary: int


def carry(
    run: Run,
    stage: Stage,
    name: str,
    title: str,
    sequences: Sequences,
    skeleton: Skeleton,
    weights: Weights,
    keep: bool = False,
    share: Share = WHOLE,
) -> Walk:
    """`sequences` at the last boundary of the model of `skeleton` and `weights`, from where `stage` left the walk.

    `name` is that of the walk, for the same one to be found again; `title` what the user is told. With `keep` all
    boundaries stay on disk. Processes that `share` it make the same call.
    """
    stream = Stream(weights, stage.hidden_states(name, sequences, skeleton.width))
    walk = Walk(skeleton, sequences, [stream], run.reporter.tell, flow=run.flow(sequences), share=share)
    done = share.given(sum(record.walk == name for record in run.journal.of(Boundary, stage.key)))

    def commit(boundary: int) -> None:
        if share.main:
            run.journal.append(Boundary(stage=stage.key, walk=name, boundary=boundary))
        run.reporter.advance()

    run.reporter.start(title, len(skeleton.anatomy.layers), "layer", done=done)
    with torch.no_grad():
        walk.carry(done, commit, keep=keep)
    run.reporter.finish()
    return walk
