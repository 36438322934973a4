"""What a pass is: one step of a recipe. One file in `passes/`; the file's name is the recipe key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.formats.options import resolve
from compress.kernels.qtensor import NumberFormat, QTensor, quantize
from compress.passes.forward.statistics import LinearStats, Statistic
from compress.passes.model.anatomy import Anatomy

if TYPE_CHECKING:
    from compress.passes.core.run import Run


UNREACHED = "no calibration token reached it"

Tie = Callable[[Tensor], Tensor]
"""The nearest scale of siblings' inputs ([in] → [in], fp32 > 0) that the op before can take (passes/sweep/fold.py)."""


class Pass(BaseModel, ABC):
    """One step of a recipe. Its fields are its YAML options; it holds no state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def name(self) -> str:
        """The recipe key: the name of the file that the pass is written in."""
        return type(self).__module__.rpartition(".")[2]

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        """What the step makes of the model's headers. Raises RefusedError for what cannot be done."""
        return model


class ModelPass(Pass):
    """A step on the whole model at once: it is a stage of its own."""

    calibrated: ClassVar[bool] = False
    """Whether it runs the calibration sequences through the model."""

    def prepare(self, run: Run) -> None:
        """What can fail for want of a file is done here, before any stage computes anything."""

    @abstractmethod
    def model(self, run: Run) -> None:
        """Do the step, or what is left of it when `run.journal` shows that it was begun."""


@dataclass(frozen=True)
class Rewritten:
    """A weight as a pass leaves it, and what there is to say about how it got there.

    `tensors` go beside it into the checkpoint, named within the module: `input_scale`. `target` is what a pass
    after it in the same stage starts from, if that is not the quantized weight.
    """

    weight: QTensor
    notes: Mapping[str, float | str] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    target: Tensor | None = None


class LayerPass(Pass):
    """A step on linear layers. Neighbouring ones share one sweep over the decoder layers."""

    @abstractmethod
    def targets(self, anatomy: Anatomy) -> frozenset[str]:
        """The modules (names without `.weight`) that this pass rewrites."""

    def needs(self) -> frozenset[type[Statistic]]:
        """The statistics it wants of the inputs of its targets."""
        return frozenset()

    def scales(self) -> bool:
        """Whether it chooses a scale of its inputs, to be folded into the op before them."""
        return False

    def input_scale(self, weights: Mapping[str, Tensor], stats: LinearStats, tie: Tie) -> Tensor | None:
        """The scale s [in] fp32 > 0 of the inputs of these linears: `siblings` then gets W·diag(s) and x/s.

        What comes out of `tie`, or 1 everywhere (None), is a scale that the op before can take. Only asked for
        where one was proved to take it.
        """
        return None

    def prepares(self) -> bool:
        """Whether a pass after it in the same stage may quantize the same weights, from this one's targets."""
        return False

    def with_bits(self, chosen: Mapping[str, int]) -> Self:
        """This pass with the bits that were chosen for modules, by name; as it is, if bits are none of its options."""
        return self

    @abstractmethod
    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Rewritten]:
        """Rewrite the weights ([out, in] fp32, by module name) of linears that share one input."""


