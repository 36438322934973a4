"""Every family from calibration to export and back; transformers' own classes and forward are the judge."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError
from compress.kernels.qtensor import QTensor
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.blank import fitted
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import dense
from compress.passes.model.whole.loading import load_model
from compress.recipes.recipe import build
from compress.recipes.run import RunReport, run
from compress.recipes.yaml import Document

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Finished:
    """A model, and what a run of gptq and export has made of it."""

    source: Path
    output: Path
    report: RunReport


def in_transformers(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def random_rows() -> Sequences:
    """Padded rows, longer than the sliding windows."""
    ids = torch.randint(1, 320, (3, 24), generator=torch.Generator().manual_seed(1))
    return Sequences(ids, torch.arange(24) < torch.tensor([24, 5, 17])[:, None])


@torch.no_grad()
def streamed_logits(path: Path, rows: Sequences, folder: Path) -> Tensor:
    """[real tokens, vocabulary], a layer at a time."""
    model, skeleton = Skeleton.open(open_checkpoint(path), CPU)
    walk = Walk(skeleton, rows, [Stream(dense(model), HiddenStates(folder, 24, skeleton.width, 3))])
    walk.carry(0, lambda boundary: None)
    project, _ = skeleton.back(walk.streams[0].weights)
    return project(walk.streams[0].hidden.read(len(skeleton.anatomy.layers), 0, 3))[rows.mask]


@torch.no_grad()
def whole_logits(model: PreTrainedModel, rows: Sequences) -> Tensor:
    assert rows.mask is not None
    return model(rows.ids, attention_mask=rows.mask.long()).logits[rows.mask]


def document(model: Path, *passes: dict[str, Any]) -> Document:
    return Document("test", {"model": str(model), "passes": list(passes)}, {})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[..., Path], Path], Finished]:
    """One run per family, shared by the tests."""
    done: dict[str, Finished] = {}

    def finish(family: str, make_model: Callable[..., Path], corpus: Path) -> Finished:
        if family not in done:
            folder = tmp_path_factory.mktemp("family")
            source = make_model(folder / "source", family)
            steps = [
                {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 24}},
                {"gptq": {"group_size": 32}},
                {"export": {"dialect": "dense", "dtype": "float32"}},
                {"export": {"dialect": "gptq", "dtype": "float32"}},
            ]
            done[family] = Finished(source, folder / "out", run(build(document(source, *steps)), folder / "out"))
        return done[family]

    return finish


@pytest.fixture
def model(every_family: str, finished: Any, make_model: Callable[..., Path], corpus: Path) -> Iterator[Finished]:
    yield finished(every_family, make_model, corpus)


def test_a_layer_at_a_time_is_the_whole_model(model: Finished, tmp_path: Path) -> None:
    rows, (source, blank) = random_rows(), fitted(open_checkpoint(model.source))
    expected = whole_logits(in_transformers(model.source), rows)
    assert expected.std() > 0.3
    torch.testing.assert_close(streamed_logits(model.source, rows, tmp_path / "hidden"), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole_logits(load_model(source, CPU, blank=blank), rows), expected, rtol=0, atol=1e-5)


def test_transformers_computes_what_we_exported(model: Finished, tmp_path: Path) -> None:
    """The dense artifact in transformers, and the codes of the gptq artifact in our own forward, are one model."""
    rows = random_rows()
    expected = whole_logits(in_transformers(model.output / "dense"), rows)
    source = whole_logits(in_transformers(model.source), rows)
    assert 1e-3 < float((expected - source).std()) < 0.5 * float(source.std())
    torch.testing.assert_close(
        streamed_logits(model.output / "gptq", rows, tmp_path / "hidden"), expected, rtol=0, atol=1e-5
    )


def test_every_linear_layer_is_quantized(model: Finished) -> None:
    """All matrices of the decoder layers but the routers of experts, by transformers' own count of parameters."""
    parameters = dict(in_transformers(model.source).named_parameters())
    quantized = {
        name: parameter.numel()
        for name, parameter in parameters.items()
        if parameter.ndim > 1 and re.search(r"\.(layers|h)\.", name)
        if not name.endswith(("mlp.gate.weight", "router.weight", "shared_expert_gate.weight", "bias"))
    }
    total = sum(parameter.numel() for parameter in parameters.values())
    for artifact in model.report.artifacts:
        assert artifact.quantized_share == pytest.approx(sum(quantized.values()) / total, rel=1e-12)


# One family for each form that weights are kept in: the rest is as above.
FORMS = ["gpt2", "phi3", "mixtral", "gpt_oss"]


