"""Fewer heads of keys: nothing lost where nothing need be, files as planned, killed and resumed to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_after_each_commit
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from compress.formats.errors import RefusedError
from compress.kernels.numbers.activations import CacheFormat
from compress.kernels.solve.align import How
from compress.passes.core.run import Run
from compress.passes.gqa import GQA
from compress.passes.model.sequences import Sequences
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

EVALUATE = {"evaluate": {"data": "builtin", "samples": 4, "seq_len": 32}}
DENSE32 = {"export": {"dialect": "dense", "dtype": "float32"}}
SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip


def llama(**options: Any) -> PreTrainedConfig:
    return LlamaConfig(**{**SIZES, **options})


def logits(model: Path | torch.nn.Module, rows: Sequences) -> Tensor:
    """What transformers gives for `rows`."""
    if isinstance(model, Path):
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        found: Tensor = model(rows.ids, use_cache=False).logits
    return found


def rotation(seed: int, size: int) -> Tensor:
    turned: Tensor = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]
    return turned


def complex_turn(seed: int, size: int, rotary: int, pairs: bool) -> Tensor:
    """[size, size]: of the first `rotary` entries the halves turn with each other; any rotation of the others."""
    turn = torch.zeros(size, size)
    turn[rotary:, rotary:] = rotation(seed, size - rotary)
    half = rotary // 2
    angles = torch.randn(half, generator=torch.Generator().manual_seed(seed)) if pairs else torch.zeros(half)
    at = torch.arange(half)
    turn[at, at] = turn[at + half, at + half] = angles.cos()
    turn[at, at + half], turn[at + half, at] = -angles.sin(), angles.sin()
    return turn


def make_alike(path: Path, turn: Callable[[int, int], Tensor] | None, group: int, size: int = 8) -> None:
    """Heads of keys and values of a model become those that are first in their group, turned if `turn` says how.

    `turn` gives the rotation of a layer's and a head's keys.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        for linear in (attention.k_proj, attention.v_proj):
            for whole in linear.parameters():
                heads = whole.data.view(-1, size, *whole.shape[1:])
                for head in range(len(heads)):
                    first = heads[head // group * group]
                    if turn is not None:
                        turned = turn(number, head) if linear is attention.k_proj else rotation(50 + head, size)
                        first = turned @ first
                    heads[head] = first
    model.save_pretrained(path)


ALIKE: dict[str, tuple[PreTrainedConfig, int, int, bool]] = {
    # configuration, size of a head, how many of its entries positions turn, whether turns survive what follows
    "halves": (llama(), 8, 8, True),
    "MHA": (llama(num_key_value_heads=8), 8, 8, True),
    "biases": (Qwen2Config(**SIZES), 8, 8, True),
    "all biases": (llama(attention_bias=True), 8, 8, True),
    "a part of a head": (
        StableLmConfig(**SIZES, use_qkv_bias=True, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        8, 4, True,
    ),
    "no positions": (SmolLM3Config(**SIZES, no_rope_layers=[0, 0]), 8, 0, True),
    "a norm": (Qwen3Config(**SIZES, head_dim=16), 16, 16, False),
}  # fmt: skip


@pytest.mark.parametrize(("how", "repair"), [("aligned", False), ("shared", True)])
@pytest.mark.parametrize("case", ALIKE)
def test_heads_that_are_turns_of_one_another_are_merged_without_loss(
    tmp_path: Path, make_model: Callable[..., Path], rows: Sequences, begin: Callable[..., Run],
    carry_out: Callable[..., Run], case: str, how: How, repair: bool,
) -> None:  # fmt: skip
    config, size, rotary, turns = ALIKE[case]
    model = make_model(tmp_path / "model", case, config=config)
    make_alike(model, lambda layer, head: complex_turn(10 * layer + head, size, rotary, turns), 2, size)
    whole = logits(model, rows)
    step = GQA(kv_heads=config.num_key_value_heads // 2, merge=how, repair=repair)
    done = carry_out(begin(model, tmp_path / "work"), step)
    assert done.model.spec == step.plan(done.source.spec, done.skeleton.anatomy)
    torch.testing.assert_close(logits(written(done, model, tmp_path / "dense"), rows), whole, rtol=1e-4, atol=1e-4)
    errors = [report["relative_error"] for report in done.left.reports.values()]
    assert len(errors) == 4 and max(map(float, errors)) < 1e-6
    if how == "aligned":
        pooled = carry_out(begin(model, tmp_path / "pooled"), step.model_copy(update={"merge": "mean"}))
        found = logits(written(pooled, model, tmp_path / "mean"), rows)
        assert (found - whole).norm() > 0.1 * whole.norm()


def test_heads_find_those_that_they_are_like(
    tmp_path: Path, make_model: Callable[..., Path], rows: Sequences, begin: Callable[..., Run],
    carry_out: Callable[..., Run],
) -> None:  # fmt: skip
    """Turns of one another are heads 0 and 2, 1 and 3: no neighbours."""
    source = make_model(tmp_path / "model", "llama", config=llama())
    make_alike(source, lambda layer, head: complex_turn(10 * layer + head, 8, 8, True), 2)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for layer in model.model.layers:
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight.data = linear.weight.unflatten(0, (4, -1))[[0, 2, 1, 3]].flatten(0, 1)
    model.save_pretrained(source)
    done = carry_out(begin(source, tmp_path / "work"), GQA(kv_heads=2, repair=False))
    found = logits(written(done, source, tmp_path / "dense"), rows)
    torch.testing.assert_close(found, logits(source, rows), rtol=1e-4, atol=1e-4)


def written(run: Run, source: Path, folder: Path) -> torch.nn.Module:
    """transformers' model of what a run has made of `source`, from its configuration and its tensors."""
    config = AutoModelForCausalLM.from_pretrained(source).config
    config.num_key_value_heads = run.model.spec.config["num_key_value_heads"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = {name: run.model.read(name) for name in run.model.spec.tensors}
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    return model


@pytest.mark.parametrize("how", ["mean", "aligned", "shared"])
def test_heads_that_are_the_same_keep_every_bit(
    tmp_path: Path, make_model: Callable[..., Path], begin: Callable[..., Run], carry_out: Callable[..., Run], how: How
) -> None:
    model = make_model(tmp_path / "model", "MHA", config=llama(num_key_value_heads=8, attention_bias=True))
    make_alike(model, None, 4)
    done = carry_out(begin(model, tmp_path / "work"), GQA(kv_heads=2, merge=how, repair=False))
    for name in done.source.spec.tensors:
        before, after = done.source.read(name), done.model.read(name)
        assert isinstance(before, Tensor) and isinstance(after, Tensor)
        if "k_proj" in name or "v_proj" in name:
            before = before.unflatten(0, (2, 4, 8))[:, 0].flatten(0, 1)
        assert torch.equal(before, after)


@pytest.fixture
def recipe(tmp_path: Path, make_model: Callable[..., Path], corpus: Path) -> Callable[..., Recipe]:
    """recipe(options of gqa, *after) for a model of 8 heads on 4 of keys, as wide as containers want them."""
    model = make_model(tmp_path / "model", "llama", config=llama(head_dim=32))
    calibrate = {"calibrate": {"data": str(corpus), "samples": 16, "seq_len": 32}}

    def build(options: dict[str, Any], *after: dict[str, Any], before: tuple[dict[str, Any], ...] = ()) -> Recipe:
        return from_data({"model": str(model), "passes": [calibrate, *before, {"gqa": options}, *after]})

    return build


@pytest.mark.parametrize("kept", [2, 1])
def test_the_model_is_as_planned_and_transformers_gives_our_logits(
    tmp_path: Path, recipe: Callable[..., Recipe], rows: Sequences, kept: int
) -> None:
    made = recipe({"kv_heads": kept}, EVALUATE, DENSE32, {"export": {"dialect": "gguf", "type": "f32"}})
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    dense = tmp_path / "out" / "dense"
    assert json.loads((dense / "config.json").read_text())["num_key_value_heads"] == kept
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    assert {tuple(layer.self_attn.v_proj.weight.shape) for layer in model.model.layers} == {(32 * kept, 64)}
    assert report.metrics.kl_divergence is not None and report.metrics.kl_divergence > 0
    manifest = json.loads((dense / "compress.json").read_text())
    assert manifest["gqa"] == {"kv_heads": kept, "kv_heads_before": 4}
    assert 0 < manifest["tensors"]["model.layers.1.self_attn.v_proj"]["relative_error"] < 1
    said = f"the cache takes {kept * 256:,} bytes a token in 16 bits, {kept} of 4 heads; it took 1,024"
    assert planned.stages[1].notes == [f"gqa: {said}"] and said in str(report.notes)


def test_the_cache_shrinks_by_the_ratio(tmp_path: Path, recipe: Callable[..., Recipe], rows: Sequences) -> None:
    run(recipe({"kv_heads": 1}, DENSE32), tmp_path / "out")
    taken = []
    for path in (tmp_path / "model", tmp_path / "out" / "dense"):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        layers = model(rows.ids, use_cache=True).past_key_values.layers
        taken.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) // rows.ids.numel())
    assert taken == [1024, 256]


def lost(recipe: Callable[..., Recipe], output: Path, data: Path, options: dict[str, Any]) -> float:
    """The KL divergence on text of the calibration's kind."""
    measure = {"evaluate": {"data": str(data), "samples": 16, "seq_len": 32}}
    found = run(recipe({"kv_heads": 2, **options}, measure, DENSE32), output).metrics.kl_divergence
    assert found is not None
    return found


def test_aligned_heads_lose_less_shared_ones_least_and_repair_helps(
    tmp_path: Path, recipe: Callable[..., Recipe], held_out: Path
) -> None:
    mean, aligned, shared = (
        lost(recipe, tmp_path / how, held_out, {"merge": how, "repair": False}) for how in ("mean", "aligned", "shared")
    )
    assert shared < aligned < mean
    assert lost(recipe, tmp_path / "repaired", held_out, {}) < shared


def test_the_repair_is_the_least_squares_of_the_untouched_outputs(
    tmp_path: Path, make_model: Callable[..., Path], rows: Sequences, begin: Callable[..., Run],
    carry_out: Callable[..., Run],
) -> None:  # fmt: skip
    """Layer 0: inputs of the output's linear by transformers, before and after; the solution in fp64."""
    source = make_model(tmp_path / "model", "llama", config=llama())
    bare, repaired = (
        written(carry_out(begin(source, tmp_path / str(on)), GQA(kv_heads=1, repair=on)), source, tmp_path)
        for on in (False, True)
    )
    whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    seen: list[Tensor] = []
    for model in (whole, bare):
        output = model.model.layers[0].self_attn.o_proj
        output.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).double()))
        logits(model, rows)
    turned, found = (model.model.layers[0].self_attn.o_proj.weight.double() for model in (bare, repaired))
    wanted = seen[0] @ whole.model.layers[0].self_attn.o_proj.weight.double().T
    hessian = seen[1].T @ seen[1]
    ridge = 0.1 * hessian.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    solved = torch.linalg.solve(hessian + ridge, seen[1].T @ wanted + ridge @ turned.T).T
    torch.testing.assert_close(found, solved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("repair", [False, True])
def test_little_memory_gives_the_same(
    tmp_path: Path, make_model: Callable[..., Path], begin: Callable[..., Run], carry_out: Callable[..., Run],
    repair: bool,
) -> None:  # fmt: skip
    """Where batches cannot be held, statistics are gathered apart: those of the output still after heads are merged."""
    source = make_model(tmp_path / "model", "llama", config=llama())
    step = GQA(kv_heads=1, repair=repair)
    held, apart = (carry_out(begin(source, tmp_path / str(ram), ram), step).model for ram in (1 << 34, 1 << 10))
    for name in held.spec.tensors:
        torch.testing.assert_close(apart.read(name), held.read(name), rtol=1e-4, atol=1e-4)


def test_every_later_pass_works_on_it(tmp_path: Path, recipe: Callable[..., Recipe], rows: Sequences) -> None:
    quantize = {"gptq": {"group_size": 32, "correct": True}}
    exports = ({"export": {"dialect": "gptq"}}, {"export": {"dialect": "gguf", "type": "q8_0"}}, DENSE32)
    again = ({"gqa": {"kv_heads": 1}}, {"shrink": {"ffn": 64, "multiple": 32}})
    cache = ({"kv_cache": {"per": "head"}}, {"export": {"dialect": "compressed-tensors"}})
    made = recipe({"kv_heads": 2}, *again, quantize, EVALUATE, *cache)
    planned, report = plan(made), run(made, tmp_path / "quantized")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    made = recipe({"kv_heads": 2}, quantize, *exports)
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    assert all(artifact.verification for artifact in report.artifacts)  # reopened, their logits are those in memory


def test_distill_heals_it(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    """The teacher keeps its heads."""
    learn = {"data": "builtin", "samples": 24, "seq_len": 32, "steps": 24, "batch": 4, "held_out": 4, "lr": 1e-3}
    run(recipe({"kv_heads": 1}, {"distill": {**learn, "precision": "fp32"}}, DENSE32), tmp_path / "out")
    (trained,) = json.loads((tmp_path / "out" / "dense" / "compress.json").read_text())["training"]
    assert dict(trained["measured"])[trained["best"]] < 0.9 * dict(trained["measured"])[0]


def test_killed_after_any_commit_a_run_ends_with_the_same_bytes(
    tmp_path: Path, make_model: Callable[..., Path], corpus: Path
) -> None:
    model = make_model(tmp_path / "model", "llama", config=llama(head_dim=32))
    passes = [
        {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}},
        {"gqa": {"kv_heads": 1}},
        {"gptq": {"group_size": 32}},
        {"export": {"dialect": "gptq"}},
    ]
    killed_after_each_commit({"model": str(model), "passes": passes}, tmp_path, step=2)
    killed = sorted(tmp_path.glob("killed-*/gptq/*.safetensors"))
    assert len(killed) >= 3
    assert {path.read_bytes() for path in killed} == {(tmp_path / "whole/gptq/model.safetensors").read_bytes()}


REFUSED: dict[str, tuple[int, tuple[dict[str, Any], ...], str, str]] = {
    "does not divide": (3, (), "have 4 heads.* cannot become 3", "say kv_heads: 1 or 2"),
    "as many": (4, (), "cannot become 4", "1 or 2"),
    "more": (8, (), "cannot become 8", "1 or 2"),
    "MQA": (1, ({"gqa": {"kv_heads": 1}},), "have 1 heads", "leave gqa out"),
    "pruned": (2, ({"prune": {"sparsity": 0.5}},), "was pruned", "gqa before prune"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_the_plan(recipe: Callable[..., Recipe], case: str) -> None:
    kept, before, message, hint = REFUSED[case]
    with pytest.raises(RefusedError, match=message) as refused:
        plan(recipe({"kv_heads": kept}, DENSE32, before=before))
    assert hint in str(refused.value.hint)


def test_what_is_quantized_is_not_merged(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RefusedError, match="is quantized"):
        plan(recipe({"kv_heads": 2}, DENSE32, before=({"rtn": {}},)))


def test_a_calibrated_cache_is_not_merged(tmp_path: Path, tiny_llama: Path, begin: Callable[..., Run]) -> None:
    opened = begin(tiny_llama, tmp_path / "work")
    spec = replace(opened.source.spec, kv_cache=CacheFormat("fp8", "tensor"))
    with pytest.raises(RefusedError, match="cache was calibrated"):
        GQA(kv_heads=1).plan(spec, opened.skeleton.anatomy)


def test_keys_that_a_norm_follows_are_pooled_and_the_plan_says_so(
    tmp_path: Path, make_model: Callable[..., Path], corpus: Path
) -> None:
    model = make_model(tmp_path / "model", "qwen3")
    passes = [{"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}, {"gqa": {"kv_heads": 1}}, DENSE32]
    assert (
        "keys of 2 layers are pooled as they are"
        in plan(from_data({"model": str(model), "passes": passes})).stages[1].notes[1]
    )


def test_a_plan_counts_the_repair(recipe: Callable[..., Recipe]) -> None:
    quick, slow = (plan(recipe({"kv_heads": 1, "repair": on}, DENSE32)).stages[1] for on in (False, True))
    assert slow.seconds > quick.seconds and slow.forwards == 1
