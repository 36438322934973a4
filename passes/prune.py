"""Pruning: weights that matter least become zeros, and those that stay make up for them.

    scores    magnitude, wanda (arXiv 2306.11695), obd (LeCun et al. 1989); sparsegpt (arXiv 2301.00774) also updates,
              alps (arXiv 2406.07831) searches for mask and values together
    swap      then exact swaps of what stays, row by row (SparseSwaps, arXiv 2512.10922)
    solve     then what stays by least squares on the inputs; `correct` aims at the untouched model's outputs

Zeros stay zeros in what comes after, `gptq` in the same sweep for one: it feeds errors into what stays only.

With a `schedule` it stands for several such steps, each of more zeros than the one before, and a training between any
two of them (iterative magnitude pruning, arXiv 1710.01878).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from compress.formats.base import ModelSpec, Zeros
from compress.formats.errors import UsageError
from compress.formats.options import PerTensor, plain, resolve, with_chosen
from compress.kernels.effort import Effort
from compress.passes.core.base import LayerPass, ModelPass, Pass, Place
from compress.passes.core.change import Change
from compress.passes.core.rules import refuse_idle_rules
from compress.passes.core.targets import Selection
from compress.passes.distill import Distill
from compress.passes.finetune import Finetune
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Statistic
from compress.passes.model.anatomy import Anatomy
from compress.passes.narrow.pruning import Method, Pruning
from compress.passes.narrow.zeros import counts, with_zeros
from compress.passes.rewind import Rewind

Share = Annotated[float, Field(gt=0, lt=1)]
_SCHEDULED = ("schedule", "steps", "between", "rewind")


class Between(BaseModel):
    """The training between two steps of pruning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finetune: Finetune | None = None
    distill: Distill | None = None

    @model_validator(mode="after")
    def _check_one_training(self) -> Self:
        if (self.finetune is None) == (self.distill is None):
            raise ValueError("one training stands between two steps: {finetune: {…}} or {distill: {…}}")
        return self

    @property
    def training(self) -> ModelPass:
        """The one that was asked for."""
        training = self.finetune or self.distill
        assert training is not None  # or it was refused
        return training


