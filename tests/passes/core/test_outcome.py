"""What stages leave adds up; where two speak of one thing, the later one holds."""

from __future__ import annotations

import torch

from compress.passes.core.outcome import Outcome
from compress.passes.forward.scores import Scores
from compress.passes.model.sequences import Sequences

ROWS = Sequences(torch.zeros(1, 2, dtype=torch.int64))


def test_what_a_later_stage_does_not_speak_of_stays() -> None:
    first = Outcome(calibration=ROWS, bits={"a": 4}, scores=Scores(1, 2.0), authors={"a": "awq"})
    both = first.then(Outcome())
    assert both == first and both.calibration is ROWS


def test_the_later_one_holds() -> None:
    first = Outcome(bits={"a": 4}, authors={"a": "awq", "b": "awq"}, manifest={"x": 1}, reports={"a": {"bits": 4.0}})
    later = Outcome(bits={}, scores=Scores(1, 3.0), authors={"a": "gptq"}, manifest={"y": 2})
    both = first.then(later)
    assert both.bits == {} and both.scores == Scores(1, 3.0)
    assert both.authors == {"a": "gptq", "b": "awq"}
    assert both.manifest == {"x": 1, "y": 2} and both.reports == {"a": {"bits": 4.0}}


def test_what_was_said_of_tensors_goes_by_their_new_names() -> None:
    first = Outcome(
        bits={"l.0": 4, "l.2": 3}, authors={"l.2.weight": "awq", "x": "awq"}, reports={"l.2": {"bits": 3.0}}
    )
    both = first.then(Outcome(called={"l.1.weight": "l.2.weight", "x": "x"}, authors={"l.1.weight": "awq + shrink"}))
    assert both.bits == {"l.1": 3} and both.reports == {"l.1": {"bits": 3.0}}
    assert both.authors == {"l.1.weight": "awq + shrink", "x": "awq"} and both.called is None
