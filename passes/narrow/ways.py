"""The ways in which `shrink` makes a model smaller, and what each leaves: channels and heads, layers, the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.formats.base import ModelSpec
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.narrow.choice import Choice
from compress.passes.narrow.corrections import corrections
from compress.passes.narrow.layers import influences, renumbered, strongest
from compress.passes.narrow.sizes import Aim, Sizes
from compress.passes.narrow.stream import find_stream
from compress.passes.narrow.thin import Thinning
from compress.passes.narrow.walk import Part, narrow


@dataclass(frozen=True)
class Way:
    """One stage: the model of `run` becomes what `aim` says; `name` is the pass's, who is told to have made it."""

    run: Run
    stage: Stage
    aim: Aim
    choice: Choice
    name: str

    def go(self) -> Outcome:
        """Do what is left to do. Resumable at any layer."""
        if self.aim.by_stream:
            return self._narrower_stream()
        return self._with_fewer_layers() if self.aim.by_layers else self._narrower_layers()

    def _narrower_stream(self) -> Outcome:
        before, anatomy = self.run.model.spec, self.run.skeleton.anatomy
        planned, stream = self.aim.planned(before, anatomy), find_stream(before, anatomy)
        width = self.aim.stream_width(before, anatomy, stream)
        thinning = Thinning(self.run, self.stage, stream, self.choice)
        thinning.gather()
        errors = {module: error for record in thinning.thin(width) for module, error in record.errors.items()}
        self.run.model.become(planned)
        return Outcome(
            authors=self._authors({name: name for name in stream.axes(before, anatomy)}),
            reports={module: {"relative_error": error} for module, error in errors.items()},
            manifest=self._told(hidden=width, hidden_before=self._first("hidden_before", stream.width)),
        )

    def _with_fewer_layers(self) -> Outcome:
        anatomy, before = self.run.skeleton.anatomy, self.run.model.spec
        planned, there = self.aim.planned(before, anatomy), len(anatomy.layers)
        kept = strongest(influences(self.run, self.stage), self.aim.layer_count(anatomy))
        called = renumbered(before, anatomy, kept)
        self.run.model.rename(called)
        self.run.model.become(planned)
        moved = {new: old for new, old in called.items() if new != old}
        gone = before.tensors.keys() - planned.tensors.keys()
        return Outcome(
            called=called,
            authors=self._authors({**dict.fromkeys(gone, ""), **moved}),
            manifest=self._told(layers=len(kept), layers_gone=[at for at in range(there) if at not in kept]),
        )

    def _narrower_layers(self) -> Outcome:
        before, anatomy = self.run.model.spec, self.run.skeleton.anatomy
        planned, sizes = self.aim.planned(before, anatomy), self.aim.sizes(before, anatomy)
        parts = [self._parts(before, sizes, index) for index in range(len(anatomy.layers))]
        records = narrow(self.run, self.stage, parts)
        self.run.model.become(planned)
        changed = {name for layer in parts for part in layer for name in part.tensors}
        errors = {module: error for record in records for module, error in record.errors.items()}
        left = {inner.reader: units for inners, units in sizes.values() for inner in inners}
        figures = {axis: units for axis, (_, units) in sizes.items()}
        were = {f"{axis}_before": inners[0].units for axis, (inners, _) in sizes.items()}
        return Outcome(
            authors=self._authors({name: name for name in changed}),
            reports={module: {"relative_error": error, "units": left[module]} for module, error in errors.items()},
            manifest=self._told(**figures, **{key: self._first(key, was) for key, was in were.items()}),
        )

    def _parts(self, model: ModelSpec, sizes: Sizes, index: int) -> list[Part]:
        """Of one layer, in the order of the forward."""
        layer = self.run.skeleton.anatomy.layers[index]
        parts = [self.choice.part(model, inners[index], units) for inners, units in sizes.values()]
        if self.choice.correct:
            parts += corrections(layer, {part.at for part in parts})
        order = [names[0] for names in layer.siblings]
        return sorted(parts, key=lambda part: order.index(part.at))

    def _authors(self, called: Mapping[str, str]) -> dict[str, str]:
        """Who made the tensors that are `called` so now, and were called otherwise: this step in the end."""
        before = self.run.left.authors
        return {name: " + ".join(filter(None, (before.get(was), self.name))) for name, was in called.items()}

    def _told(self, **figures: Any) -> dict[str, Any]:
        """For the manifest: beside what earlier steps of this kind have said."""
        return {self.name: {**self.run.left.manifest.get(self.name, {}), **figures}}

    def _first(self, key: str, value: int) -> Any:
        """What an earlier step said it was before, or `value`."""
        return self.run.left.manifest.get(self.name, {}).get(key, value)
