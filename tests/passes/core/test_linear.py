"""Which linear layers a pass is for: by default all, by pattern, by the end of a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.numbers.int import IntFormat
from compress.passes.core.change import Change
from compress.passes.core.linear import LinearPass
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.gptq import GPTQ
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.config import load_config
from compress.passes.model.skeleton import Skeleton
from compress.passes.rtn import RTN


class Pairs(IntFormat):
    """Integers of which one stands for two columns."""

    span = 2  # type: ignore[assignment]


@pytest.fixture
def anatomy(tiny_llama: Path) -> Anatomy:
    source = open_checkpoint(tiny_llama)
    return Skeleton(load_config(source), source.spec, torch.device("cpu")).anatomy


def test_a_plain_name_means_the_end_of_a_name(anatomy: Anatomy) -> None:
    everything = RTN().targets(anatomy)
    kept = RTN(skip=("q_proj",)).targets(anatomy)
    assert everything - kept == {name for name in everything if name.endswith(".q_proj")} != set()
    assert RTN(skip=("*.q_proj",)).targets(anatomy) == kept
    assert RTN(include=("q_proj",)).targets(anatomy) == everything - kept
    assert RTN(include=("lm_head",)).targets(anatomy) == {"model.embed_tokens"}  # tied
    one = min(everything)
    assert RTN(skip=(one,)).targets(anatomy) == everything - {one}


def test_a_name_that_means_nothing_is_refused_with_the_nearest(anatomy: Anatomy) -> None:
    for options in (RTN(skip=("q_prj",)), RTN(include=("q_prj",))):
        with pytest.raises(UsageError, match="named 'q_prj'; did you mean 'q_proj'"):
            options.targets(anatomy)


def test_codes_that_span_columns_are_refused_by_passes_that_go_column_by_column(
    tiny_llama: Path, anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_checkpoint(tiny_llama).spec
    for kind in (GPTQ, RTN):
        monkeypatch.setattr(kind, "number_format", lambda self, name: Pairs(4, 32))
    with pytest.raises(RefusedError, match=r"gptq chooses codes column by column, and int4 g32 .* for 2 columns"):
        GPTQ().plan(model, anatomy)
    assert RTN().plan(model, anatomy) != model


def test_linears_with_the_same_options_are_solved_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(self: LinearPass, weight: torch.Tensor, *rest: Any) -> Change:
        seen.append(len(weight))
        return LinearPass.rewrite(self, weight, *rest)

    monkeypatch.setattr(RTN, "rewrite", noted)
    weights = {name: torch.randn(8, 32, generator=torch.Generator().manual_seed(1)) for name in ("a", "b", "c")}
    step = RTN.model_validate({"group_size": 32, "bits": [{"match": "c", "value": 8}, {"value": 4}]})
    done = step.siblings(weights, LinearStats(frozenset(), 0, torch.device("cpu")))
    assert seen == [16, 8] and list(done) == ["a", "b", "c"]
