"""Zeros per tensor: the part of all weights, what is tied, KL against even zeros, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from uneven import uneven

from compress.formats import open_checkpoint
from compress.formats.errors import UsageError
from compress.passes.choice.bit_budget import tied_modules
from compress.passes.choice.sensitivity import Trials
from compress.passes.gptq import GPTQ
from compress.passes.prune import Prune
from compress.passes.spread import Spread
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run


@pytest.fixture
def chosen(begin, carry_out):
    """chosen(source, work, spread, *steps) → the run after `spread` has chosen for `steps`."""

    def run_stage(source, work, step, *steps):
        return carry_out(begin(source, work), step, following=steps or (Prune(),))

    return run_stage


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_as_many_weights_stay_and_layers_with_one_input_lose_the_same_part(family, tmp_path, make_model, chosen):
    run = chosen(make_model(tmp_path / family, family), tmp_path / "work", Spread(sparsity=0.6))
    shares = run.left.shares
    assert set(shares) == set(run.skeleton.anatomy.linears)
    for names in tied_modules(run.skeleton.anatomy, frozenset(shares)):
        assert len({shares[name] for name in names}) == 1
    sizes = {name: run.source.spec.tensors[f"{name}.weight"].size for name in shares}
    part = sum(shares[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert 0.6 - 1e-6 <= part < 0.65


def test_kl_is_lower_than_with_as_many_zeros_everywhere(tmp_path, make_model, begin, scores, chosen, carry_out):
    source = uneven(make_model, tmp_path / "model")
    even = carry_out(begin(source, tmp_path / "even"), Prune(sparsity=0.6))
    run = carry_out(chosen(source, tmp_path / "spread", Spread(sparsity=0.6), Prune()), Prune())
    assert len(set(run.left.shares.values())) > 1
    ours, theirs = (scores(each, each.model, each.source).kl_divergence for each in (run, even))
    assert ours < 0.9 * theirs
    for name, share in run.left.shares.items():
        weight = run.model.read(f"{name}.weight")
        assert int((weight == 0).sum()) == pytest.approx(share * weight.numel(), abs=1)
        assert run.model.spec.pruned[name].share == share


def test_a_resumed_stage_measures_nothing_again(tmp_path, tiny_llama, monkeypatch, chosen):
    first = chosen(tiny_llama, tmp_path / "work", Spread(sparsity=0.6)).left.shares
    monkeypatch.setattr(Trials, "measure", lambda self: pytest.fail("measured again"))
    assert chosen(tiny_llama, tmp_path / "work", Spread(sparsity=0.6)).left.shares == first


@pytest.mark.parametrize(("sparsity", "within"), [(0.5, 0.2), (0.9, 0.2), (0.05, 0.5), (0.99, 0.9)])
def test_candidates_are_different_shares_around_the_one_asked_for(sparsity, within):
    shares = Spread(sparsity=sparsity, within=within).shares()
    assert shares[2] == sparsity and list(shares) == sorted(set(shares), reverse=True)
    assert all(0 < share < 1 and abs(share - sparsity) <= within + 1e-9 for share in shares)


def test_nearly_all_may_go(tmp_path, tiny_llama, chosen):
    run = chosen(tiny_llama, tmp_path / "work", Spread(sparsity=0.9))
    assert set(run.left.shares.values()) <= set(Spread(sparsity=0.9).shares())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((GPTQ(),), "the prune right after it makes zero, and there is none"),
        ((Prune(sparsity=0.5),), "prune says its sparsity"),
        ((Prune(pattern="2:4"),), "prune says its pattern"),
    ],
)
def test_what_leaves_nothing_to_choose_is_refused(steps, said, tmp_path, tiny_llama, begin):
    run = begin(tiny_llama, tmp_path / "work")
    with pytest.raises(UsageError, match=said):
        Spread(sparsity=0.5).largest(steps, run.model.spec, run.skeleton.anatomy)


def test_a_recipe_spreads_zeros_and_its_plan_says_the_bytes(tmp_path, tiny_llama, corpus):
    steps = [
        {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}},
        {"spread": {"sparsity": 0.6, "samples": 4}},
        {"prune": {}},
        {"export": {"dialect": "dense"}},
    ]
    recipe = from_data({"model": str(tiny_llama), "passes": steps})
    planned, report = plan(recipe), run(recipe, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    checkpoint = open_checkpoint(Path(report.artifacts[0].path))
    weights = [checkpoint.read(name) for name in checkpoint.spec.tensors if name.endswith("_proj.weight")]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert 0.6 - 1e-3 <= zeros < 0.65
