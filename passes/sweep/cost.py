"""What a stage of layer-wise passes takes: the forwards, the statistics, and what the passes themselves say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.kernels.half import halved_effort
from compress.kernels.measure.error import error_effort
from compress.kernels.share import ALONE, Crew
from compress.passes.core.base import LayerPass
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.logits import back_cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.cost.shapes import Extent, reached
from compress.passes.forward.statistics import Hessian, Statistic
from compress.passes.model.anatomy import Anatomy

Shapes = Mapping[str, tuple[int, ...]]
Kinds = frozenset[type[Statistic]]

_COMMITTED = 0.018
"""Calls for each weight that is rewritten: it is decoded, reported, written, on one thread. Measured."""


def sweep_cost(
    passes: Sequence[LayerPass],
    model: ModelSpec,
    anatomy: Anatomy,
    sequences: Extent,
    budget: int,
    crew: Crew = ALONE,
) -> Cost:
    """What a stage of `passes` takes, calibrated on `sequences`, and whether a `crew` shares it. `budget` in bytes."""
    needs = _kinds(passes)
    streams = 2 if any(kind.teacher for kind in needs) else 1
    squares, extent = any(kind.square for kind in needs), sequences if needs else (0, 0)
    walk = Passage(model, anatomy, extent, streams, statistics=bool(needs), squares=squares).cost(budget, crew=crew)
    effort = walk.effort + gather_effort(passes, model, anatomy, sequences) + rewrite_effort(passes, model, anatomy)
    if not any(step.row_parts() for step in passes):
        return replace(walk, effort=effort)
    back = back_cost(model, anatomy, sequences)
    memory = walk.memory + streams * _part_bytes(passes, model, anatomy)
    disk = max(walk.disk, back.disk) + _weights_of_tokens(passes, model, anatomy, sequences)
    found = replace(walk, effort=effort + back.effort, memory=max(memory, back.memory), disk=disk)
    if found.shared and found.memory * found.processes > budget:
        return sweep_cost(passes, model, anatomy, sequences, budget)
    return found


def gather_effort(passes: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy, sequences: Extent) -> Effort:
    """What the statistics take that `passes` need of `sequences`."""
    total = Effort()
    for shapes, taken in _siblings(passes, model, anatomy):
        tokens = round(reached(model, next(iter(shapes))) * sequences[0] * sequences[1])
        rows, columns = next(iter(shapes.values()))
        alone, parts = len(shapes) == 1, _parts(taken, anatomy)
        alike = _kinds(step for step in taken if step not in parts) | (frozenset({Hessian}) if parts else frozenset())
        found = sum((kind.effort(tokens, columns, rows if alone else None) for kind in alike), Effort())
        for step, count in parts.items():
            each = max(1, rows * len(taken[step]) // count) if alone else None
            found += sum((kind.effort(tokens, columns, each) for kind in step.needs()), Effort()) * count
        total += halved_effort(found, columns)
    return total


def rewrite_effort(passes: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> Effort:
    """What it takes to rewrite the targets of `passes`, to measure what that costs, and to commit it."""
    total = Effort()
    for shapes, taken in _siblings(passes, model, anatomy):
        for step, names in taken.items():
            total += step.effort({name: shapes[name] for name in names})
        measured = Hessian in _kinds(taken)
        for name in frozenset[str]().union(*taken.values()):
            rows, columns = shapes[name]
            total += Effort(calls=_COMMITTED * rows * columns)
            total += error_effort(shapes[name]) if measured else Effort()
    return total


def _parts(taken: Mapping[LayerPass, list[str]], anatomy: Anatomy) -> dict[LayerPass, int]:
    """Of how many parts of rows the passes that cut them want statistics, at these siblings; the ends have none."""
    names = {name for found in taken.values() for name in found}
    inner = not names & anatomy.ends.keys()
    return {step: step.row_parts() * len(found) for step, found in taken.items() if inner and step.row_parts()}


def _part_bytes(passes: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> int:
    """The Hessians of parts of rows that are in memory together, at most: those of one input."""
    return max(
        sum(_parts(taken, anatomy).values()) * 4 * next(iter(shapes.values()))[1] ** 2
        for shapes, taken in _siblings(passes, model, anatomy)
    )


def _weights_of_tokens(passes: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy, sequences: Extent) -> int:
    """What tokens count for in each part of rows, float16, in files."""
    parts = sum(sum(_parts(taken, anatomy).values()) for _, taken in _siblings(passes, model, anatomy))
    return 2 * sequences[0] * sequences[1] * parts


def _kinds(passes: Iterable[LayerPass]) -> Kinds:
    return frozenset[type[Statistic]]().union(*(step.needs() for step in passes))


def _siblings(
    passes: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy
) -> Iterator[tuple[Shapes, Mapping[LayerPass, list[str]]]]:
    """Linears that share an input, by name, and those of them that each pass rewrites; the model's ends, one by one."""
    targets = {step: step.targets(anatomy) for step in passes}
    inner = (names for layer in anatomy.layers for names in layer.siblings)
    for names in (*inner, *((end,) for end in anatomy.ends)):
        shapes = {name: model.tensors[f"{name}.weight"].shape for name in names}
        taken = {step: [name for name in names if name in mine] for step, mine in targets.items()}
        yield shapes, {step: found for step, found in taken.items() if found}
