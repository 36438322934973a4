"""The gates of a recipe: what each limits, whether a result holds it, and how much better it would have to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from compress.formats.errors import UsageError
from compress.formats.sizes import parse_bytes

Figures = Mapping[str, float | None]
"""What was measured, by the names of `FIGURES`; None for what was not."""

FIGURES = {
    "max_kl": "kl_divergence",
    "max_kl_p999": "kl_p999",
    "max_perplexity": "perplexity",
    "max_perplexity_ratio": "perplexity_ratio",
    "min_top1": "top1_agreement",
}
"""What each gate on quality limits: a figure of `evaluate`, or one that follows from its."""
MEASURED = {**FIGURES, "max_perplexity_ratio": "reference_perplexity"}
"""What must be measured for it."""
_MARGIN = 0.9
"""Of the error that a gate allows: what is predicted of fewer errors is not exact."""


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


Size = Annotated[int, Field(gt=0), BeforeValidator(_size)]
"""Bytes, or an amount of them as people write it."""


class Gates(BaseModel):
    """What the result must reach; missing a gate keeps the artifact, marks it, and exits 4."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_kl: float | None = Field(
        default=None, ge=0, description="KL divergence to the untouched model, in nats per token"
    )
    max_kl_p999: float | None = Field(default=None, ge=0, description="the same of all tokens but the worst thousandth")
    max_perplexity: float | None = Field(default=None, ge=1, description="perplexity of the result")
    max_perplexity_ratio: float | None = Field(default=None, gt=0, description="perplexity over the untouched model's")
    min_top1: float | None = Field(
        default=None, ge=0, le=1, description="part of the tokens whose likeliest successor stays the same"
    )
    max_bytes: Size | None = Field(
        default=None, description="weights of the largest artifact, as 4GiB; refused beforehand where it is known"
    )
    repair: bool = Field(
        default=False,
        description="if a gate on quality is missed, raise the bits, or GGUF's type, of the tensors that cost most "
        "until it holds or max_bytes forbids more",
    )


class Judged(BaseModel):
    """One gate: its limit, what was measured, and whether that holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    gate: str
    kind: Literal["max", "min"]
    limit: float
    value: float
    holds: bool

    def __str__(self) -> str:
        """Why it is missed."""
        side = "above" if self.kind == "max" else "below"
        return f"{self.gate}: {_shown(self.value)} is {side} {_shown(self.limit)}"


def judged(gates: Gates, figures: Figures, sizes: Sequence[int] = ()) -> list[Judged]:
    """Each gate that is set, on what was measured; `sizes` are the bytes of artifacts, of which there may be none."""
    values = {gate: figures.get(figure) for gate, figure in FIGURES.items()}
    values["max_bytes"] = max(sizes, default=None)
    found = ((gate, getattr(gates, gate), value) for gate, value in values.items())
    return [_judged(gate, limit, value) for gate, limit, value in found if limit is not None and value is not None]


def figures_of(measured: Figures) -> dict[str, float | None]:
    """What `evaluate` measured, with what follows from it."""
    perplexity, reference = measured.get("perplexity"), measured.get("reference_perplexity")
    return {**measured, "perplexity_ratio": perplexity / reference if perplexity and reference else None}


def error_left(gates: Gates, figures: Figures) -> float | None:
    """The part of the present error that may stay for the gates on quality to hold, 0 … 1; None if they hold.

    KL divergence, and the logarithm of a ratio of perplexities, go about as the energy of errors does; the part of
    tokens that change as its root. Fewer errors do not help where a perplexity is to be below the untouched model's.
    """
    missed = [found for found in judged(gates, figures) if not found.holds]
    parts = [_part(found, figures) for found in missed]
    return _MARGIN * max(0.0, min(parts)) if parts else None


def _part(missed: Judged, figures: Figures) -> float:
    if missed.gate == "min_top1":
        return ((1 - missed.limit) / (1 - missed.value)) ** 2
    if missed.gate == "max_perplexity_ratio":
        return _lasting(missed.limit, missed.value)
    reference = figures.get("reference_perplexity")
    if missed.gate == "max_perplexity" and reference:
        return _lasting(missed.limit / reference, missed.value / reference)
    return missed.limit / missed.value


def _lasting(limit: float, ratio: float) -> float:
    """The part of the error that may stay for a `ratio` of perplexities to become `limit`; 0 if nothing is lost."""
    return math.log(limit) / math.log(ratio) if ratio > 1 else 0.0


def _judged(gate: str, limit: float, value: float) -> Judged:
    least = gate.startswith("min_")
    return Judged(
        gate=gate,
        kind="min" if least else "max",
        limit=limit,
        value=value,
        holds=value >= limit if least else value <= limit,
    )


def _shown(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and value >= 1000 else f"{value:.4g}"