class Prune(Selection, LayerPass):
    """Set the weights that matter least to zero; those that stay make up for them. Needs data."""

    method: Method = Field(
        "alps",
        description="what a weight is worth: its size, with its inputs (`wanda`, `obd`), by OBS, or searched for. "
        "`wanda` compares the weights of a row, `sparsegpt` those of 128 inputs, the others all of a layer",
    )
    sparsity: PerTensor[Share] = Field(0.5, description="which part of every weight becomes zero")
    pattern: Literal["2:4", "4:8"] | None = Field(
        None, description="or so many of every 4 or 8 neighbouring inputs stay, which costs quality"
    )
    swap: bool = Field(
        False,
        description="then exchange what stays for what does not, while the outputs err less: for `wanda` and the like, "
        "for `alps` leaves nothing to exchange",
    )
    solve: bool = Field(True, description="then solve for the values of what stays, by least squares on the inputs")
    correct: bool = Field(False, description="aim at the untouched model's outputs; runs it beside")
    damp: float = Field(0.01, gt=0, le=1, description="added to the Hessian's diagonal, as a part of its mean")
    shrinkage: float = Field(
        0.0,
        ge=0,
        le=1,
        description="by which part the Hessian's entries off its diagonal are made smaller: they are chance in part",
    )
    schedule: Literal["cubic"] | None = Field(
        None, description="prune in `steps` with a training `between` them: the part s·(1 − (1 − t/steps)³) by step t"
    )
    steps: int = Field(4, ge=2, le=64, description="of a schedule; the last one comes to `sparsity`")
    between: Between | None = Field(None, description="of a schedule: {finetune: {…}} or {distill: {…}}")
    rewind: bool = Field(
        False,
        description="of a schedule: before each training all that was kept goes back to the values that it came with "
        "(arXiv 1803.03635), so that steps hand on masks alone",
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        said = [name for name in _SCHEDULED if name in self.model_fields_set - {"schedule"}]
        if self.schedule is None and said:
            raise ValueError(f"{said[0]} is of a schedule, and there is none: say schedule: cubic")
        if self.schedule and self.between is None:
            raise ValueError("a schedule trains between its steps: say how, between: {finetune: {…}}")
        if self.schedule and isinstance(self.sparsity, tuple):
            raise ValueError("a schedule comes to one sparsity: say a number, as 0.7")
        if self.schedule and self.pattern:
            raise ValueError("a schedule comes to a sparsity, step by step: leave pattern out")
        if self.schedule and self.correct:
            raise ValueError("correct aims at the untouched model, which training has left: leave it out")
        return self

    @model_validator(mode="after")
    def _check_one_way(self) -> Self:
        if self.pattern and "sparsity" in self.model_fields_set:
            raise ValueError("pattern says how many weights stay, and sparsity does: leave one of them out")
        return self

    def unfolded(self) -> Sequence[tuple[Place, Pass]]:
        if self.between is None:
            return super().unfolded()
        training = self.between.training
        between: list[tuple[Place, Pass]] = [(("between", training.name), training)]
        if self.rewind:
            between.insert(0, (("rewind",), Rewind()))
        first, *others = (((), self._once(share)) for share in cubic(plain(self.sparsity), self.steps))
        return [first, *(each for step in others for each in (*between, step))]

    def _once(self, share: float) -> Prune:
        """One step of the schedule."""
        said = self.model_fields_set - {*_SCHEDULED, "sparsity"}
        return Prune(sparsity=share, **{name: getattr(self, name) for name in said})

    def targets(self, anatomy: Anatomy) -> frozenset[str]:
        return self.chosen(anatomy)

    def needs(self) -> frozenset[type[Statistic]]:
        return self._pruning().kinds()

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        self.refuse_unknown_stacks(anatomy)
        targets = sorted(self.targets(anatomy))
        self._refuse_wrong_rules(targets, anatomy)
        return with_zeros(model, {name: Zeros(self._share(name), self.pattern, self.correct) for name in targets})

    def _refuse_wrong_rules(self, targets: Sequence[str], anatomy: Anatomy) -> None:
        """No rule of `sparsity` decides for nothing, and one speaks of every module."""
        others = {*anatomy.linears, *anatomy.routers, *anatomy.ends}.difference(targets)
        refuse_idle_rules(self, self.name, targets, others)
        if silent := [name for name in targets if resolve(self.sparsity, name) is None]:
            raise UsageError(
                f"prune: no rule of sparsity speaks of {silent[0]}",
                "say what holds for all others, as `default: 0.5`, or leave them as they are: `skip`",
            )

    def with_shares(self, chosen: Mapping[str, float]) -> Self:
        return self.model_copy(update={"sparsity": with_chosen(self.sparsity, chosen)}) if chosen else self

    def _share(self, name: str) -> float:
        """Which part of the module `name` becomes zero: 0.5 with every pattern."""
        share: float | None = resolve(self.sparsity, name)
        assert share is not None  # or it was refused
        return share

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        how = self._pruning()
        return {
            name: how.change(weight, stats, self._share(name), stats.kept.get(name)) for name, weight in weights.items()
        }

    def effort(self, weights: Mapping[str, tuple[int, ...]]) -> Effort:
        return sum((self._pruning().effort(shape) for shape in weights.values()), Effort())

    def _pruning(self) -> Pruning:
        pattern = counts(self.pattern) if self.pattern else None
        return Pruning(self.method, pattern, self.swap, self.solve, self.correct, self.damp, self.shrinkage)


def cubic(sparsity: float, steps: int) -> list[float]:
    """The part that is zero after each step: fast at first, where much is to spare (arXiv 1710.01878, equation 1)."""
    return [sparsity * (1 - (1 - step / steps) ** 3) for step in range(1, steps + 1)]
