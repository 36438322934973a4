"""Adapters: peft's forward, gradients and merge; what is written of quantized weights; what stays; kills; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.formats import open_checkpoint
from compress.formats.errors import UsageError
from compress.formats.files.native import NativeFile
from compress.kernels.qtensor import QTensor, quantize
from compress.passes.core.run import Run
from compress.passes.model.names import tensor_names
from compress.passes.mxfp4 import MXFP4
from compress.passes.nf4 import NF4
from compress.passes.prune import Prune
from compress.passes.qat import QAT
from compress.passes.rtn import RTN
from compress.passes.train import adapters
from compress.passes.train.adapters import targeted
from compress.passes.train.options import LoraOptions, TrainOptions
from compress.passes.train.quantized import within_cells
from compress.passes.train.student import Student
from compress.recipes.recipe import from_data
from compress.recipes.run import run as run_recipe

peft = pytest.importorskip("peft", reason="peft is not installed: pip install compress-llm[dev]")

IDS = torch.randint(0, 320, (2, 9), generator=torch.Generator().manual_seed(4))
Begin = Callable[..., Run]
KilledAt = Callable[[int], AbstractContextManager[None]]
Swept = Callable[..., Run]


def options(**lora: Any) -> TrainOptions:
    return TrainOptions(train="lora", lora=LoraOptions(rank=4, alpha=6.0, **lora))


def moved(student: Student) -> Student:
    """As if its adapters had learned."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in student.adapters.values():
            adapter.b.copy_(torch.randn(adapter.b.shape, generator=generator) * 0.05)
    return student


def loss(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=IDS, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].mT, IDS[:, 1:])


