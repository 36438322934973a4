"""The calibration sequences on their way through the model, as a stage's statistics want it."""

from __future__ import annotations

from collections.abc import Iterable

from compress.formats.base import Checkpoint
from compress.kernels.share import WHOLE, Share
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.statistics import Statistic
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.weights import dense


def calibration_passage(run: Run, kinds: Iterable[type[Statistic]]) -> Passage:
    """The calibration sequences through the model; through the untouched one beside it, if a statistic wants that.

    Without `kinds` there is room for any statistic.
    """
    kinds, sequences = tuple(kinds), run.left.calibration
    assert sequences is not None  # the plan refuses a run without
    streams = 2 if any(kind.teacher for kind in kinds) else 1
    return run.passage(sequences, streams, statistics=True, squares=not kinds or any(kind.square for kind in kinds))


def calibration_walk(run: Run, stage: Stage, kinds: Iterable[type[Statistic]], share: Share = WHOLE) -> Walk:
    """`calibration_passage`, to be walked."""
    passage, sequences = calibration_passage(run, kinds), run.left.calibration
    assert sequences is not None
    models: list[Checkpoint] = [run.model, run.untouched][: passage.streams]
    streams = [
        Stream(dense(model), stage.hidden_states(str(number), sequences, run.skeleton.width))
        for number, model in enumerate(models)
    ]
    flow = passage.flow(run.max_ram)
    return Walk(run.skeleton, sequences, streams, run.reporter.tell, run.half, flow, share)
