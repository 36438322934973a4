"""Calibration as a pass: it leaves the sequences to go by, the same ones whenever it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.kernels.effort import Effort
from compress.passes.calibrate import Calibrate
from compress.passes.core.base import Setting
from compress.passes.core.run import Run
from compress.passes.core.sample import Sampled
from compress.passes.forward.cost.base import RUNTIME


def test_the_text_is_there_before_anything_is_computed(
    corpus: Path, tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    step = Calibrate(data=str(corpus), samples=3, seq_len=16)
    expected = step.read(open_checkpoint(tiny_llama), tmp_path, print)
    run = carry_out(begin(tiny_llama, tmp_path / "work"), step)
    assert expected is not None and run.left.calibration is not None
    assert torch.equal(run.left.calibration.ids, expected.ids)
    assert run.left.manifest == {"calibration": {"sha256": expected.sha256(), "tokens": 48}}
    assert step.depends(expected) == {"tokens": expected.sha256()}  # not the file's name
    with pytest.raises(InputError, match="not there"):
        Calibrate(data=str(tmp_path / "none.txt")).read(open_checkpoint(tiny_llama), tmp_path, print)


def test_text_of_the_models_own_is_sampled_once_and_by_the_seed(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    step, found = Calibrate(data="self", samples=4, seq_len=16), []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2), ("a", 1)):  # the last one goes on
        run = begin(tiny_llama, tmp_path / folder)
        run.seed = seed
        carry_out(run, step)
        assert run.left.calibration is not None and run.left.calibration.tokens == 64
        assert len(run.journal.of(Sampled)) == 1
        found.append(run.left.calibration.sha256())
    assert found[0] == found[1] == found[3] != found[2]


def test_only_text_that_the_model_makes_up_takes_long(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]
) -> None:
    """And the whole model in memory."""
    run = begin(tiny_llama, tmp_path / "work")
    given = run.model.spec, run.skeleton.anatomy, (0, 0), 1 << 40
    few, many = (Calibrate(data="self", samples=samples).cost(Setting(*given)) for samples in (16, 64))
    blend = Calibrate(data=[{"path": "builtin", "weight": 3}, {"path": "self"}], samples=64).cost(Setting(*given))
    read = Calibrate().cost(Setting(*given))
    assert read.effort == Effort() and few.effort * 4 == many.effort and blend.effort == few.effort
    assert read.memory == RUNTIME  # no weight is read, not even the embedding
    assert many.memory - read.memory >= 4 * run.model.spec.parameters