@pytest.mark.parametrize("family", FORMS)
def test_from_gptq_to_dense_is_exact(
    family: str, finished: Any, make_model: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    model = finished(family, make_model, corpus)
    step = {"export": {"dialect": "dense", "dtype": "float32"}}
    run(build(document(model.output / "gptq", step)), tmp_path / "again")
    first, again = (open_checkpoint(path) for path in (model.output / "dense", tmp_path / "again" / "dense"))
    assert first.spec.tensors == again.spec.tensors
    for name in first.spec.tensors:
        left, right = first.read(name), again.read(name)
        assert not isinstance(left, QTensor) and torch.equal(left, right), name


@pytest.mark.parametrize("family", FORMS)
def test_rounding_needs_no_data(family: str, make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Round to nearest, without a forward: each weight becomes a close one, whatever form its layer is kept in."""
    source = make_model(tmp_path / "source", family)
    steps = [{"rtn": {"group_size": 32, "bits": 8}}, {"export": {"dialect": "dense", "dtype": "float32"}}]
    run(build(document(source, *steps)), tmp_path / "out")
    before, after = (open_checkpoint(path) for path in (source, tmp_path / "out" / "dense"))
    assert set(before.spec.tensors) == set(after.spec.tensors)
    changed = 0
    for name in before.spec.tensors:
        old, new = before.read(name), after.read(name)
        assert isinstance(old, Tensor) and isinstance(new, Tensor) and new.shape == old.shape
        assert (new - old).abs().max() <= old.abs().max() / 127
        changed += not torch.equal(old, new)
    assert changed == {"gpt2": 8, "phi3": 8, "mixtral": 2 * (4 + 4 * 3), "gpt_oss": 2 * (4 + 2)}[family]


@pytest.mark.parametrize("family", ["gemma", "olmo2"])
def test_gguf_holds_what_was_rounded(family: str, make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Values, norms (Gemma's are larger by one there) and configuration come back; the run's own check read it too."""
    source = make_model(tmp_path / "source", family)
    dense_step, gguf_step = {"export": {"dialect": "dense", "dtype": "float32"}}, {"export": {"dialect": "gguf"}}
    run(build(document(source, {"rtn": {"group_size": 32}}, dense_step, gguf_step)), tmp_path / "out")
    expected, stored = (open_checkpoint(tmp_path / "out" / name) for name in ("dense", "gguf"))
    assert set(stored.spec.tensors) == set(expected.spec.tensors)
    for name, spec in stored.spec.tensors.items():
        value, again = expected.read(name), stored.read(name)
        again = again.dequantize() if isinstance(again, QTensor) else again.float()
        torch.testing.assert_close(again, value, rtol=0 if spec.format else 1e-3, atol=0 if spec.format else 1e-5)


def test_a_layer_that_stays_dense_keeps_its_form(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    source = make_model(tmp_path / "source", "gpt2")
    steps = [{"rtn": {"group_size": 32, "skip": ["*.c_proj"]}}, {"export": {"dialect": "gptq", "dtype": "float32"}}]
    run(build(document(source, *steps)), tmp_path / "out")
    before, after = (open_checkpoint(path) for path in (source, tmp_path / "out" / "gptq"))
    for name in ("transformer.h.1.mlp.c_proj.weight", "transformer.h.1.attn.c_proj.weight"):
        kept, read = before.read(name), after.read(name)
        assert isinstance(kept, Tensor) and isinstance(read, Tensor) and torch.equal(kept, read)


def test_names_without_what_the_head_sits_on(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    """OpenAI's own GPT-2 files say `h.0…` where transformers says `transformer.h.0…`."""
    source, rows = make_model(tmp_path / "source", "gpt2"), random_rows()
    expected = whole_logits(in_transformers(source), rows)
    tensors = load_file(source / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): value for name, value in tensors.items()}, source / "model.safetensors"
    )
    torch.testing.assert_close(streamed_logits(source, rows, tmp_path / "hidden"), expected, rtol=0, atol=1e-5)


def test_routers_are_quantized_by_name_only(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    source = make_model(tmp_path / "source", "qwen2_moe")
    steps = [{"rtn": {"group_size": 32, "include": ["*.shared_expert_gate"]}}, {"export": {"dialect": "dense"}}]
    run(build(document(source, *steps)), tmp_path / "out")
    tensors = json.loads((tmp_path / "out" / "dense" / "compress.json").read_text())["tensors"]
    assert set(tensors) == {f"model.layers.{layer}.mlp.shared_expert_gate" for layer in (0, 1)}


def test_stacks_of_an_unknown_form_are_not_skipped_in_silence(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.passes.model.experts._OF_LLAMA4", "")
    source = make_model(tmp_path / "source", "llama4_text")
    with pytest.raises(RefusedError, match="several matrices"):
        run(build(document(source, {"rtn": {"group_size": 32}}, {"export": {"dialect": "dense"}})), tmp_path / "out")
