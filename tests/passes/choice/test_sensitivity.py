"""What each number of bits costs a linear: errors over output energy, tried on the untouched inputs, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.passes.choice.bit_budget import Unit
from compress.passes.choice.sensitivity import Checked, Trials
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.rtn import RTN

NO_STATS = LinearStats(frozenset(), 0, torch.device("cpu"))
STEP = RTN(group_size=32)
BITS = (2, 4, 8)


@pytest.fixture
def trials(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> Trials:
    run = begin(tiny_llama, tmp_path / "work")
    modules = frozenset(run.skeleton.anatomy.linears)
    steps = {bits: STEP.with_bits(dict.fromkeys(modules, bits)) for bits in BITS}
    found = Trials(run, Stage((), {}, run.work), steps, modules)
    with torch.no_grad():
        found.measure()
    return found


def units(trials: Trials) -> list[Unit]:
    return [Unit((name,), 1, BITS) for name in sorted(trials.modules)]


def test_more_bits_err_less_everywhere(trials: Trials) -> None:
    errors = trials.errors(units(trials))
    assert errors.shape == (len(trials.modules), len(BITS))
    assert bool((errors[:, :-1] > errors[:, 1:]).all()) and bool((errors[:, -1] > 0).all())


def test_an_error_is_that_of_the_output_over_its_energy(trials: Trials) -> None:
    """The first layer's q sees what the embedding and its norm give, whatever comes after."""
    run, name = trials.run, "model.layers.0.self_attn.q_proj"
    weight = run.model.read(f"{name}.weight")
    sequences = run.left.calibration
    assert isinstance(weight, torch.Tensor) and sequences is not None
    embedding, norm = (run.model.read(f"model.{end}.weight") for end in ("embed_tokens", "layers.0.input_layernorm"))
    assert isinstance(embedding, torch.Tensor) and isinstance(norm, torch.Tensor)
    hidden = embedding[sequences.ids.flatten()]
    x = hidden * (hidden.square().mean(-1, keepdim=True) + run.source.spec.config["rms_norm_eps"]).rsqrt() * norm
    number_format = STEP.with_bits({name: 4}).number_format(name)
    assert number_format is not None
    codes = STEP.with_bits({name: 4}).siblings({name: weight}, NO_STATS)[name].values
    expected = ((weight - codes) @ x.T).square().sum() / (weight @ x.T).square().sum()
    found = trials.errors([Unit((name,), 1, BITS)])[0, 1]
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_a_check_is_measured_once(trials: Trials) -> None:
    chosen = dict.fromkeys(trials.modules, 2)
    with torch.no_grad():
        first = trials.divergence(0, chosen, 2)
        assert first > 0 and trials.divergence(0, {}, 2) == first  # it is known by its number
        assert trials.divergence(1, dict.fromkeys(trials.modules, 8), 2) < first
    assert [record.number for record in trials.run.journal.of(Checked)] == [0, 1]
    trials.clear()
    assert not trials.stage.folder.exists()
