"""What the passes of a stage make of linears that share an input, and what that leaves to be committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from compress.kernels.qtensor import QTensor
from compress.passes.core.base import UNREACHED, LayerPass
from compress.passes.forward.statistics import LinearStats
from compress.passes.sweep.fold import Fold
from compress.passes.sweep.tensor_report import tensor_report


@dataclass
class Commit:
    """What one unit of the sweep (an end of the model, or a layer) leaves behind."""

    tensors: dict[str, Tensor | QTensor] = field(default_factory=dict)
    reports: dict[str, dict[str, float | str]] = field(default_factory=dict)
    authors: dict[str, str] = field(default_factory=dict)


class Rewriting:
    """Linears that share an input, on their way through the passes: each goes on from what the one before left.

    `weights` [out, in] fp32, by module name, are not changed. Once a pass has scaled the inputs, weights and
    statistics are those of the scaled inputs. Results go to `commit`.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], stats: LinearStats, commit: Commit, fold: Fold | None = None
    ) -> None:
        self._current = {name: weight.detach() for name, weight in weights.items()}
        self._original = dict(self._current)
        self._stats, self._commit, self._fold = stats, commit, fold
        self._scale: Tensor | None = None
        self._scaled_by = ""

    def take(self, step: LayerPass, targets: frozenset[str]) -> None:
        """Let `step` rewrite its targets among the weights."""
        mine = self._current.keys() & targets
        if not mine:
            return
        notes = self._rescale(step, mine) if step.scales() else {}
        weights = {name: weight for name, weight in self._current.items() if name in mine}
        for name, rewritten in step.siblings(weights, self._stats).items():
            values = rewritten.weight.dequantize()
            report = tensor_report(self._original[name], values, rewritten, self._stats)
            self._commit.tensors[f"{name}.weight"] = rewritten.weight
            self._commit.authors[f"{name}.weight"] = step.name
            self._commit.tensors.update({f"{name}.{leaf}": tensor for leaf, tensor in rewritten.tensors.items()})
            self._commit.reports.setdefault(name, {}).update({**report, **notes})
            self._current[name] = values if rewritten.target is None else rewritten.target

    def finish(self, place: Mapping[str, Tensor] | None) -> None:
        """Put into `place` what the forward goes on with, and commit the op that took the scale, if any."""
        if self._scale is not None and self._fold is not None:
            folded = self._fold.folded(self._scale)
            self._commit.tensors.update(folded)
            self._commit.authors.update(dict.fromkeys(folded, self._scaled_by))
        for name, weight in place.items() if place else ():
            rewritten = self._commit.tensors[f"{name}.weight"]
            assert isinstance(rewritten, QTensor)
            values = rewritten.dequantize()
            weight.copy_(values if self._scale is None else values / self._scale)

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
        self._scale, self._scaled_by = before * scale, step.name
        return {"fold": self._fold.op}
