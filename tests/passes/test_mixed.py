"""Bits per tensor: the choice against brute force, the budget, what is tied, KL against even bits, resuming."""

from __future__ import annotations

from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from uneven import uneven

from compress.formats.errors import RefusedError, UsageError
from compress.passes.choice.bit_budget import tied_modules
from compress.passes.choice.sensitivity import Checked
from compress.passes.core.base import Setting
from compress.passes.gptq import GPTQ
from compress.passes.int8 import INT8
from compress.passes.mixed import Mixed
from compress.passes.rtn import RTN

STEP = RTN(group_size=32)


@pytest.fixture
def chosen(begin, carry_out):
    """chosen(source, work, mixed, *steps) → the run after `mixed` has chosen for `steps`."""

    def run_stage(source, work, mixed, *steps):
        return carry_out(begin(source, work), mixed, following=steps or (STEP,))

    return run_stage


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_budget_is_met_and_joined_layers_are_equal(family, tmp_path, make_model, chosen):
    run = chosen(make_model(tmp_path / family, family), tmp_path / "work", Mixed(average_bits=4))
    assert set(run.left.bits) == set(run.skeleton.anatomy.linears)
    for names in tied_modules(run.skeleton.anatomy, frozenset(run.left.bits)):
        assert len({run.left.bits[name] for name in names}) == 1
    sizes = {name: run.source.spec.tensors[f"{name}.weight"].size for name in run.left.bits}
    spent = sum((run.left.bits[name] + 16 / 32) * size for name, size in sizes.items()) / sum(sizes.values())
    step = max(map(sum, ([sizes[n] for n in names] for names in tied_modules(run.skeleton.anatomy, sizes))))
    assert 4 - 4 * step / sum(sizes.values()) < spent <= 4
    assert run.left.manifest["mixed"]["average_bits"] == pytest.approx(spent)


@pytest.mark.parametrize("step", [RTN(group_size=32), GPTQ(group_size=32)])
def test_kl_is_lower_than_at_even_bits(step, tmp_path, make_model, begin, scores, chosen, carry_out):
    source = uneven(make_model, tmp_path / "model")
    even = begin(source, tmp_path / "even")
    carry_out(even, step.with_bits(dict.fromkeys(even.skeleton.anatomy.linears, 4)))
    run = chosen(source, tmp_path / "mixed", Mixed(average_bits=4.5, bits=(3, 4, 5, 6)), step)
    carry_out(run, step)
    assert run.left.manifest["mixed"]["average_bits"] <= 4.5
    assert len(set(run.left.bits.values())) > 1
    ours, theirs = (scores(each, each.model, each.source).kl_divergence for each in (run, even))
    assert ours < 0.9 * theirs


