"""From the options of a lesson to what is minimised: the teacher is opened, and asked or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.loss.losses import LogitLoss
from compress.passes.model.whole.loading import load_model
from compress.passes.teach.cached import Asked
from compress.passes.teach.distillation import Distillation
from compress.passes.teach.features import FeatureLoss, layer_pairs
from compress.passes.teach.lesson import LessonOptions
from compress.passes.teach.teacher import Teacher, open_teacher
from compress.passes.teach.top_k import answers
from compress.passes.train.examples import Examples
from compress.passes.train.loop import Group
from compress.passes.train.options import Precision, TrainOptions
from compress.passes.train.order import held_out_rows
from compress.passes.train.shard import sharding
from compress.passes.train.student import Student


def lesson(
    run: Run, stage: Stage, options: LessonOptions, training: TrainOptions, student: Student, *examples: Examples
) -> tuple[Distillation, Sequence[Group]]:
    """What `student` minimises, and the projections of hidden states that learn with it.

    `examples` are those to learn from and those held out, in the order in which the loop numbers them.
    """
    teacher = teacher_of(run, options)
    logit = options.logit_loss(teacher.vocabulary(run.skeleton.vocabulary))
    features = None if options.loss == "logit" else _features(run, options, teacher)
    if options.kept is None:
        run.reporter.tell("loading the teacher")
        teaches = load_model(teacher.checkpoint, run.device, ready=sharding(student.mesh))
    else:
        kept, asked = options.kept, _asked(training.precision, *examples)
        teaches = run.first(lambda: answers(kept, run, stage, teacher, asked, logit or LogitLoss()))
    weight = options.feature_weight if options.loss == "mixed" else 1.0
    objective = Distillation(student.model, teaches, logit, features, weight, training.precision)
    projections = {} if features is None else dict(features.named_parameters())
    named = {f"projection.{name}": parameter for name, parameter in projections.items()}
    return objective, [Group(named, training.lr)] if named else []


def teacher_of(run: Run, options: LessonOptions) -> Teacher:
    """Raises RefusedError for a model that cannot teach this one."""
    if options.follows_source:
        return Teacher(run.source, run.skeleton.of(run.source), run.skeleton.vocabulary)
    return open_teacher(options.teacher, run.source, Path(), run.device, run.reporter.tell)


def _features(run: Run, options: LessonOptions, teacher: Teacher) -> FeatureLoss:
    own, other = len(run.skeleton.anatomy.layers), len(teacher.skeleton.anatomy.layers)
    pairs = layer_pairs(own, other, options.layers)
    return FeatureLoss(pairs, run.skeleton.width, teacher.skeleton.width, run.seed).to(run.device)


def _asked(precision: Precision, learned: Examples, held_out: Examples) -> Asked:
    """All that the loop will want answers to, by its numbers."""
    sequences = learned.then(held_out)
    rows = torch.cat([torch.arange(learned.count), held_out_rows(torch.arange(held_out.count))])
    return Asked(sequences.sequences, sequences.scored(), rows, precision)
