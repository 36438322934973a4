"""The calibration sequences on their way through the model, as a stage's statistics want it."""

from __future__ import annotations

from collections.abc import Iterable

from compress.formats.base import Checkpoint
from compress.kernels.share import WHOLE, Share
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.statistics import Statistic
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.weights import dense


def calibration_walk(run: Run, stage: Stage, kinds: Iterable[type[Statistic]], share: Share = WHOLE) -> Walk:
    """The calibration sequences through the model; through the untouched one beside it, if a statistic wants that.

    Without `kinds` there is room for any statistic.
    """
    kinds = tuple(kinds)
    sequences = run.left.calibration
    assert sequences is not None  # the plan refuses a run without
    teacher = any(kind.teacher for kind in kinds)
    models: list[Checkpoint] = [run.model, run.untouched] if teacher else [run.model]
    streams = [
        Stream(dense(model), stage.hidden_states(str(number), sequences, run.skeleton.width))
        for number, model in enumerate(models)
    ]
    squares = not kinds or any(kind.square for kind in kinds)
    flow = run.flow(sequences, len(streams), statistics=True, squares=squares)
    return Walk(run.skeleton, sequences, streams, run.reporter.tell, run.half, flow, share)