def by_peft(source: Path, student: Student) -> Any:
    """The same model with the same adapters, as peft makes it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    targets = [name.removesuffix(".weight") for name in student.adapters]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    with torch.no_grad():
        for name, adapter in student.adapters.items():
            layer = adapted.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
            layer.lora_A["default"].weight.copy_(adapter.a)
            layer.lora_B["default"].weight.copy_(adapter.b)
    return adapted


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("lora", [{}, {"targets": ("q_proj", "*.1.mlp.*", "lm_head")}])
def test_a_dense_model_learns_and_merges_as_peft_does(
    make_model: Callable[..., Path], tmp_path: Path, begin: Begin, lora: dict[str, Any]
) -> None:
    source = make_model(tmp_path / "qwen3", "qwen3")
    student = moved(Student(begin(source, tmp_path / "run"), options(**lora)))
    reference = by_peft(source, student)
    assert torch.equal(student.model(input_ids=IDS).logits, reference(input_ids=IDS).logits)
    loss(student.model).backward()
    loss(reference).backward()
    for name, adapter in student.adapters.items():
        layer = reference.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
        assert adapter.a.grad is not None and adapter.b.grad is not None
        assert torch.equal(adapter.a.grad, layer.lora_A["default"].weight.grad)
        assert torch.equal(adapter.b.grad, layer.lora_B["default"].weight.grad)
    merged = reference.merge_and_unload().state_dict()
    for name, value in student.tensors(list(student.adapters)).items():
        assert isinstance(value, Tensor) and torch.equal(value, merged[name])


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss", "mixtral"])
@pytest.mark.parametrize("pruned", [False, True])
def test_any_linear_layer_gets_one(
    family: str,
    pruned: bool,
    make_model: Callable[..., Path],
    tmp_path: Path,
    begin: Begin,
    carry_out: Callable[..., Run],
) -> None:
    """Conv1D, experts in stacks: once adapted, the model is that of the merged weights. Its zeros stay."""
    run = begin(make_model(tmp_path / family, family), tmp_path / "run")
    if pruned:
        carry_out(run, Prune(method="magnitude", solve=False))
    student = moved(Student(run, options()))
    assert set(student.adapters) == {f"{name}.weight" for name in run.skeleton.anatomy.linears}
    loss(student.model).backward()
    assert any(bool(adapter.b.grad.any()) for adapter in student.adapters.values() if adapter.b.grad is not None)
    plain = Student(run, TrainOptions(train="norms"))
    own = dict(plain.model.named_parameters())
    paths = {name: path for path, name in tensor_names(plain.model, run.model.spec.tensors).items()}
    with torch.no_grad():
        unmoved = plain.model(input_ids=IDS).logits
        for name, value in student.tensors(list(student.adapters)).items():
            assert isinstance(value, Tensor)
            assert float((value == 0).float().mean()) == 0.5 * pruned
            own[paths[name]].copy_(value)
        expected, found = plain.model(input_ids=IDS).logits, student.model(input_ids=IDS).logits
    assert not torch.allclose(unmoved, expected, atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


FORMATS = [RTN(bits=3, group_size=32), RTN(bits=4, group_size=16, symmetric=False), NF4(), MXFP4()]


@pytest.mark.parametrize("step", FORMATS, ids=lambda step: f"{step.name}-{getattr(step, 'bits', 4)}")
def test_a_quantized_model_is_at_every_step_what_will_be_written(
    tiny_llama: Path, tmp_path: Path, swept: Swept, step: Any
) -> None:
    run = swept(tiny_llama, tmp_path / "run", [step])
    student = Student(run, options())
    for name in student.adapters:
        held, given = run.model.read(name), student.tensors([name])[name]
        assert isinstance(held, QTensor) and isinstance(given, QTensor) and torch.equal(held.codes, given.codes)
    moved(student)
    for name, adapter in student.adapters.items():
        held, given = run.model.read(name), student.tensors([name])[name]
        original = run.source.read(name)
        assert isinstance(held, QTensor) and isinstance(given, QTensor) and isinstance(original, Tensor)
        assert given.format == held.format and set(given.params) == set(held.params)
        assert all(torch.equal(given.params[key], held.params[key]) for key in held.params)
        wanted = within_cells(held, original) + (adapter.b @ adapter.a * 1.5).detach()
        rounded = quantize(wanted, held.format, held.params)
        assert float((rounded.codes != given.codes).float().mean()) < 1e-3  # those between two codes
        assert float((held.codes != given.codes).float().mean()) > 0.05
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(student.weights[name](), given.dequantize())


def test_gradients_go_straight_through_the_rounding(quantized: Run) -> None:
    """∂L/∂B = s·G·Aᵀ and ∂L/∂A = s·Bᵀ·G with the gradient G of the rounded weight, 0 beyond the ends of the grid."""
    name = "model.layers.0.mlp.up_proj.weight"
    student = moved(Student(quantized, options()))
    adapter, weight = student.adapters[name], student.weights[name]
    gradient = torch.randn(128, 64, generator=torch.Generator().manual_seed(2))
    weight().backward(gradient)
    held, original = quantized.model.read(name), quantized.source.read(name)
    assert isinstance(held, QTensor) and isinstance(original, Tensor)
    scaled = within_cells(held, original) + (adapter.b @ adapter.a * 1.5).detach()
    scaled = scaled / held.format.expand(held.params, held.shape)["scale"]
    gradient = torch.where((scaled < -4.001) | (scaled > 3.001), 0, gradient)
    assert adapter.a.grad is not None and adapter.b.grad is not None
    torch.testing.assert_close(adapter.b.grad, 1.5 * gradient @ adapter.a.detach().T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapter.a.grad, 1.5 * adapter.b.detach().T @ gradient, rtol=1e-4, atol=1e-4)


@pytest.fixture
def quantized(tiny_llama: Path, tmp_path: Path, swept: Swept) -> Run:
    return swept(tiny_llama, tmp_path / "run", [RTN(bits=3, group_size=32, skip=("o_proj",))])


def test_nothing_learns_but_adapters(quantized: Run) -> None:
    """Of dense and quantized weights alike."""
    student = Student(quantized, options())
    (group,) = student.groups(options())
    assert group.rate == TrainOptions().lr_lora and len(group.parameters) == 2 * len(student.adapters) == 28
    learned = {id(parameter) for parameter in student.model.parameters() if parameter.requires_grad}
    assert learned == {id(parameter) for parameter in group.parameters.values()}
    assert not any(adapter.b.any() for adapter in student.adapters.values())


def test_they_begin_by_the_seed_alone(quantized: Run) -> None:
    first = Student(quantized, options())
    torch.rand(1)
    state = torch.get_rng_state()
    second = Student(quantized, options())
    assert torch.equal(torch.get_rng_state(), state)
    quantized.seed = 1
    third = Student(quantized, options())
    for name, adapter in first.adapters.items():
        assert torch.equal(adapter.a, second.adapters[name].a) and not torch.equal(adapter.a, third.adapters[name].a)


def test_targets_are_linear_layers_by_pattern(quantized: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = quantized.skeleton.anatomy
    assert targeted(LoraOptions(targets=("*.0.mlp.*", "q_proj")), anatomy) == {
        *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)),
    }
    with pytest.raises(UsageError, match="no linear layer is named 'q_prj'; did you mean 'q_proj'"):
        targeted(LoraOptions(targets=("q_prj",)), anatomy)
    with pytest.raises(UsageError, match="'lm_head'") as refused:
        targeted(LoraOptions(targets=("lm_head",)), anatomy)
    assert "its head is its embedding" in refused.value.hint
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs peft") as refused:
        targeted(LoraOptions(), anatomy)
    assert refused.value.hint == "pip install 'compress-llm[train]'"


TARGETS = ["*.0.*_proj"]


def recipe(source: Path, corpus: Path, *, learns: bool = True, scope: str = "model") -> Any:
    """Codes and, in o_proj, dense weights; all of the first layer learns."""
    learning = {
        "data": str(corpus), "samples": 24, "seq_len": 32, "steps": 24, "batch": 4, "held_out": 6, "precision": "fp32",
        "train": "lora", "lora": {"rank": 4, "targets": TARGETS}, "lr_lora": 5e-3,
        "scope": scope,
    }  # fmt: skip
    steps: list[Any] = [{"rtn": {"bits": 3, "group_size": 32, "skip": ["o_proj"]}}]
    steps += [{"distill": learning}] * learns
    return from_data({"model": str(source), "passes": [*steps, {"export": {"dialect": "compressed-tensors"}}]})


def artifact(report: Any) -> Path:
    return Path(report.artifacts[0].path)


def same(one: Tensor | QTensor, other: Tensor | QTensor) -> bool:
    if isinstance(one, QTensor) and isinstance(other, QTensor):
        return torch.equal(one.codes, other.codes)
    assert isinstance(one, Tensor) and isinstance(other, Tensor)
    return torch.equal(one, other)


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_the_artifact_is_an_ordinary_model_in_which_only_targets_changed(
    tiny_llama: Path, corpus: Path, tmp_path: Path, scope: str
) -> None:
    recipes = [recipe(tiny_llama, corpus, learns=on, scope=scope) for on in (False, True)]
    folders = [artifact(run_recipe(each, tmp_path / str(len(each.passes)))) for each in recipes]
    before, after = (open_checkpoint(folder) for folder in folders)
    assert before.spec.tensors == after.spec.tensors
    changed = set()
    for name in before.spec.tensors:
        old, new = before.read(name), after.read(name)
        if isinstance(old, QTensor) and isinstance(new, QTensor):
            assert all(torch.equal(old.params[key], new.params[key]) for key in old.params)
        changed |= set() if same(old, new) else {name}
    assert changed == {name for name in before.spec.tensors if ".0." in name and name.endswith("_proj.weight")}
    training, *_ = json.loads((folders[1] / "compress.json").read_text())["training"]
    assert min(loss for _, loss in training["measured"]) < 0.97 * training["measured"][0][1]


def test_of_a_model_that_training_quantizes_only_targets_learn(
    tiny_llama: Path, corpus: Path, tmp_path: Path, begin: Begin, carry_out: Callable[..., Run]
) -> None:
    runs = [begin(tiny_llama, tmp_path / name) for name in ("plain", "learned")]
    carry_out(runs[0], RTN(bits=2, group_size=32, search="weights"))
    learning = {"lora": {"rank": 4, "targets": TARGETS}, "lr_lora": 2e-3, "steps": 16, "batch": 4, "held_out": 6}
    text = {"data": str(corpus), "samples": 24, "seq_len": 32}
    carry_out(runs[1], QAT.model_validate({"bits": 2, "group_size": 32, "train": "lora", **learning, **text}))
    assert runs[0].model.spec.tensors == runs[1].model.spec.tensors
    pairs = {name: [run.model.read(name) for run in runs] for name in runs[0].model.spec.tensors}
    changed = {name for name, pair in pairs.items() if not same(*pair)}
    assert changed == {name for name in pairs if ".0." in name and name.endswith("_proj.weight")}


@pytest.mark.parametrize("at", [3, 8, 15])
def test_killed_anywhere_it_ends_in_the_same_bytes(
    tiny_llama: Path, corpus: Path, tmp_path: Path, at: int, killed_at: KilledAt
) -> None:
    """Its states hold adapters and what the optimizer knows of them, no more."""
    whole = run_recipe(recipe(tiny_llama, corpus), tmp_path / "whole")
    with killed_at(at):
        run_recipe(recipe(tiny_llama, corpus), tmp_path / "cut")
    for state in (tmp_path / "cut").rglob("state-*.safetensors"):
        held = NativeFile(state)
        values = {name.removeprefix("value.") for name in held.specs if name.startswith("value.")}
        assert len(values) == 14 and all(name.endswith(("_proj.weight.a", "_proj.weight.b")) for name in values)
        assert all(name == "random" or name.endswith(tuple(values)) for name in held.specs)
    resumed = run_recipe(recipe(tiny_llama, corpus), tmp_path / "cut")
    one, other = (artifact(report) / "model.safetensors" for report in (whole, resumed))
    assert one.read_bytes() == other.read_bytes()
