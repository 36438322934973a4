"""What engines cannot load is refused by the plan, from headers alone; every fact says where it stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from told import Notes

from compress.cli.app import main
from compress.cli.views.recipes import run_report
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.numbers.activations import ActivationFormat, CacheFormat
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat, ScaleType
from compress.kernels.qtensor import NumberFormat
from compress.recipes.engines.subject import Subject
from compress.recipes.engines.verdicts import builds_of, verdict, verdicts
from compress.recipes.jobs.export import export
from compress.recipes.jobs.inspect import inspect
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data, schema, with_targets
from compress.recipes.run import run

LEAVES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (64, 64), "self_attn.v_proj": (64, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
}  # fmt: skip
MXFP4, NVFP4 = Float4Format("mxfp4"), Float4Format("nvfp4")
INT4, INT8, INT3, ASYM = IntFormat(4, 32), IntFormat(8, 32), IntFormat(3, 32), IntFormat(4, 32, "integer")


def model(
    choose: Callable[[str], NumberFormat | None], shapes: Mapping[str, tuple[int, int]] = LEAVES, **config: Any
) -> ModelSpec:
    tensors = {"model.embed_tokens.weight": TensorSpec((320, 64), "float16")}
    for layer in range(2):
        for leaf, shape in shapes.items():
            tensors[f"model.layers.{layer}.{leaf}.weight"] = TensorSpec(shape, "float32", choose(leaf))
    tensors["lm_head.weight"] = TensorSpec((320, 64), "float16")
    return ModelSpec({"model_type": "llama", "tie_word_embeddings": False, **config}, tensors)


def reason(target: str, spec: ModelSpec, dialect: str = "gptq", **options: Any) -> str:
    found = verdict(target, "x", Subject(dialect, spec, {"checkpoint_format": "gptq", **options}))
    assert found.loads == (not found.reason)
    return found.reason


def only(format: NumberFormat) -> ModelSpec:
    return model(lambda leaf: format)


def test_a_plain_model_loads_everywhere() -> None:
    found = verdicts("x", Subject("gptq", only(INT4), {"checkpoint_format": "gptq"}))
    assert {entry.target for entry in found} >= {"vllm", "vllm-cpu", "transformers", "gptqmodel", "autogptq"}
    assert [entry.reason for entry in found if not entry.loads] == []


HEAD = only(INT4)
HEAD = replace(HEAD, tensors={**HEAD.tensors, "lm_head.weight": TensorSpec((320, 64), "float32", INT4)})


@pytest.mark.parametrize(("target", "spec", "options", "told"), [
    ("vllm", only(INT3), {}, "has 3 bits (int3 g32 sym); use 4, 8"),
    ("vllm", only(ASYM), {}, "is asymmetric"),
    ("vllm", only(IntFormat(4, 16)), {}, "has groups of 16; use group_size -1, 32, 64, 128"),
    ("vllm", model(lambda leaf: INT8 if leaf.endswith("v_proj") else INT4), {}, "q_proj, k_proj, v_proj of"),
    ("vllm", model(lambda leaf: None if leaf.endswith("up_proj") else INT4), {}, "gate_proj, up_proj of"),
    ("vllm-cpu", only(INT8), {}, "has 8 bits"),
    ("vllm-cpu", model(lambda leaf: INT4, {"mlp.down_proj": (80, 64)}), {}, "is 80 × 64"),
    ("transformers", model(lambda leaf: INT8 if "mlp" in leaf else INT4), {}, "one is known for all"),
    ("autogptq", model(lambda leaf: INT8 if "mlp" in leaf else INT4), {}, "one is known for all"),
    ("transformers", HEAD, {}, "lm_head.weight is quantized; leave it dense"),
    ("autogptq", HEAD, {}, "lm_head.weight is quantized; leave it dense"),
    ("gptqmodel", only(ASYM), {}, "export with checkpoint_format: gptq_v2"),
    ("gptqmodel", only(IntFormat(4, 2)), {}, "has groups of 2"),
    ("autogptq", only(ASYM), {"checkpoint_format": "gptq_v2"}, "checkpoint_format is 'gptq_v2'; use gptq"),
    ("autogptq", model(lambda leaf: None if leaf == "mlp.down_proj" else INT4), {}, "down_proj.weight stayed dense"),
    ("autogptq", model(lambda leaf: INT4, tie_word_embeddings=True), {}, "export with `untie: true`"),
])  # fmt: skip
def test_what_gptq_files_cannot_be_loaded(target: str, spec: ModelSpec, options: dict[str, Any], told: str) -> None:
    assert told in reason(target, spec, **options)


@pytest.mark.parametrize(("target", "spec", "options"), [
    ("vllm", model(lambda leaf: IntFormat(4, -1)), {}),
    ("vllm", model(lambda leaf: IntFormat(4, 64), {"self_attn.o_proj": (64, 64)}), {}),
    ("vllm", model(lambda leaf: INT8 if "mlp" in leaf else INT4), {}),
    ("gptqmodel", only(ASYM), {"checkpoint_format": "gptq_v2"}),
    ("autogptq", model(lambda leaf: INT4, tie_word_embeddings=True), {"untie": True}),
    ("transformers", only(ASYM), {}),
])  # fmt: skip
def test_what_can_be_loaded_is_not_refused(target: str, spec: ModelSpec, options: dict[str, Any]) -> None:
    assert reason(target, spec, **options) == ""


NF4 = CodebookFormat("nf4", 64)
ROUTED = {**LEAVES, "mlp.gate": (8, 64)}
ALL = {f"model.layers.{layer}.{leaf}": ActivationFormat("int8", True) for layer in range(2) for leaf in LEAVES}
INPUTS = {name: inputs for name, inputs in ALL.items() if name.endswith("q_proj")}
GROUPS = dict.fromkeys(ALL, ActivationFormat("fp8", True, "group"))


@pytest.mark.parametrize(("target", "spec", "told"), [
    ("vllm", model(lambda leaf: INT4 if leaf == "mlp.up_proj" else ASYM), ""),  # both are written with zero points
    ("vllm", only(IntFormat(4, 16, "integer")), "has groups of 16"),
    ("transformers", only(IntFormat(4, 256)), "has groups of 256"),
    ("vllm", model(lambda leaf: None if leaf == "mlp.up_proj" else ASYM), "gate_proj, up_proj of model.layers.0.mlp"),
    ("vllm", model(lambda leaf: None if leaf == "mlp.gate" else ASYM, ROUTED), "holds that of model.layers.0.mlp.gate"),
    ("autoawq", model(lambda leaf: None if leaf == "mlp.gate" else ASYM, ROUTED), "mlp.gate_proj.weight is taken for"),
    ("transformers", model(lambda leaf: None if leaf == "mlp.gate" else ASYM, ROUTED), ""),
    ("autoawq", model(lambda leaf: ASYM, ROUTED), ""),
    ("transformers", model(lambda leaf: ASYM, model_type="falcon"), "looks for act.scales"),
    ("vllm", model(lambda leaf: ASYM, model_type="falcon"), ""),
])  # fmt: skip
def test_what_awq_files_cannot_be_loaded(target: str, spec: ModelSpec, told: str) -> None:
    found = reason(target, spec, "awq")
    assert told in found and bool(told) == bool(found)


@pytest.mark.parametrize(("target", "spec", "told"), [
    ("vllm", only(INT3), ""),
    ("vllm", only(IntFormat(8, 32, "integer")), ""),
    ("vllm-cpu", only(INT3), "has 3 bits"),
    ("vllm-cpu", replace(only(IntFormat(8, -1)), activations=ALL), ""),
    ("transformers", only(ASYM), "dequantize=True"),
    ("transformers", model(lambda leaf: ASYM if "mlp" in leaf else INT4), "zero points; quantize with symmetric: true"),
    ("transformers", only(INT4), ""),
    ("vllm", replace(only(INT4), kv_cache=CacheFormat("int8")), "the cache is int8 per tensor; use fp8"),
    ("vllm", replace(only(INT4), kv_cache=CacheFormat("fp8", "head")), ""),
    ("vllm", replace(only(IntFormat(8, -1)), activations=INPUTS), "inputs int8 dynamic per token"),
    ("vllm", only(FloatFormat("block")), "has 64 rows, which are no whole blocks of 128"),
    ("transformers", only(FloatFormat("block")), ""),
    ("transformers", replace(only(FloatFormat("block")), activations=GROUPS), "has 64 inputs, which are no whole"),
    ("vllm", only(FloatFormat("channel")), ""),
    ("vllm", only(MXFP4), ""),
    ("vllm", model(lambda leaf: MXFP4 if leaf.endswith("v_proj") else NVFP4), "q_proj, k_proj, v_proj of"),
    ("vllm-cpu", only(MXFP4), "is in mxfp4, for which there is no kernel"),
    ("vllm-cpu", only(NVFP4), "is in nvfp4, for which there is no kernel"),
    ("transformers", only(NVFP4), "beside other tensors in None; export with dtype: bfloat16"),
    ("transformers", model(lambda leaf: MXFP4, dtype="bfloat16"), ""),
])  # fmt: skip
def test_what_compressed_tensors_files_cannot_be_loaded(target: str, spec: ModelSpec, told: str) -> None:
    found = reason(target, spec, "compressed-tensors")
    assert told in found and bool(told) == bool(found)


@pytest.mark.parametrize(("target", "spec", "dialect", "told"), [
    ("transformers", only(NF4), "bitsandbytes", ""),
    ("transformers", only(CodebookFormat("nf4", 32)), "bitsandbytes", "only bitsandbytes 0.50 and later"),
    ("transformers", model(lambda leaf: NF4, {"mlp.up_proj": (40, 64)}), "bitsandbytes", "AVX-512"),
    ("transformers", only(IntFormat(8, -1)), "bitsandbytes", "LLM.int8"),
    ("vllm", only(INT4), "awq", "rounds the float16 scales to bfloat16"),
    ("vllm", only(INT4), "compressed-tensors", "rounds the float16 scales to bfloat16"),
    ("vllm", only(MXFP4), "compressed-tensors", "round to MXFP4 too"),
    ("vllm", only(NVFP4), "compressed-tensors", ""),
    ("transformers", only(NVFP4), "compressed-tensors", ""),
])  # fmt: skip
def test_what_is_loaded_with_a_note(target: str, spec: ModelSpec, dialect: str, told: str) -> None:
    found = verdict(target, "x", Subject(dialect, spec, {"dtype": "bfloat16"}))
    assert found.loads and told in found.note and bool(told) == bool(found.note)
    assert "scales" not in verdict(target, "x", Subject(dialect, spec, {"dtype": "float16"})).note


def test_int8_inputs_and_float16_on_a_cpu() -> None:
    spec = replace(only(IntFormat(8, -1)), activations=ALL)
    notes = {
        dtype: verdict("vllm-cpu", "x", Subject("compressed-tensors", spec, {"dtype": dtype})).note
        for dtype in ("float16", "bfloat16")
    }
    assert "dtype: bfloat16" in notes["float16"] and notes["bfloat16"] == ""


@pytest.mark.parametrize(("scales", "dtype", "told"), [
    ("bfloat16", "bfloat16", ""),
    ("bfloat16", "float16", ""),
    ("float32", "float16", "rounds the float32 scales to float16; export with dtype: float32"),
    ("float32", "bfloat16", "rounds the float32 scales to bfloat16"),
    ("float32", "float32", ""),
])  # fmt: skip
def test_scales_that_the_artifact_s_type_rounds(scales: ScaleType, dtype: str, told: str) -> None:
    spec = only(replace(INT4, scale_dtype=scales))
    note = verdict("vllm", "x", Subject("compressed-tensors", spec, {"dtype": dtype})).note
    assert told in note and bool(told) == ("scales" in note)


def test_other_containers() -> None:
    assert "plugin" in reason("vllm", only(INT4), "gguf")
    assert "bitsandbytes left vLLM" in reason("vllm", only(NF4), "bitsandbytes")
    assert reason("llama.cpp", only(INT4), "gguf") == ""
    assert "is in nvfp4" in reason("vllm-cpu", only(NVFP4), "modelopt")
    assert "32" in reason("llama.cpp", model(lambda leaf: IntFormat(4, 16), {"mlp.up_proj": (64, 80)}), "gguf")
    assert "has no gpt_neox" in reason("transformers", model(lambda leaf: INT4, model_type="gpt_neox"), "gguf")
    assert reason("llama.cpp", only(INT4)) == "does not load gptq files; it loads gguf"
    assert reason("vllm", model(lambda leaf: None), "dense") == ""


def recipe(source: Path, exports: list[dict[str, Any]], wanted: list[str], **options: Any) -> Any:
    steps = [{"rtn": {"bits": 4, "group_size": 32, **options}}, *({"export": export} for export in exports)]
    return from_data({"model": str(source), "passes": steps, "targets": wanted})


def test_a_plan_refuses_what_no_target_loads(tiny_llama: Path, tmp_path: Path) -> None:
    exports = [{"dialect": "gptq"}, {"dialect": "gguf"}]
    planned = plan(recipe(tiny_llama, exports, ["vllm", "llama.cpp"]))
    rows = [(found.path, found.target, found.loads) for artifact in planned.artifacts for found in artifact.targets]
    assert rows == [
        ("gptq", "vllm", True), ("gptq", "llama.cpp", False), ("gguf", "vllm", False), ("gguf", "llama.cpp", True)
    ]  # fmt: skip
    for wrong, told in (
        (recipe(tiny_llama, exports[:1], ["llama.cpp"]), "does not load gptq files"),
        (recipe(tiny_llama, exports, ["vllm"], symmetric=False, group_size=64), "is asymmetric"),
        (recipe(tiny_llama, exports, ["autogptq"]), "gptq: it ties no embeddings; export with `untie: true`"),
    ):
        with pytest.raises(RefusedError, match="can load nothing") as error:
            run(wrong, tmp_path / "out")
        assert told in str(error.value)
    assert not (tmp_path / "out").exists()
    assert plan(recipe(tiny_llama, [{"dialect": "gptq", "untie": True}], ["autogptq"])).artifacts


def test_fp4_is_written_as_transformers_computes_it(tiny_llama: Path) -> None:
    export = {"dialect": "compressed-tensors"}
    raw = {"model": str(tiny_llama), "passes": [{"nvfp4": {}}, {"export": export}], "targets": ["transformers"]}
    assert plan(from_data(raw)).artifacts[0].targets[0].loads
    export["dtype"] = "float16"
    with pytest.raises(RefusedError, match="beside other tensors in float16; export with dtype: bfloat16"):
        plan(from_data(raw))


def test_a_report_ends_with_the_engines_that_its_artifacts_are_for(tiny_llama: Path, tmp_path: Path) -> None:
    told = Notes()
    exports = [{"dialect": "gptq"}, {"dialect": "gguf"}]
    report = run(recipe(tiny_llama, exports, [], symmetric=False), tmp_path / "out", reporter=told)
    assert any(note.startswith("gptq will not load in vllm: ") and "is asymmetric" in note for note in report.notes)
    assert any(note.startswith("gptq will not load in gptqmodel: ") for note in report.notes)
    lines = {artifact.dialect: set(artifact.loads) for artifact in report.artifacts}
    assert lines == {"gptq": {"transformers"}, "gguf": {"llama.cpp", "transformers"}}
    assert not any("transformers" in note or note.startswith("gguf ") for note in report.notes)  # not made for vLLM
    assert not any("load" in note for note in told.said)  # at the end, not before the work
    assert [part for part in run_report(report) if isinstance(part, str)][-1] == f"note: {report.notes[-1]}"


def test_a_plain_gptq_artifact_has_one_short_note(tiny_llama: Path, tmp_path: Path) -> None:
    report = run(recipe(tiny_llama, [{"dialect": "gptq"}, {"dialect": "gguf"}], []), tmp_path / "out")
    assert report.notes == ["gptq will not load in autogptq: it ties no embeddings; export with `untie: true`"]


def test_an_export_says_who_will_not_load_it(tiny_llama: Path, tmp_path: Path) -> None:
    told = Notes()
    packed = run(recipe(tiny_llama, [{"dialect": "compressed-tensors"}], []), tmp_path / "out").artifacts[0]
    export(packed.path, "gptq", {}, tmp_path / "again", reporter=told)
    assert told.said[-1] == "gptq will not load in autogptq: it ties no embeddings; export with `untie: true`"


def test_an_unknown_target_is_named_with_its_nearest(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match=r"targets: there is no target 'lama\.cpp'; did you mean 'llama\.cpp'"):
        recipe(tiny_llama, [], ["lama.cpp"])
    with pytest.raises(UsageError, match="did you mean 'vllm'"):
        with_targets(recipe(tiny_llama, [], []), ["vlm"])
    assert schema()["properties"]["targets"]["items"] == {"type": "string"}


def test_the_command(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"model: {tiny_llama}\npasses:\n  - rtn: {{bits: 4, group_size: 32}}\n  - export: {{dialect: gptq}}\n"
    )
    assert main(["plan", str(file), "--target", "vllm", "-q"]) == 0
    assert "vllm" in capsys.readouterr().out
    assert main(["plan", str(file), "--target", "llama.cpp", "--json"]) == 3
    assert "does not load gptq" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["plan", str(file), "--target", "nonsense"]) == 2
    assert main(["plan", str(tiny_llama), "--target", "vllm"]) == 2


def test_inspect_says_who_loads_and_who_holds_it(tiny_llama: Path, tmp_path: Path) -> None:
    report = run(recipe(tiny_llama, [{"dialect": "gptq"}, {"dialect": "gguf"}], []), tmp_path / "out")
    gptq, packed = (inspect(Path(artifact.path)) for artifact in report.artifacts)
    assert (gptq.targets["vllm"], "untie" in gptq.targets["autogptq"]) == ("", True)
    assert {name for name, why in gptq.dialects.items() if not why} >= {"dense", "gptq", "gguf"}
    assert (packed.targets["llama.cpp"], "plugin" in packed.targets["vllm"]) == ("", True)
    plain = inspect(tiny_llama)
    assert plain.dialects["dense"] == "" and "no tensor is quantized" in plain.dialects["gptq"]


def test_builds_of_an_engine_are_targets_of_their_own() -> None:
    assert builds_of("vllm") == ["vllm", "vllm-cpu"] and builds_of("llama.cpp") == ["llama.cpp"]
