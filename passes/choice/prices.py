"""What the quantized weights of a model cost it: how much KL goes if those of one sort are as they were before.

An error in one place costs many times what it does in another, and no layer can tell by itself. So the KL divergence
of the model is measured once as it is, and once with the untouched weights of each sort (q/k/v, or down_proj, of a
third of the layers); what that saves is shared out among a sort's linears as the errors of their outputs are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from compress.passes.choice.allocation import sorts_of
from compress.passes.choice.bit_budget import Unit, tied_modules
from compress.passes.core.base import ModelPass
from compress.passes.core.carry import carry
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.scores import score
from compress.passes.model.anatomy import kind_of
from compress.passes.model.weights import dense


class Price(BaseModel):
    """What modules that get the same bits cost together; `modules` are their shapes [out, in] by name.

    `cost` is in nats of KL per token where it could be measured, else the relative error of their outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    modules: Mapping[str, tuple[int, int]]
    cost: float


class Priced(Committed):
    """The prices are known."""

    prices: list[Price]


class Prices(ModelPass):
    """Price the quantized weights of the model as it stands. No recipe names it: repairs of gates ask."""

    alters: ClassVar[bool] = False
    calibrated: ClassVar[bool] = True

    samples: int = Field(16, ge=1, le=1 << 20, description="calibration sequences that KL is measured on")

    def model(self, run: Run, stage: Stage) -> Outcome:
        if not run.journal.of(Priced, stage.key):
            run.journal.append(Priced(stage=stage.key, prices=self._prices(run, stage)))
        (priced,) = run.journal.of(Priced, stage.key)
        return Outcome(manifest={"prices": [price.model_dump() for price in priced.prices]})

    def _prices(self, run: Run, stage: Stage) -> list[Price]:
        tensors = run.model.spec.tensors
        changed = {name for name in run.left.reports if tensors[f"{name}.weight"].format is not None}
        units = [Unit(names, 0, ()) for names in tied_modules(run.skeleton.anatomy, changed)]
        errors = torch.tensor([_error(unit.modules, run.left.reports) for unit in units], dtype=torch.float64)
        costs = errors if run.left.calibration is None else self._measured(run, stage, units, errors)
        shapes = {name: tensors[f"{name}.weight"].shape for name in changed}
        return [
            Price(modules={name: (shapes[name][0], shapes[name][1]) for name in unit.modules}, cost=float(cost))
            for unit, cost in zip(units, costs)
        ]

    def _measured(self, run: Run, stage: Stage, units: Sequence[Unit], errors: Tensor) -> Tensor:
        """[units] fp64: what each sort's untouched weights save, shared out by `errors`."""
        sorts, costs = sorts_of(units), torch.zeros_like(errors)
        as_it_is = self._divergence(run, stage, "as it is", frozenset())
        for number, sort in enumerate(dict.fromkeys(sorts)):
            members = [at for at, found in enumerate(sorts) if found == sort]
            restored = frozenset(name for at in members for name in units[at].modules)
            saved = as_it_is - self._divergence(run, stage, f"restored {number}", restored)
            shares = errors[members] / errors[members].sum().clamp(min=1e-30)
            costs[members] = shares * abs(saved)  # a gain by errors is noise of that size
        return costs

    def _divergence(self, run: Run, stage: Stage, name: str, restored: frozenset[str]) -> float:
        """KL in nats per token, untouched ‖ the model with the untouched weights of `restored` modules."""
        calibration = run.left.calibration
        assert calibration is not None  # without it nothing is measured
        text = calibration.batch(0, min(self.samples, calibration.count))
        untouched, model = dense(run.untouched), dense(run.model)

        def read(tensor: str) -> Tensor:
            module = tensor.removesuffix(".weight")
            return untouched(tensor) if module in restored and module != tensor else model(tensor)

        with torch.no_grad():
            before = carry(run, stage, "untouched", "price: the original", text, run.skeleton, untouched)
            after = carry(run, stage, name, f"price: {name}", text, run.skeleton, replace(model, read=read))
            divergence = score(after, before).kl_divergence
        assert divergence is not None
        return divergence


def _error(modules: Sequence[str], reports: Mapping[str, Mapping[str, float | str]]) -> float:
    """The relative errors of a unit's outputs, summed over its sorts of linears: experts of a layer are one sort."""
    sorts: dict[str, list[float]] = {}
    for name in modules:
        sorts.setdefault(kind_of(name), []).append(float(reports[name]["relative_error"]))
    return sum(sum(errors) / len(errors) for errors in sorts.values())
