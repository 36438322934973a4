"""Fewer heads of keys and values: heads of queries share them (GQA, arXiv 2305.13245), and the cache shrinks with them.

Layer by layer, on what the layers before it give by then: neighbours are merged into one head that stands for them
(kernels/solve/align.py), what reads it is turned to it, and the output's linear is fitted to what it is given then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.kernels.solve.align import How, merge_effort
from compress.kernels.solve.correct import correct_effort, corrected_target
from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import HEAP, Cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Drift, Hessian
from compress.passes.model.anatomy import Anatomy, Heads, LayerAnatomy
from compress.passes.model.sequences import Sequences
from compress.passes.narrow.heads import tensors_of
from compress.passes.narrow.sharing import cached_bytes, find_sharing, pool, with_kept
from compress.passes.narrow.walk import Narrower, Part, narrow


class GQA(ModelPass):
    """Let more heads of queries share a head of keys and values: the key/value cache becomes so much smaller."""

    calibrated: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    kv_heads: int = Field(ge=1, description="how many heads of keys and values every layer is to have; 1 is MQA")
    merge: How = Field(
        "shared",
        description="what stands for several heads: their `mean`; that of heads turned towards each other (`aligned`); "
        "or the head that all can be told from best (`shared`)",
    )
    repair: bool = Field(
        True,
        description="fit what reads the values to the untouched model's outputs, by least squares; runs it beside",
    )

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        return self.model_dump(mode="json")

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        sharing = find_sharing(model, anatomy)
        self._refuse_changed(model, sharing)
        there = sharing[0].kept
        if self.kv_heads >= there or there % self.kv_heads:
            fitting = " or ".join(str(count) for count in range(1, there) if there % count == 0)
            raise RefusedError(
                f"gqa: layers have {there} heads of keys and values, which cannot become {self.kv_heads}",
                f"say kv_heads: {fitting}" if fitting else "leave gqa out: it is MQA already",
            )
        return with_kept(model, sharing, self.kv_heads)

    def _refuse_changed(self, model: ModelSpec, sharing: Sequence[Heads]) -> None:
        """Raise RefusedError for weights that were quantized or pruned, and for a cache that was calibrated."""
        for heads in sharing:
            for name in tensors_of(model, heads):
                module = name.rpartition(".")[0]
                if model.tensors[name].format is not None or module in model.activations:
                    raise RefusedError(
                        f"gqa: {name} is quantized", "put gqa before what quantizes, and begin from a dense model"
                    )
                if module in model.pruned:
                    raise RefusedError(
                        f"gqa: {module} was pruned, and merged heads have no zeros", "put gqa before prune"
                    )
        if model.kv_cache:
            raise RefusedError("gqa: the cache was calibrated for the heads that there are", "put gqa before kv_cache")

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences, budget = setting.model, setting.anatomy, setting.sequences, setting.budget
        sharing = find_sharing(model, anatomy)
        heads, tokens = sharing[0], sequences[0] * sequences[1]
        several = 2 if self.repair else 1
        walk = Passage(model, anatomy, sequences, streams=several, statistics=True).cost(budget, rounds=several)
        rows, hidden = model.tensors[f"{heads.output}.weight"].shape[::-1]
        each = merge_effort(heads.kept // self.kv_heads, heads.width, hidden) * (2 * self.kv_heads)
        if heads.alike and self.kv_heads > 1:  # any two are tried
            each += merge_effort(2, heads.width, hidden) * (heads.kept * (heads.kept - 1))
        each += Hessian.effort(tokens, hidden, None)
        if self.repair:
            each += Hessian.effort(tokens, rows, hidden) + Drift.effort(tokens, rows, hidden)
            each += correct_effort((hidden, rows))
        solving = 8 * (3 * hidden**2 + 4 * hidden * (rows + 2 * heads.kept * heads.width)) + 16 * rows**2
        return replace(
            walk,
            effort=walk.effort + each * len(sharing),
            memory=walk.memory + int(HEAP * solving),
            notes=tuple(self._notes(sharing)),
        )

    def _notes(self, sharing: Sequence[Heads]) -> Iterator[str]:
        was, now = (cached_bytes(sharing, kept) for kept in (sharing[0].kept, self.kv_heads))
        share = f"{self.kv_heads} of {sharing[0].kept} heads"
        yield f"gqa: the cache takes {now:,} bytes a token in 16 bits, {share}; it took {was:,}"
        fixed = sum(len(heads.pairs) * 2 + len(heads.free) < heads.width for heads in sharing)
        if fixed and self.merge != "mean":
            yield f"gqa: keys of {fixed} layers are pooled as they are: a norm follows, which forbids to turn them"

    def model(self, run: Run, stage: Stage) -> Outcome:
        before, anatomy = run.model.spec, run.skeleton.anatomy
        planned, sharing = self.plan(before, anatomy), find_sharing(before, anatomy)
        parts = [self._parts(before, layer, heads) for layer, heads in zip(anatomy.layers, sharing)]
        records = narrow(run, stage, parts)
        run.model.become(planned)
        changed = [name for heads in sharing for name in tensors_of(before, heads)]
        errors = {module: error for record in records for module, error in record.errors.items()}
        return Outcome(
            authors={name: " + ".join(filter(None, (run.left.authors.get(name), self.name))) for name in changed},
            reports={module: {"relative_error": error, "heads": self.kv_heads} for module, error in errors.items()},
            manifest={"gqa": {"kv_heads": self.kv_heads, "kv_heads_before": sharing[0].kept}},
        )

    def _parts(self, model: ModelSpec, layer: LayerAnatomy, heads: Heads) -> list[Part]:
        """Before the first of q, k and v all are merged; before the output's linear that is fitted."""
        first = next(siblings[0] for siblings in layer.siblings if heads.keys in siblings)
        merging = _Merging(heads, self.kv_heads, self.merge)
        parts = [Part(first, tensors_of(model, heads), merging.merge)]
        if self.repair:
            output = (f"{heads.output}.weight",)
            parts.append(Part(heads.output, output, merging.repair, frozenset({Hessian, Drift}), residual=True))
        return parts


