"""Gates: what holds, what is missed and how it is told, and what errors may stay."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from compress.recipes.gates.limits import FIGURES, Gates, error_left, figures_of, judged

MEASURED = figures_of({
    "perplexity": 22.0, "reference_perplexity": 20.0, "kl_divergence": 0.1, "kl_p999": 2.0, "top1_agreement": 0.8,
})  # fmt: skip


@pytest.mark.parametrize("gate, holding, missing", [
    ("max_kl", 0.1, 0.05), ("max_kl_p999", 2.0, 1.0), ("max_perplexity", 22.0, 21.0),
    ("max_perplexity_ratio", 1.1, 1.05), ("min_top1", 0.8, 0.9),
])  # fmt: skip
def test_a_gate_holds_at_its_limit_and_is_missed_beyond(gate: str, holding: float, missing: float) -> None:
    assert gate in FIGURES
    (kept,), (missed,) = (judged(Gates.model_validate({gate: limit}), MEASURED) for limit in (holding, missing))
    assert kept.holds and not missed.holds
    assert error_left(Gates.model_validate({gate: holding}), MEASURED) is None
    side = "below" if gate == "min_top1" else "above"
    assert str(missed) == f"{gate}: {missed.value:.4g} is {side} {missing:.4g}"


def test_what_errors_may_stay() -> None:
    left = {gate: error_left(Gates.model_validate({gate: limit}), MEASURED) for gate, limit in {
        "max_kl": 0.05, "max_perplexity": 21.0, "max_perplexity_ratio": 1.05, "min_top1": 0.9,
    }.items()}  # fmt: skip
    same = 0.9 * math.log(1.05) / math.log(1.1)
    assert left["max_kl"] == pytest.approx(0.45) and left["min_top1"] == pytest.approx(0.9 * 0.25)
    assert left["max_perplexity"] == pytest.approx(same) and left["max_perplexity_ratio"] == pytest.approx(same)
    assert error_left(Gates(max_kl=0.05, min_top1=0.9), MEASURED) == pytest.approx(0.9 * 0.25)
    assert error_left(Gates(max_perplexity=19.0), MEASURED) == 0  # better than the untouched model
    for lossless in (20.0, 19.5):  # nothing was lost, and the gate asks for more
        assert error_left(Gates(max_perplexity=19.0), {**MEASURED, "perplexity": lossless}) == 0


def test_sizes_are_of_the_largest_artifact_and_read_as_people_write_them() -> None:
    gates = Gates.model_validate_json('{"max_bytes": "1kB"}', strict=True)
    (found,) = judged(gates, {}, [10, 2000])
    assert str(found) == "max_bytes: 2,000 is above 1,000"
    assert judged(gates, {}) == []
    with pytest.raises(ValidationError, match="not a size"):
        Gates.model_validate_json('{"max_bytes": "much"}', strict=True)
