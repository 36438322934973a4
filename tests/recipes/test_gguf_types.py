"""GGUF's own types, from a recipe to the file: gguf-py's values are ours, bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from conftest import CONFIGS, MakeModel
from gguf.quants import dequantize
from torch import Tensor
from transformers import LlamaConfig

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError
from compress.formats.gguf.file import gguf_file
from compress.kernels.qtensor import QTensor
from compress.passes.core.report import Reporter
from compress.recipes.plan import plan
from compress.recipes.recipe import build
from compress.recipes.run import run
from compress.recipes.yaml import Document

TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq4_nl", "mxfp4")


@pytest.fixture(scope="module")
def wide_llama(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose rows divide into super-blocks."""
    config = LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    return make_model(tmp_path_factory.mktemp("wide"), "llama", config=config)


class Listening(Reporter):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def exported(model: Path, out: Path, *passes: dict[str, Any], **export: Any) -> Path:
    """The one GGUF file of a run."""
    steps = [*passes, {"export": {"dialect": "gguf", **export}}]
    report = run(build(Document("types", {"model": str(model), "passes": steps}, {})), out)
    return only_file(report.artifacts[0].path)


def only_file(folder: str) -> Path:
    """The GGUF file in a folder."""
    found = gguf_file(Path(folder))
    assert found is not None
    return found


