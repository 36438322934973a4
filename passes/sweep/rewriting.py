"""What the passes of a stage make of linears that share an input, and what that leaves to be committed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.formats.errors import CompressError
from compress.kernels.qtensor import QTensor
from compress.kernels.solve.mask import packed
from compress.passes.core.base import LayerPass
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.model.anatomy import kind_of
from compress.passes.sweep.fold import Fold
from compress.passes.sweep.tensor_report import UNREACHED, TensorReport, tensor_report


@dataclass
class Leavings:
    """What one unit of the sweep (an end of the model, or a layer) leaves: tensors, reports, who rewrote what."""

    tensors: dict[str, Tensor | QTensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Of quantized tensors that were pruned: which weights stay, as bits."""
    reports: dict[str, TensorReport] = field(default_factory=dict)
    authors: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[tuple[str, str], str] = field(default_factory=dict)
    """(module, leaf) of tensors that no token came to be measured for, and the pass that wanted them."""

    @property
    def error(self) -> float:
        """The mean relative error of what was rewritten; 0 if nothing was."""
        errors = [report.relative_error for report in self.reports.values()]
        return sum(errors) / len(errors) if errors else 0.0

    def credit(self, tensor: str, author: str) -> None:
        """Note that the pass `author` rewrote `tensor`, maybe after others."""
        self.authors[tensor] = f"{self.authors[tensor]} + {author}" if tensor in self.authors else author

    def take(self, part: Leavings) -> None:
        """What was made of some linears of the unit belongs to it."""
        self.tensors.update(part.tensors)
        self.masks.update(part.masks)
        self.reports.update(part.reports)
        self.unmeasured.update(part.unmeasured)
        for tensor, author in part.authors.items():
            self.credit(tensor, author)

    def sort(self, modules: Iterable[str]) -> None:
        """Bring tensors into the order of `modules`, in whatever order they were made."""
        places = {module: place for place, module in enumerate(modules)}
        self.tensors = dict(sorted(self.tensors.items(), key=lambda item: places.get(item[0].rpartition(".")[0], -1)))

    def unreached(self) -> Iterator[str]:
        """What no calibration token came to, in words for the user."""
        if unreached := [name for name, report in self.reports.items() if report.unreached]:
            yield f"{UNREACHED}, so it is changed without data: {', '.join(unreached)}"
        if self.unmeasured:
            lent = ", ".join(f"{module}.{leaf}" for module, leaf in self.unmeasured)
            yield f"{UNREACHED}, so the largest of the layer's other experts stands for it: {lent}"

    def lend(self) -> None:
        """Tensors that were not measured become the largest of those of the same sort (all experts' `up_proj`) here.

        Where none of that sort was measured they are 1: of a scale of inputs, that leaves usual ones in reach.
        """
        for (module, leaf), author in self.unmeasured.items():
            alike = (self.tensors.get(f"{name}.{leaf}") for name in self.reports if kind_of(name) == kind_of(module))
            found = [tensor for tensor in alike if isinstance(tensor, Tensor)]
            self.tensors[f"{module}.{leaf}"] = torch.stack(found).amax(0) if found else torch.ones(1)
            self.credit(f"{module}.{leaf}", author)
            self.reports[module] = self.reports[module].noting(leaf, "largest of its sort" if found else "1")


class Rewriting:
    """Linears that share an input, on their way through the passes: each goes on from what the one before left.

    `weights` [out, in] fp32, by module name, are not changed. `kept` are the masks of those that were pruned before:
    their zeros stay zeros. Once a pass has scaled the inputs, weights and
    statistics are those of the scaled inputs. Results go to `left`.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        stats: LinearStats,
        left: Leavings,
        fold: Fold | None = None,
        kept: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._current = {name: weight.detach() for name, weight in weights.items()}
        self._original = dict(self._current)
        self._values: dict[str, Tensor] = {}
        self._stats, self._left, self._fold = stats, left, fold
        self._kept = dict(kept or {})
        self._scale: Tensor | None = None
        self._scaled_by: list[str] = []

    def take(self, step: LayerPass, targets: frozenset[str]) -> None:
        """Let `step` rewrite its targets among the weights."""
        mine = self._current.keys() & targets
        if not mine:
            return
        said = self._rescale(step, mine) if step.scales() else {}
        weights = {name: weight for name, weight in self._current.items() if name in mine}
        self._stats.kept = {name: mask for name, mask in self._kept.items() if name in mine}
        for name, change in step.siblings(weights, self._stats).items():
            values = self._values[name] = change.values
            if change.mask is not None:
                self._kept[name] = change.mask
            self._refuse_filled(step, name, values)
            before = self._left.reports.get(name)
            notes = {**(before.notes if before else {}), **said}
            self._left.reports[name] = tensor_report(self._original[name], values, change, self._stats, notes)
            self._left.tensors[f"{name}.weight"] = change.weight
            self._left.credit(f"{name}.weight", step.name)
            if name in self._kept and isinstance(change.weight, QTensor):
                self._left.masks[f"{name}.weight"] = packed(self._kept[name])
            for leaf, tensor in change.tensors.items():
                self._left.tensors[f"{name}.{leaf}"] = tensor
                self._left.credit(f"{name}.{leaf}", step.name)
            self._left.unmeasured.update({(name, leaf): step.name for leaf in change.unmeasured})
            target = values if change.target is None else change.target
            self._current[name] = target.where(self._kept[name], 0.0) if name in self._kept else target

    def finish(self) -> dict[str, Tensor]:
        """What the forward goes on with [out, in] fp32; the op that took the scale, if any, is left."""
        if self._scale is not None and self._fold is not None:
            folded = self._fold.folded(self._scale)
            self._left.tensors.update(folded)
            for tensor in folded:
                self._left.credit(tensor, " + ".join(self._scaled_by))
        if self._scale is None:
            return self._values
        return {name: values / self._scale for name, values in self._values.items()}

    def _refuse_filled(self, step: LayerPass, name: str, values: Tensor) -> None:
        if name in self._kept and bool(values.masked_fill(self._kept[name], 0.0).any()):
            raise CompressError(
                f"{step.name} gave pruned weights of {name} other values than 0",
                f"skip the layer in {step.name}, or put another pass in its place",
            )

    def _rescale(self, step: LayerPass, mine: set[str]) -> dict[str, float | str]:
        """Ask `step` for a scale and go on with W·diag(s) and x/s. Returns what the report says of it."""
        if self._fold is None:
            return {"fold": "left alone: no op before was proved to take a scale"}
        if missing := sorted(self._fold.siblings - mine):
            return {"fold": f"left alone: {missing[0]} shares the input and is not quantized by {step.name}"}
        if not self._stats.tokens:
            return {"fold": f"left alone: {UNREACHED}"}
        weights = {name: self._current[name] for name in self._fold.siblings}
        some = next(iter(weights.values()))
        before = some.new_ones(some.shape[1]) if self._scale is None else self._scale
        refusal = self._fold.refusal(before)
        scale = None if refusal else step.input_scale(weights, self._stats, self._fold.tie)
        if scale is not None:
            refusal = self._fold.refusal(before * scale)
        if refusal or scale is None:
            return {"fold": f"left alone: {refusal}"} if refusal else {}
        self._current = {name: weight * scale for name, weight in self._current.items()}
        self._original = {name: weight * scale for name, weight in self._original.items()}
        self._stats.divide(scale)
        self._scale = before * scale
        self._scaled_by.append(step.name)
        return {"fold": self._fold.op}
