"""What a pass is without saying more: named by its file, changing nothing, depending on its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.effort import Effort
from compress.passes.core.base import LayerPass, ModelPass, Setting
from compress.passes.core.change import Change
from compress.passes.core.outcome import Outcome
from compress.passes.core.report import Reporter
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.model.anatomy import Anatomy

ANATOMY = Anatomy((), "embedding.weight", "embedding.weight", True, lambda: ())
SPEC = ModelSpec({}, {"embedding.weight": TensorSpec((10, 8), "float32")})


class Nothing(ModelPass):
    """Does nothing."""

    size: int = 1

    def model(self, run: Run, stage: Stage) -> Outcome:
        return Outcome()


class Plain(LayerPass):
    """Leaves every weight as it is."""

    def targets(self, anatomy: Anatomy) -> frozenset[str]:
        return frozenset()

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        return {name: Change(weight) for name, weight in weights.items()}


def test_a_pass_is_named_by_its_file_and_is_equal_to_one_of_the_same_options() -> None:
    assert Nothing().name == __name__.rpartition(".")[2]
    assert Nothing(size=2) == Nothing(size=2) != Nothing() and hash(Nothing(size=2)) == hash(Nothing(size=2))
    with pytest.raises(ValidationError):
        Nothing.model_validate({"sise": 2})


def test_one_that_says_no_more_changes_nothing_and_costs_nothing(tmp_path: Path) -> None:
    step = Nothing(size=3)
    assert step.plan(SPEC, ANATOMY) is SPEC and step.settled(SPEC, ANATOMY, lambda note: None) is step
    assert not step.products(SPEC) and step.depends(None) == {"size": 3}
    assert step.cost(Setting(SPEC, ANATOMY, (4, 16), 1 << 30)).effort == Effort()
    assert step.read(None, tmp_path, print) is step.extent() is None  # type: ignore[arg-type]


def test_a_layer_pass_wants_no_data_and_scales_nothing_unless_it_says_so() -> None:
    step = Plain()
    assert not step.needs() and not step.scales() and not step.prepares()
    assert step.with_bits({"a": 4}) is step and step.effort({"a": (8, 8)}) == Effort()
    stats = LinearStats(frozenset(), 8, torch.device("cpu"))
    assert step.input_scale({}, stats, lambda scale: scale) is None


def test_a_reporter_that_nobody_listens_to_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.start("work", 2, "step", done=1)
    reporter.tell("within a step")
    reporter.advance("one", error=0.5)
    reporter.note("a note")
    reporter.finish()
    assert capsys.readouterr() == ("", "")