def test_types_of_gguf_are_chosen_by_what_they_cost(tmp_path, make_model, begin, scores, chosen, carry_out):
    """What attention gives is next to nothing here: it gets the least, and what that saves goes elsewhere."""
    source, step = make_model(tmp_path / "model", "llama", layers=1), RTN()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"] *= 0.01
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    even = begin(source, tmp_path / "even")
    carry_out(even, RTN(format="q5_0"))
    sizes = {"q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "q8_0": 8.5}
    run = chosen(source, tmp_path / "mixed", Mixed(average_bits=5.5, formats=tuple(sizes)), step)
    found = run.left.manifest["mixed"]
    assert found["average_bits"] <= 5.5 and found["compared"].startswith("at the 5.500 bits per weight of Q5_0 KL is")
    attention, others = (
        [sizes[kind] for name, kind in run.left.bits.items() if ("attn" in name) == at] for at in (1, 0)
    )
    assert sum(attention) / 4 < 5 and min(others) >= 5.5
    carry_out(run, step)
    assert {spec.format for spec in run.model.spec.tensors.values() if spec.format} == {
        RTN(format=kind).number_format("") for kind in set(run.left.bits.values())
    }
    ours, theirs = (scores(each, each.model, each.source).kl_divergence for each in (run, even))
    assert ours == pytest.approx(found["kl_divergence"], rel=1e-6) and ours < 0.9 * theirs


def test_rtn_trials_are_the_model_that_comes_out(tmp_path, tiny_llama, scores, chosen, carry_out):
    """Round-to-nearest does not depend on what came before, so the KL of the trials is the KL of the result."""
    run = chosen(tiny_llama, tmp_path / "work", Mixed(average_bits=4.1))
    carry_out(run, STEP)
    measured = scores(run, run.model, run.source).kl_divergence
    assert run.left.manifest["mixed"]["kl_divergence"] == pytest.approx(measured, rel=1e-6)
    assert {run.model.spec.tensors[f"{name}.weight"].format.bits for name in run.left.bits} == set(
        run.left.bits.values()
    )
    assert not list((tmp_path / "work").rglob("trials-*"))


def test_the_fewest_bits_within_a_gate(tmp_path, tiny_llama, scores, chosen):
    gate = 0.05
    run = chosen(tiny_llama, tmp_path / "work", Mixed(max_kl=gate))
    found = run.left.manifest["mixed"]
    tried = [record.divergence for record in run.journal.of(Checked)]
    assert found["kl_divergence"] <= gate and found["kl_divergence"] in tried and len(tried) <= 9 + 13
    assert max(tried) > gate  # a smaller budget was tried, and missed it
    fewer = chosen(tiny_llama, tmp_path / "fewer", Mixed(average_bits=found["average_bits"] - 0.2))
    assert fewer.left.manifest["mixed"]["kl_divergence"] > gate


def test_a_gate_out_of_reach_is_refused(tmp_path, tiny_llama, chosen):
    with pytest.raises(RefusedError, match="all the bits allowed give a KL divergence of"):
        chosen(tiny_llama, tmp_path / "work", Mixed(max_kl=1e-9, bits=(2, 3)))


def test_a_resumed_stage_measures_nothing_again(tmp_path, tiny_llama, monkeypatch, chosen):
    first = chosen(tiny_llama, tmp_path / "work", Mixed(average_bits=4))
    lines = len(first.journal.records)
    monkeypatch.setattr(RTN, "siblings", lambda *_: pytest.fail("measured again"))
    again = chosen(tiny_llama, tmp_path / "work", Mixed(average_bits=4))
    assert again.left.bits == first.left.bits and len(again.journal.records) == lines


def test_bits_that_the_pass_says_are_kept(tmp_path, tiny_llama, chosen, carry_out):
    step = STEP.model_validate({"group_size": 32, "bits": [{"match": "*.down_proj", "value": 8}]})
    run = chosen(tiny_llama, tmp_path / "work", Mixed(average_bits=4), step)
    assert not any(name.endswith("down_proj") for name in run.left.bits)
    carry_out(run, step)
    assert run.model.spec.tensors["model.layers.0.mlp.down_proj.weight"].format.bits == 8
    with pytest.raises(UsageError, match="leaves no bits"):
        chosen(
            tiny_llama,
            tmp_path / "none",
            Mixed(average_bits=4),
            STEP.model_validate({"bits": [{"match": "*", "value": 4}]}),
        )


def test_experts_without_a_token_do_not_decide(tmp_path, make_model, begin, carry_out):
    run = begin(make_model(tmp_path / "moe", "qwen3_moe"), tmp_path / "work")
    few = run.left.calibration.batch(0, 1)
    run.left = replace(run.left, calibration=replace(few, ids=few.ids[:, :2]))
    carry_out(run, Mixed(average_bits=4), following=(STEP,))
    assert all(
        len({run.left.bits[n] for n in names}) == 1 for names in tied_modules(run.skeleton.anatomy, run.left.bits)
    )


@pytest.mark.parametrize(
    "mixed, steps, error, what",
    [
        (Mixed(average_bits=2.4), (STEP,), RefusedError, "2 bits everywhere already take 2.500"),
        (Mixed(average_bits=4), (), UsageError, "none there takes bits"),
        (Mixed(average_bits=4), (INT8(),), UsageError, "none there takes bits"),
        (Mixed(average_bits=4), (GPTQ(format="nf4"),), UsageError, "not to have an integer grid"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_the_plan(mixed, steps, error, what, tmp_path, tiny_llama, begin):
    run = begin(tiny_llama, tmp_path / "work")
    with pytest.raises(error, match=what):
        mixed.largest(steps, run.source.spec, run.skeleton.anatomy)


@pytest.mark.parametrize(
    "options",
    [{}, {"average_bits": 4, "bits": [4, 3]}, {"max_kl": 0}, {"max_kl": 1, "bits": [4]}, {"max_bytes": "1MB"}],
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"average_bits|ascend|greater|at least 2|name the candidates"):
        Mixed(**options)


def test_trials_of_every_candidate_and_checks_have_a_cost(tiny_llama, tmp_path, begin):
    run = begin(tiny_llama, tmp_path / "work")
    given = run.model.spec, run.skeleton.anatomy, (6, 24), 1 << 40

    def effort(mixed, step):
        return mixed.cost(Setting(*given, (step,))).effort

    few, solver = Mixed(average_bits=4, bits=(4, 8)), GPTQ(group_size=32)
    two, three, four = (
        effort(Mixed(average_bits=4, bits=bits), solver).calls for bits in ((4, 8), (3, 4, 8), (2, 3, 4, 8))
    )
    assert four - three == pytest.approx(three - two) and two < three
    assert effort(few, solver).calls > effort(few, STEP).calls
    assert effort(few, GPTQ(group_size=32, tune=True)).calls > effort(few, solver).calls
    one, six = (effort(Mixed(average_bits=4, bits=(4, 8), samples=count), STEP) for count in (1, 6))
    assert one.flops < six.flops
