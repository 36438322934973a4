"""The key/value cache: scales against what transformers' own cache holds, codes really stored, loss measured."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from compress.formats.errors import CompressError, RefusedError
from compress.kernels.numbers.activations import CacheFormat
from compress.passes.kv_cache import KVCache
from compress.passes.model.cache import cache_argument
from compress.passes.model.whole.quantized_cache import cache_for

TOP = {"int8": 127, "fp8": 448}


def transformers_cache(source, ids):
    """(keys, values) [batch, heads, tokens, width] of every layer, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    cache = DynamicCache()
    with torch.no_grad():
        model(ids, **{cache_argument(model.forward): cache}, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


@pytest.fixture
def calibrated(begin, carry_out):
    return lambda source, work, step: carry_out(begin(source, work), step)


def attention_of(name, family):
    return f"gpt_neox.layers.{name}.attention" if family == "gpt_neox" else f"model.layers.{name}.self_attn"


@pytest.mark.parametrize(
    "family, dtype, per", [("llama", "fp8", "tensor"), ("qwen3", "int8", "head"), ("gpt_neox", "fp8", "head")]
)
def test_scales_are_the_extremes_of_the_real_cache(family, dtype, per, tmp_path, make_model, rows, calibrated):
    source = make_model(tmp_path / family, family)
    step = KVCache(dtype=dtype, per=per)
    run = calibrated(source, tmp_path / "work", step)
    assert run.model.spec.kv_cache == CacheFormat(dtype, per)
    assert run.model.spec == step.plan(run.source.spec, run.skeleton.anatomy)
    for index, states in enumerate(transformers_cache(source, rows.ids)):
        for side, state in zip("kv", states):
            scale = run.model.read(f"{attention_of(index, family)}.{side}_scale")
            peak = state.abs().amax((0, 2, 3)) if per == "head" else state.abs().max().reshape(1)
            torch.testing.assert_close(scale, peak / TOP[dtype], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype, per", [("int8", "head"), ("fp8", "token")])
def test_the_measured_loss_is_that_of_generating_with_the_codes(
    dtype, per, tmp_path, tiny_llama, begin, scores, rows, carry_out
):
    """Token by token through transformers with the stored codes: the same KL as the evaluation's one forward."""
    run = begin(tiny_llama, tmp_path / "work")
    if per != "token":
        carry_out(run, KVCache(dtype=dtype, per=per))
    run.model.spec = cached_spec(run.model.spec, CacheFormat(dtype, per))
    measured = scores(run, run.model, run.source).kl_divergence
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    cache = cache_for(model, run.model, None)
    plain = DynamicCache()
    divergences = []
    with torch.no_grad():
        for position in range(rows.length - 1):
            token = rows.ids[:, position : position + 1]
            log_p = model(token, **{cache_argument(model.forward): cache}, use_cache=True).logits[:, -1].log_softmax(-1)
            log_q = model(token, **{cache_argument(model.forward): plain}, use_cache=True).logits[:, -1].log_softmax(-1)
            divergences.append((log_q.exp() * (log_q - log_p)).sum(-1).mean())
    assert measured == pytest.approx(float(torch.stack(divergences).mean()), rel=0.02)
    assert 1e-7 < measured < 0.02


def cached_spec(spec, number_format):
    from dataclasses import replace

    return replace(spec, kv_cache=number_format)


def test_generate_goes_by_the_cache_of_the_checkpoint(tmp_path, tiny_llama, calibrated):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    run = calibrated(tiny_llama, tmp_path / "work", KVCache(per="head"))
    assert cache_for(model, run.source, None) is None
    cache = cache_for(model, run.model, None)
    assert cache.layers[1].codecs[0].scale.shape == (2,)
    assert cache_for(model, run.model, "int8").layers[1].codecs[0].scale is None


def test_a_resumed_calibration_gives_the_same_scales(tmp_path, tiny_llama, calibrated):
    first = calibrated(tiny_llama, tmp_path / "work", KVCache())
    name = "model.layers.1.self_attn.v_scale"
    scale = first.model.read(name)
    again = calibrated(tiny_llama, tmp_path / "work", KVCache())
    assert torch.equal(again.model.read(name), scale)
    assert len(again.journal.records) == 2


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_scales_that_were_not_measured_are_an_error(value, tmp_path, tiny_llama, begin, monkeypatch, carry_out):
    run = begin(tiny_llama, tmp_path / "work")
    read = run.model.read

    def spoiled(name):
        return torch.full_like(read(name), value) if name == "model.layers.1.self_attn.k_proj.weight" else read(name)

    monkeypatch.setattr(run.model, "read", spoiled)
    with pytest.raises(CompressError, match=r"model\.layers\.1\.self_attn\.k_scale came out"):
        carry_out(run, KVCache())


def test_a_model_without_a_cache_is_refused(tmp_path, tiny_llama, begin):
    from dataclasses import replace

    run = begin(tiny_llama, tmp_path / "work")
    with pytest.raises(RefusedError, match="no layer keeps keys"):
        KVCache().plan(run.model.spec, replace(run.skeleton.anatomy, attentions=lambda: (None, None)))