class LinearPass(LayerPass):
    """Quantizes one weight at a time. Authors write `number_format` and `linear`.

    Linears that share input and options are stacked by rows and solved as one matrix: rows are
    independent of each other, and one large solve is faster than several small ones.
    """

    include: tuple[str, ...] | None = Field(
        None,
        description="patterns of module names; by default all linears of the decoder layers, every expert's among "
        "them. Routers of experts (engines keep them dense), `lm_head` and embeddings are included only by name",
    )
    skip: tuple[str, ...] = Field((), description="patterns of module names to leave as they are")
    stacks: ClassVar[bool] = True

    @abstractmethod
    def number_format(self, name: str) -> NumberFormat | None:
        """The number format for a module; None leaves it as it is."""

    @abstractmethod
    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Rewritten:
        """Quantize weight [out, in] fp32."""

    def rewrite(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Rewritten:
        """`linear`, or round to nearest where statistics are needed and there are none.

        So it is with embeddings, whose inputs are one-hot, and with experts that no calibration token reached.
        """
        if not self.needs() or stats.tokens:
            return self.linear(weight, stats, number_format)
        notes = {"fallback": "rtn"} | ({"reason": UNREACHED} if stats.gathered else {})
        return Rewritten(quantize(weight, number_format, number_format.fit(weight)), notes)

    def targets(self, anatomy: Anatomy) -> frozenset[str]:
        known = {name: (name,) for name in (*anatomy.linears, *anatomy.routers)} | anatomy.ends
        for pattern in (*(self.include or ()), *self.skip):
            if not any(fnmatchcase(alias, pattern) for names in known.values() for alias in names):
                raise UsageError(f"no linear layer is named {pattern!r}", f"names look like {anatomy.linears[0]}")
        chosen = anatomy.linears if self.include is None else tuple(known)
        return frozenset(name for name in chosen if self._covers(known[name]) and self.number_format(name))

    def resolved(self, name: str) -> Self:
        """This pass with every per-tensor option as it is for the module `name`; defaults where no rule speaks."""
        options = {}
        for option, info in type(self).model_fields.items():
            value = resolve(getattr(self, option), name)
            options[option] = info.default if value is None else value
        return self.model_copy(update=options)

    def _covers(self, names: tuple[str, ...]) -> bool:
        included = self.include is None or _matches(names, self.include)
        return included and not _matches(names, self.skip)

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        self._refuse_unknown_stacks(anatomy)
        tensors = dict(model.tensors)
        for module in sorted(self.targets(anatomy)):
            name, number_format = f"{module}.weight", self.number_format(module)
            assert number_format is not None
            if misfit := number_format.misfit(tensors[name].shape):
                raise RefusedError(f"{module}: {misfit}", f"choose another group size, or skip it: skip: [{module}]")
            tensors[name] = replace(tensors[name], format=number_format)
        return replace(model, tensors=tensors)

    def _refuse_unknown_stacks(self, anatomy: Anatomy) -> None:
        """What is to be quantized by default is quantized, or the user knows: nothing is skipped in silence."""
        stacks = [name for layer in anatomy.layers for name in layer.stacks]
        if stacks and self.include is None:
            raise RefusedError(
                f"{self.name}: {stacks[0]} holds several matrices in a form not known here ({len(stacks)} such)",
                "to quantize the linear layers alone, name them: include: [...]",
            )

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Rewritten]:
        stacks: dict[LinearPass, list[str]] = {}
        for name in weights:
            stacks.setdefault(self.resolved(name), []).append(name)
        done: dict[str, Rewritten] = {}
        for step, names in stacks.items():
            number_format = step.number_format(names[0])
            assert number_format is not None
            together = self.stacks and number_format.rows_apart
            for stack in [names] if together else [[name] for name in names]:
                whole = step.rewrite(torch.cat([weights[name] for name in stack]), stats, number_format)
                done.update(_split(whole, {name: weights[name].shape[0] for name in stack}))
        return done


def _matches(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _split(whole: Rewritten, rows: Mapping[str, int]) -> dict[str, Rewritten]:
    """Cut a stacked result back into its linears; one that stands alone may have parameters that span rows."""
    if len(rows) == 1:
        return dict.fromkeys(rows, whole)
    parts: dict[str, Rewritten] = {}
    start = 0
    for name, count in rows.items():
        cut = slice(start, start + count)
        params = {key: value[cut] for key, value in whole.weight.params.items()}
        target = None if whole.target is None else whole.target[cut]
        parts[name] = replace(
            whole, weight=QTensor(whole.weight.format, whole.weight.codes[cut], params), target=target
        )
        start += count
    return parts
