"""What every pass that trains does: a student and an objective, the loop, and what was learned committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.sample import completed
from compress.passes.core.stage import Stage
from compress.passes.train.commit import Trained, commit, take_over
from compress.passes.train.examples import Examples, Marked
from compress.passes.train.loop import Group, Objective, Training
from compress.passes.train.options import TrainOptions
from compress.passes.train.shard import mesh_of
from compress.passes.train.student import Started, Student

Make = Callable[[Student, Examples, Examples], tuple[Objective, Sequence[Group]]]
"""(student, what it learns from, what is held out) → what is minimised, and what else learns with the student."""

Start = Callable[[], Started]
"""→ weights as they are quantized first, by the name of the tensor."""


def train(run: Run, stage: Stage, options: TrainOptions, make: Make, start: Start = dict) -> Outcome:
    """Train the run's model, or take over what was trained before. `start` quantizes what is to learn quantized."""
    if not run.journal.of(Trained, stage.key):
        learned, held_out = texts_of(run, stage, options)
        run.reporter.tell("loading the model that learns")
        mesh = mesh_of(run.device, run.processes.count) if _sharded(run, stage) else None
        student = Student(run, options, start(), mesh=mesh)
        objective, more = make(student, learned, held_out)
        student.root = objective
        groups = [*student.groups(options), *more]
        curve = (training := Training(run, stage, options, objective, groups, learned, held_out, mesh=mesh)).execute()
        commit(run, stage, student, curve, options.steps * options.batch * learned.sequences.length)
        run.processes.on_main(training.states.drop)
    return run.first(lambda: take_over(run, stage, options))


def texts_of(run: Run, stage: Stage, options: TrainOptions) -> tuple[Examples, Examples]:
    """What is learned from, and what is held out, of what the pass has read and what the model has written."""
    assert stage.sequences is not None  # the pass has read them
    read = completed(run, stage, stage.sequences)
    examples = Examples.of(read)
    apart = isinstance(read, Marked) and read.apart
    return examples.parted(apart) if apart else examples.split(options.looked_at, run.seed)


def _sharded(run: Run, stage: Stage) -> bool:
    """Whether what learns is sharded: what the plan says, and the same in all processes."""
    (step,) = stage.passes
    if run.processes.count == 1 or stage.sequences is None or not isinstance(step, ModelPass):
        return False
    extent, crew = (stage.sequences.count, stage.sequences.length), run.processes.crew(run.device.type)
    cost = step.cost(Setting(run.model.spec, run.skeleton.anatomy, extent, run.max_ram, crew=crew))
    return run.processes.sum(cost.sharded) > 0  # one machine may have less memory than another
