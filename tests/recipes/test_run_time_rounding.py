"""Activations and cache in whole runs: measured, planned, refused where a container cannot say them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.formats.views.fit import Decoded, without_runtime
from compress.kernels.numbers.activations import CacheFormat
from compress.passes.artifact.fingerprint import largest_difference
from compress.passes.artifact.record import Record
from compress.passes.model.whole.loading import load_model
from compress.recipes.jobs.evaluate import evaluate
from compress.recipes.jobs.generate import generate
from compress.recipes.jobs.verify import verify
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, build
from compress.recipes.run import run
from compress.recipes.yaml import Document


def recipe(model: Path, corpus: Path, *steps: dict) -> Recipe:
    passes = [{"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}, *steps]
    return build(Document("test", {"model": str(model), "passes": passes}, {}))


def test_w8a8_and_an_fp8_cache_are_measured(tiny_llama: Path, corpus: Path, held_out: Path, tmp_path: Path) -> None:
    measure = {"evaluate": {"data": str(held_out), "samples": 2, "seq_len": 32}}
    losses = []
    for name, steps in {
        "w8a16": [{"int8": {"activations": "none"}}],
        "w8a8": [{"int8": {"activations": "static", "smooth": 0.5}}],
        "cache": [{"int8": {"activations": "static", "smooth": 0.5}}, {"kv_cache": {"dtype": "fp8"}}],
    }.items():
        work = recipe(tiny_llama, corpus, *steps, measure)
        assert plan(work).verdict == "fits"
        report = run(work, tmp_path / name)
        losses.append(report.metrics.kl_divergence)
    assert 0 < losses[0] < losses[1] < losses[2] < 0.1


def test_a_container_of_weights_refuses_them(tiny_llama: Path, corpus: Path) -> None:
    dense = {"export": {"dialect": "dense"}}
    for step, word in (({"int8": {}}, "inputs are rounded"), ({"kv_cache": {}}, "key/value cache")):
        with pytest.raises(RefusedError, match=word):
            plan(recipe(tiny_llama, corpus, step, dense))
    alone = {"export": {"dialect": "dense", "requantize": True}}
    planned = plan(recipe(tiny_llama, corpus, {"int8": {"activations": "static"}}, {"kv_cache": {}}, alone))
    assert planned.artifacts[0].bytes > 0


def test_a_cache_alone_is_exported(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    work = recipe(tiny_llama, corpus, {"kv_cache": {}}, {"export": {"dialect": "compressed-tensors"}})
    planned = plan(work)
    assert planned.verdict == "fits"
    run(work, tmp_path / "out")
    artifact = tmp_path / "out" / "compressed-tensors"
    assert planned.artifacts[0].bytes == (artifact / "model.safetensors").stat().st_size
    spec = open_checkpoint(artifact).spec
    assert spec.kv_cache == CacheFormat("fp8") and not any(tensor.format for tensor in spec.tensors.values())


def test_a_cache_cannot_be_calibrated_on_nothing(tiny_llama: Path) -> None:
    document = Document("test", {"model": str(tiny_llama), "passes": [{"kv_cache": {}}, {"evaluate": {}}]}, {})
    with pytest.raises(UsageError, match="kv_cache needs calibration data"):
        plan(build(document))


def test_eval_and_generate_run_with_a_cache_of_codes(tiny_llama: Path, corpus: Path) -> None:
    options = {"reference": str(tiny_llama), "data": str(corpus), "windows": 2, "seq_len": 32}
    (plain,) = evaluate([str(tiny_llama)], **options)
    _, cached = evaluate([str(tiny_llama)], kv_cache="int8", **options)
    assert plain.kl_divergence == pytest.approx(0, abs=1e-7)
    assert 1e-7 < cached.kl_divergence < 0.01
    pieces: list[str] = []
    generate(str(tiny_llama), "The quick", pieces.append, max_tokens=4, raw=True, kv_cache="int8")
    assert "".join(pieces)


def test_an_artifact_is_judged_by_its_weights_and_by_its_static_scales(
    tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    """Its recorded answers are those without rounding, the same on any machine; a changed scale is named."""
    steps = [{"int8": {"activations": "static"}}, {"export": {"dialect": "compressed-tensors", "dtype": "float32"}}]
    path = Path(run(recipe(tiny_llama, corpus, *steps), tmp_path / "out").artifacts[0].path)
    found = verify(path)
    assert found.passed and found.largest_difference is not None and found.largest_difference < 1e-4
    model = load_model(Decoded(open_checkpoint(path), without_runtime(open_checkpoint(path).spec)), torch.device("cpu"))
    recorded = Record.model_validate_json((path / "compress.json").read_text()).fingerprint
    answers = torch.stack([model(torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in recorded.prompts])
    assert largest_difference(recorded, answers) < 1e-4

    tensors = load_file(path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("input_scale"))
    save_file({**tensors, name: 2 * tensors[name]}, path / "model.safetensors", {"format": "pt"})
    assert name in {problem.where for problem in verify(path).problems if problem.check == "tensors"}


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_scales_of_the_cache_by_head_are_written_and_read_back(
    dtype: str, tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    step, export = {"kv_cache": {"dtype": dtype, "per": "head"}}, {"export": {"dialect": "compressed-tensors"}}
    run(recipe(tiny_llama, corpus, step, export), tmp_path / "out")
    read = open_checkpoint(tmp_path / "out" / "compressed-tensors")
    assert read.spec.kv_cache == CacheFormat(dtype, "head")
    assert read.spec.tensors["model.layers.0.self_attn.k_scale"].shape == (2,)
    assert verify(tmp_path / "out" / "compressed-tensors").passed