class _Merging:
    """What is done to one layer: `merge` first, then `repair`, which goes on from the output that it turned."""

    def __init__(self, heads: Heads, kept: int, how: How) -> None:
        self._heads, self._kept, self._how = heads, kept, how
        self._output = f"{heads.output}.weight"
        self._original: Tensor | None = None

    def merge(self, weights: Mapping[str, Tensor], stats: LinearStats) -> Narrower:
        """The tensors of fewer heads; the layer goes on with as many as it had, those that were merged the same."""
        hessian = stats[Hessian]
        pooled = pool(self._heads, self._kept, self._how, weights, hessian.matrix, hessian.tokens)
        self._original = weights[self._output]
        return Narrower(pooled.tensors, self._repeated, pooled.errors)

    def repair(self, weights: Mapping[str, Tensor], stats: LinearStats) -> Narrower:
        """The output's weight for the untouched model's outputs, from what reaches it now."""
        assert self._original is not None  # heads were merged before
        drift, hessian = stats[Drift], stats[Hessian].matrix
        fitted = corrected_target(weights[self._output], drift.matrix, hessian, drift.gap, original=self._original)
        return Narrower({self._output: fitted}, lambda stored: stored, {})

    def _repeated(self, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        times, rows = self._heads.kept // self._kept, (self._kept, self._heads.width)
        merged = (f"{self._heads.keys}.", f"{self._heads.values}.")
        return {
            name: tensor.unflatten(0, rows).repeat_interleave(times, 0).flatten(0, 1)
            if name.startswith(merged)
            else tensor
            for name, tensor in stored.items()
        }