def library_values(file: Path) -> dict[str, tuple[str, Tensor]]:
    """Type and values of every matrix, as gguf-py reads it."""
    return {
        tensor.name: (tensor.tensor_type.name.lower(), torch.tensor(dequantize(tensor.data, tensor.tensor_type)))
        for tensor in gguf.GGUFReader(file).tensors
    }


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_was_quantized_onto_a_type_is_what_the_file_holds(
    method: str, name: str, wide_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    data = [{"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}] if method == "gptq" else []
    file = exported(wide_llama, tmp_path, *data, {method: {"format": name}})
    values = library_values(file)
    checkpoint = open_checkpoint(file)
    for module, gguf_name in {"mlp.down_proj": "ffn_down", "self_attn.v_proj": "attn_v"}.items():
        tensor = checkpoint.read(f"model.layers.0.{module}.weight")
        assert isinstance(tensor, QTensor) and tensor.format.name == name
        kind, expected = values[f"blk.0.{gguf_name}.weight"]
        assert kind == name and torch.equal(tensor.dequantize(), expected)
    assert values["token_embd.weight"][0] == "f16"


@pytest.mark.parametrize("name", TYPES)
def test_export_rounds_what_is_not_quantized_onto_its_type(name: str, wide_llama: Path, tmp_path: Path) -> None:
    rules = [{"match": "down_proj", "value": name}, {"value": "q8_0"}]
    values = library_values(exported(wide_llama, tmp_path, type=rules))
    dense = open_checkpoint(wide_llama)
    source = dense.read("model.layers.0.mlp.down_proj.weight")
    assert isinstance(source, Tensor)
    kind, found = values["blk.0.ffn_down.weight"]
    assert kind == name and values["blk.0.attn_q.weight"][0] == "q8_0"
    relative = float((found - source).square().sum() / source.square().sum())
    assert relative < {"q2_k": 0.08, "q3_k": 0.025, "mxfp4": 0.015}.get(name, 0.006)


def test_a_file_of_k_quants_keeps_its_blocks(wide_llama: Path, tmp_path: Path) -> None:
    first = exported(wide_llama, tmp_path / "a", type=[{"match": "down_proj", "value": "q6_k"}, {"value": "q4_k"}])
    again = exported(first, tmp_path / "b")
    before, after = library_values(first), library_values(again)
    assert before.keys() == after.keys()
    assert all(kind == after[name][0] and torch.equal(value, after[name][1]) for name, (kind, value) in before.items())


@pytest.mark.parametrize("passes", [
    [{"gptq": {"format": "q4_k", "correct": True, "tune": True}}],
    [{"awq": {"format": "q4_k", "include": ["q_proj", "k_proj", "v_proj"]}}, {"gptq": {"format": "q6_k"}}],
    [{"rtn": {"format": "q3_k", "search": "inputs"}}],
])  # fmt: skip
def test_every_solver_runs_on_them(
    passes: list[dict[str, Any]], wide_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    data = {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}
    kinds = {kind for kind, _ in library_values(exported(wide_llama, tmp_path, data, *passes)).values()}
    assert next(iter(passes[-1].values()))["format"] in kinds


def test_a_mix_in_a_pass_and_in_an_export_choose_alike(wide_llama: Path, tmp_path: Path) -> None:
    """One layer: the first and last eighth of one are the last; so v and down are finer."""
    expected = {"attn_v": "q6_k", "ffn_down": "q6_k", "attn_q": "q4_k", "ffn_up": "q4_k", "attn_output": "q4_k"}
    quantized = exported(wide_llama, tmp_path / "a", {"rtn": {"format": "q4_k_m"}})
    rounded = exported(wide_llama, tmp_path / "b", type="q4_k_m")
    for file in (quantized, rounded):
        kinds = {name: kind for name, (kind, _) in library_values(file).items()}
        assert {stem: kinds[f"blk.0.{stem}.weight"] for stem in expected} == expected
    assert rounded.name.endswith("-Q4_K_M.gguf") and library_values(rounded)["token_embd.weight"][0] == "q6_k"
    fields = gguf.GGUFReader(rounded).fields
    assert int(fields["general.file_type"].contents()) == gguf.LlamaFileType.MOSTLY_Q4_K_M


def test_a_mix_heeds_whether_errors_are_weighed(
    wide_llama: Path, corpus: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    """IQ4_NL has its guard in the first eighth of the layers only without data; Q8_0 and Q4_0 differ in the output."""
    config = LlamaConfig.from_pretrained(wide_llama)
    config.num_hidden_layers = 8
    model = make_model(tmp_path / "deep", "llama", config=config)
    data = {"calibrate": {"data": str(corpus), "samples": 1, "seq_len": 8}}
    solver = {"rtn": {"format": "IQ4_NL", "search": "inputs"}}
    found = {}
    for name, steps in {"weighed": [data, solver], "plain": [{"rtn": {"format": "IQ4_NL"}}]}.items():
        steps = [*steps, {"export": {"dialect": "gguf", "type": "Q4_0"}}]
        planned = plan(build(Document("types", {"model": str(model), "passes": steps}, {})))
        found[name] = planned.artifacts[0].bytes
    assert found["plain"] - found["weighed"] == 256 * 512 * (176 / 256 - 18 / 32)
    # So does an export of what is not quantized, and its plan.
    exporting = {"export": {"dialect": "gguf", "type": "IQ4_NL"}}
    for name, steps in {"weighed": [data, exporting], "plain": [exporting]}.items():
        planned = plan(build(Document("types", {"model": str(model), "passes": steps}, {})))
        found[name] = planned.artifacts[0].bytes
    assert found["plain"] - found["weighed"] == 256 * 512 * (176 / 256 - 18 / 32)
    kinds = {name: kind for name, (kind, _) in library_values(exported(model, tmp_path, data, type="IQ4_NL")).items()}
    assert kinds["blk.0.ffn_down.weight"] == "iq4_nl"


def test_substitutes_are_counted_and_said_by_the_plan_and_the_run(tiny_llama: Path, tmp_path: Path) -> None:
    """Rows of 64 and 128 columns: no super-blocks."""
    steps = [{"rtn": {"format": "q4_k"}}, {"export": {"dialect": "gguf", "type": "q6_k"}}]
    recipe = build(Document("types", {"model": str(tiny_llama), "passes": steps}, {}))
    listening = Listening()
    planned = plan(recipe, reporter=listening)
    assert listening.notes == [
        "rtn: 12 matrices in q5_0, not q4_k: 64 columns are no super-blocks (5.5 bits per weight, not 4.5)",
        "rtn: 2 matrices in q5_0, not q4_k: 128 columns are no super-blocks (5.5 bits per weight, not 4.5)",
    ]
    said = "1 matrix in q8_0, not q6_k: 64 columns are no super-blocks (8.5 bits per weight, not 6.56)"
    assert said in planned.artifacts[0].notes
    report = run(recipe, tmp_path / "out")
    assert f"gguf-q6_k: {said}" in report.notes
    kinds = Counter(kind for kind, _ in library_values(only_file(report.artifacts[0].path)).values())
    assert (kinds["q5_0"], kinds["q8_0"]) == (14, 1)


@pytest.mark.parametrize(
    "steps",
    [
        [{"rtn": {"format": "q4_k", "strict": True}}, {"export": {"dialect": "gguf"}}],
        [{"export": {"dialect": "gguf", "type": "q4_k_m", "strict": True}}],
    ],
)
def test_strict_refuses_substitutes(steps: list[dict[str, Any]], tiny_llama: Path) -> None:
    with pytest.raises(RefusedError, match="super-blocks") as refused:
        plan(build(Document("types", {"model": str(tiny_llama), "passes": steps}, {})))
    assert "llama.cpp takes q" in str(refused.value.hint)


def test_an_export_weighs_what_it_rounds_where_calibration_ran(wide_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """By text, and by an imatrix of that text: the very blocks that rtn makes of them, and not those without."""
    text = {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}
    with_text = exported(wide_llama, tmp_path / "a", text, {"imatrix": {}}, type="q4_k_m")
    matrix = {"calibrate": {"imatrix": str(tmp_path / "a" / "imatrix.gguf")}}
    with_matrix = exported(wide_llama, tmp_path / "b", matrix, type="q4_k_m")
    by_rtn = exported(
        wide_llama, tmp_path / "c", matrix, {"rtn": {"format": "q4_k_m", "search": "inputs"}}, type="q6_k"
    )
    without = exported(wide_llama, tmp_path / "d", type="q4_k_m")
    a, b, c, d = (library_values(file) for file in (with_text, with_matrix, by_rtn, without))
    linears = [name for name in a if name.startswith("blk") and "norm" not in name]
    assert len(linears) == 7 and all(a[name][0] == d[name][0] for name in a)
    for name in linears:
        assert torch.equal(a[name][1], b[name][1]) and torch.equal(a[name][1], c[name][1])
        assert not torch.equal(a[name][1], d[name][1])
    assert torch.equal(a["token_embd.weight"][1], d["token_embd.weight"][1])
    recipe = {"model": str(wide_llama), "passes": [text, {"export": {"dialect": "gguf", "type": "q4_k_m"}}]}
    weighed, plain = (plan(build(Document("t", {**recipe, "passes": recipe["passes"][at:]}, {}))) for at in (0, 1))
    assert weighed.artifacts[0].bytes == plain.artifacts[0].bytes == without.stat().st_size
    assert weighed.stages[-1].forwards > plain.stages[-1].forwards == 0


def test_an_expert_that_was_not_reached_is_rounded_beside_the_others_and_named(
    make_model: MakeModel, corpus: Path, tmp_path: Path
) -> None:
    listening, config = Listening(), CONFIGS["qwen3_moe"](1)
    config.norm_topk_prob = True  # as llama.cpp computes
    steps = [
        {"calibrate": {"data": str(corpus), "samples": 1, "seq_len": 2}},
        {"export": {"dialect": "gguf", "type": "q5_0"}},
    ]
    recipe = {"model": str(make_model(tmp_path / "moe", "qwen3_moe", config=config)), "passes": steps}
    report = run(build(Document("types", recipe, {})), tmp_path / "out", reporter=listening)
    (said,) = (line for line in listening.notes if "rounded without data" in line)
    assert 4 * 3 <= said.count(".experts.") < 8 * 3 and "self_attn" not in said
    assert library_values(only_file(report.artifacts[0].path))["blk.0.ffn_down_exps.weight"][0] == "q5_0"


def test_a_type_whose_capitals_mean_a_mix_is_told_apart(make_model: MakeModel, corpus: Path, tmp_path: Path) -> None:
    """With calibration, Q4_0 has the first eighth of the second feed-forward matrices in Q4_1."""
    model = make_model(tmp_path / "model", "llama", 8)
    calibrate = {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 16}}
    for kind, said in (("q4_0", "q4_0 is one type for all"), ("Q4_0", "Q4_0 is llama.cpp's mix"), ("q8_0", None)):
        reporter = Listening()
        steps = [calibrate, {"gptq": {"format": kind}}, {"export": {"dialect": "gguf", "type": "f16"}}]
        plan(build(Document("types", {"model": str(model), "passes": steps}, {})), reporter=reporter)
        notes = [note for note in reporter.notes if note.startswith("gptq: format:")]
        assert len(notes) == (said is not None) and all(str(said) in note for note in notes)
