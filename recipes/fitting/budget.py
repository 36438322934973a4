"""Byte budgets of whole artifacts, as what they leave for the weights that a stage chooses for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compress.formats.base import Checkpoint
from compress.passes.choice.chooser import Choice, Chooser
from compress.passes.core.base import LayerPass, Pass, Product
from compress.passes.model.outline import Known


def budgeted(passes: Sequence[Pass], number: int, source: Checkpoint, known: Known) -> Pass:
    """The pass of that number, all of them being settled, with its budget as it counts itself. Raises RefusedError."""
    step, after = passes[number], passes[number + 1 :]
    if not isinstance(step, Chooser):
        return step
    following: list[LayerPass] = []
    for each in after:
        if not isinstance(each, LayerPass):
            break
        following.append(each)

    def nbytes(choice: Choice) -> int:
        given = [step.give(each, choice) for each in following]
        written = products_of([*passes[: number + 1], *given, *after[len(given) :]], source, known)
        return max((product.layout.nbytes for product in written), default=0)

    return step.budgeted(following, source.spec, known.anatomy, nbytes)


def products_of(passes: Sequence[Pass], source: Checkpoint, known: Known) -> Iterator[Product]:
    """What the passes will write."""
    model = source.spec
    for step in passes:
        known = known.of_spec(model, source.path)
        yield from step.products(model)
        model = step.plan(model, known.anatomy)
