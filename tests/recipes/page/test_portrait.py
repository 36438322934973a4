"""What is shown of an artifact: a value for every kind of module and layer."""

from __future__ import annotations

from pathlib import Path

from compress.recipes.page.portrait import cells, portrait_of
from compress.recipes.recipe import from_data
from compress.recipes.run import run


def test_values_are_found_by_module_and_layer_and_experts_are_averaged() -> None:
    values = [
        ("model.layers.0.mlp.down_proj.weight", 4.0, 10), ("model.layers.11.mlp.down_proj", 8.0, 10),
        ("model.layers.0.mlp.experts.0.up_proj.weight", 4.0, 3),
        ("model.layers.0.mlp.experts.1.up_proj.weight", 8.0, 1),
        ("lm_head.weight", 16.0, 5),
    ]  # fmt: skip
    assert cells(values) == {"mlp.down_proj": {0: 4.0, 11: 8.0}, "mlp.experts.*.up_proj": {0: 5.0}}


def test_an_artifact_shows_its_bits_its_errors_and_who_loads_it(tiny_llama: Path, tmp_path: Path) -> None:
    bits = {"*.down_proj": 8, "default": 4}
    steps = [{"rtn": {"bits": bits, "group_size": 32}}, {"export": {"dialect": "compressed-tensors"}}]
    report = run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out")
    found = portrait_of("it", Path(report.artifacts[0].path))
    assert found.bits["mlp.down_proj"] == {0: 8.5, 1: 8.5} and found.bits["self_attn.q_proj"] == {0: 4.5, 1: 4.5}
    assert "input_layernorm" not in found.bits and found.ends == {"model.embed_tokens": "float16"}
    verdicts = {verdict.target: verdict.loads for verdict in found.verdicts}
    assert verdicts["vllm"] and (found.name, found.dialect) == ("it", "compressed-tensors")


def test_a_checkpoint_of_others_has_bits_and_no_errors(tiny_llama: Path) -> None:
    found = portrait_of("it", tiny_llama)
    assert found.bits["mlp.down_proj"] == {0: 32.0, 1: 32.0} and not found.errors and not found.curves
