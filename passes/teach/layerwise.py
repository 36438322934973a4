"""One decoder layer at a time toward the untouched one's outputs: memory independent of depth.

Two streams of hidden states lie on disk, what the layers trained so far give and what the untouched ones do. A layer
learns to lead from the one to the other: block reconstruction (BRECQ, arXiv 2102.05426; AutoRound, 2309.05516), on
inputs that have the errors of the layers before it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.formats.errors import UsageError
from compress.passes.core.outcome import Outcome
from compress.passes.core.processes import Processes
from compress.passes.core.report import Within
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.heap import return_freed_memory
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import dense
from compress.passes.teach.layer_cost import may_keep
from compress.passes.teach.layer_loss import Given, LayerLoss
from compress.passes.train.commit import Learned, Trained, commit_units, conclude, take_over
from compress.passes.train.course import texts_of
from compress.passes.train.loop import Curve, Training
from compress.passes.train.options import TrainOptions
from compress.passes.train.state import Unsaved
from compress.passes.train.student import Student
from compress.passes.train.trainable import learning


def train_layers(run: Run, stage: Stage, options: TrainOptions) -> Outcome:
    """Train the run's decoder layers one after the other, or take over those that were trained before.

    Raises UsageError if nothing of them is to learn.
    """
    if len(run.journal.of(Trained, stage.key)) < len(run.skeleton.anatomy.layers):
        _Layers(run, stage, options).execute()
    return take_over(run, stage, options)


class _Layers:
    """The layers of a stage, from where its journal says that they stand. A kill costs the layer at hand."""

    def __init__(self, run: Run, stage: Stage, options: TrainOptions) -> None:
        self.run, self.stage, self.options = run, stage, options
        self.learned, self.held_out = texts_of(run, stage, options)
        sequences = self.learned.then(self.held_out).sequences
        self.student, self.teacher = (
            Walk(
                run.skeleton.of(model),
                sequences,
                [Stream(dense(model), stage.hidden_states(name, sequences, run.skeleton.width))],
                run.reporter.tell,
                flow=run.flow(sequences, 2),
            )
            for name, model in (("student", run.model), ("teacher", run.source))
        )
        self.held = may_keep((sequences.count, sequences.length), run.skeleton.width, run.max_ram)

    def execute(self) -> None:
        """Do what is left to do."""
        layers, learns = self.run.skeleton.anatomy.layers, self._learning()
        done = [record.unit for record in self.run.journal.of(Trained, self.stage.key)]
        for record in self.run.journal.of(Learned, self.stage.key):
            if record.unit in done:
                self.run.model.overlay(self.stage.file(record.file))
        steps, before = (sum(which) * self.options.steps for which in (learns, learns[: len(done)]))
        self.run.reporter.start(self.stage.title, steps, "step", done=before)
        if not done:
            self.student.start()
            self.teacher.start()
        for index in range(len(done), len(layers)):
            self._layer(index, learns[index])
        self.run.reporter.finish()

    def _learning(self) -> list[bool]:
        """Which of the layers have something that learns."""
        anatomy = self.run.skeleton.anatomy
        names = learning(self.run.model.spec, sorted(self.run.skeleton.shapes), self.options, anatomy)
        layers = range(len(anatomy.layers))
        found = [not names.isdisjoint(self.run.skeleton.parameters(index).values()) for index in layers]
        if not any(found):
            raise UsageError(
                f"train: nothing within a decoder layer is to learn; {min(names)} is outside",
                "name something within one, or say scope: model",
            )
        return found

    def _layer(self, index: int, learns: bool) -> None:
        """One layer, and both streams behind it."""
        _carry(self.teacher, index)
        curve = self._train(index) if learns else Curve()
        _carry(self.student, index)
        tokens = len(curve.losses) * self.options.batch * self.student.sequences.length
        conclude(self.run, self.stage, curve, tokens, self.run.skeleton.anatomy.layers[index].name)
        for walk in (self.student, self.teacher):
            walk.finish(index + 1)
        return_freed_memory()

    def _train(self, index: int) -> Curve:
        """Train one layer; what it has learned is the model's then."""
        name = self.run.skeleton.anatomy.layers[index].name
        self.run.reporter.tell(f"loading {name}")
        student = Student(self.run, self.options, layer=index)
        training = Training(
            replace(self.run, reporter=Within(self.run.reporter, name), processes=Processes()),
            self.stage,
            self.options,
            self._objective(index, student.model),
            student.groups(self.options),
            self.learned,
            self.held_out,
            Unsaved,
        )
        curve = training.execute()
        commit_units(self.run, self.stage, student)
        (file,) = (each.file for each in self.run.journal.of(Learned, self.stage.key) if each.unit == name)
        self.run.model.overlay(self.stage.file(file))
        return curve

    def _objective(self, index: int, layer: nn.Module) -> LayerLoss:
        count, skeleton = self.student.sequences.count, self.run.skeleton

        def forward(module: nn.Module, hidden: Tensor, sequences: Sequences) -> Tensor:
            return skeleton.run(module, hidden, skeleton.call(index, sequences))

        inputs, targets = (
            Given(walk.streams[0].hidden, boundary, count, self.held)
            for walk, boundary in ((self.student, index), (self.teacher, index + 1))
        )
        return LayerLoss(layer, forward, inputs, targets, self._index, self.options.precision)

    def _index(self, rows: Tensor) -> Tensor:
        """The places of rows among all sequences: held-out ones, numbered −1, −2, …, come last."""
        return torch.where(rows < 0, self.learned.count - 1 - rows, rows)


@torch.no_grad()
def _carry(walk: Walk, index: int) -> None:
    walk.layer(index, walk.modules(index), (), hold=True)
