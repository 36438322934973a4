"""Every family to GGUF and back: names as gguf-py has them, values as its reader reads them, config.json as it was."""

from __future__ import annotations

from pathlib import Path

import gguf as library
import pytest
import torch
from gguf_families import FAMILIES, config_of, lively
from torch import Tensor
from transformers import AutoConfig

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError
from compress.formats.files.storage import parse_json
from compress.formats.gguf.config import dims_of, write_config
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.families import dense, experts, older, parts
from compress.formats.gguf.families.table import BY_MODEL_TYPE, named
from compress.formats.gguf.names import EXPERT, Architecture
from compress.formats.gguf.witness import read_with_library
from compress.kernels.qtensor import QTensor
from compress.passes.model.blank import fitted

ALL = [*dense.FAMILIES, *older.FAMILIES, *experts.FAMILIES]
# What is a default there is said here; a Mistral without windows is a Llama.
RESAID = {"_name_or_path", "dtype", "model_type", "architectures", "rope_parameters", "n_inner", "ffn_hidden_size"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, make_tokenizer_files: dict[str, bytes]) -> dict[str, Path]:
    """Every family's tiny model in a Hugging Face directory, by name."""
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp("family")
        lively(config_of(family)).save_pretrained(found[family])
        for name, data in make_tokenizer_files.items():
            (found[family] / name).write_bytes(data)
    return found


def write(model: Checkpoint, directory: Path, kind: str) -> Checkpoint:
    directory.mkdir()
    GGUF(type=kind).write(model, directory, lambda name: None)
    return GGUF.open(directory)


def values(model: Checkpoint, name: str) -> Tensor:
    tensor = model.read(name)
    return tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_equal(family: str, stored: dict[str, Path], tmp_path: Path) -> None:
    source = open_checkpoint(stored[family])
    again = write(source, tmp_path / "out", "f32")
    as_matrices, _ = fitted(source)
    back, _ = fitted(again)
    assert set(back.spec.tensors) == set(as_matrices.spec.tensors)
    for name in back.spec.tensors:
        torch.testing.assert_close(values(back, name), values(as_matrices, name), rtol=0, atol=3e-7)
    (tmp_path / "config.json").write_bytes(again.files()["config.json"])
    before, after = (AutoConfig.from_pretrained(path).to_dict() for path in (stored[family], tmp_path))
    assert {key: after.get(key) for key in before if key not in RESAID} == {
        key: value for key, value in before.items() if key not in RESAID
    }
    for key, value in (before.get("rope_parameters") or {}).items():
        assert after["rope_parameters"][key] == value


@pytest.mark.parametrize("family", FAMILIES)
def test_the_library_reads_the_same_of_blocks(family: str, stored: dict[str, Path], tmp_path: Path) -> None:
    """q8_0 keeps the experts' codes apart; halves of a matrix come back as one."""
    again = write(open_checkpoint(stored[family]), tmp_path / "out", "q8_0")
    witness = read_with_library(next((tmp_path / "out").iterdir()))
    quantized = [name for name, spec in again.spec.tensors.items() if spec.format]
    assert len(quantized) > 6
    for name in again.spec.tensors:
        assert torch.equal(witness(name), values(again, name)), name
    twice = write(again, tmp_path / "twice", "f16")
    for name in quantized:
        assert torch.equal(values(twice, name), values(again, name)), name


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.model_type)
def test_names_are_those_of_gguf_py(family: Architecture) -> None:
    kind = next(kind for kind, known in library.MODEL_ARCH_NAMES.items() if known == family.name)
    names = library.get_tensor_name_map(kind, 2)
    slots = [(slot, "", "") for slot in family.top]
    slots += [(slot, "blk.0.", f"{family.block_prefix}.0.") for slot in family.block]
    for slot, prefix, path in slots:
        for stem in filter(None, (slot.hf, slot.also)):
            known = names.get_name(f"{path}{stem.replace(f'{EXPERT}.', '')}")
            assert known == f"{prefix}{slot.gguf}" or (slot.stack and known is None)


def test_families_are_told_apart_by_name_and_by_experts() -> None:
    mixtral, llama = named("llama", experts=True), named("llama", experts=False)
    assert mixtral and mixtral.model_type == "mixtral" and llama and llama.model_type == "llama"
    assert named("gemma3", experts=False) is BY_MODEL_TYPE["gemma3_text"]
    assert named("bert", experts=False) is None
    assert {slot.gguf for slot in parts.block()} < {slot.gguf for slot in BY_MODEL_TYPE["qwen3"].block}


@pytest.mark.parametrize(
    ("family", "changed", "said"),
    [
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("gemma3_text", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar"),
        ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 3}, "every 6th"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen2_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
        ("falcon", {"alibi": True}, "alibi"),
        ("phi3, longrope", {"partial_rotary_factor": 1.0, "rope_parameters": {
            "rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "LongRoPE"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, changed: dict[str, object], said: str) -> None:
    config = {**config_of(family).to_dict(), **changed}
    assert dims_of(config).layers
    with pytest.raises(RefusedError, match=said):
        write_config(config)


def test_experts_of_different_types_are_refused_by_name(stored: dict[str, Path], tmp_path: Path) -> None:
    again = write(open_checkpoint(stored["mixtral"]), tmp_path / "out", "q8_0")
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    tensors = {**again.spec.tensors, name: type(again.spec.tensors[name])((64, 128), "float32")}
    again.spec = type(again.spec)(again.spec.config, tensors, again.files())
    with pytest.raises(RefusedError, match="experts of a layer in one tensor"):
        GGUF().layout(again.spec)
    assert parse_json(again.files()["config.json"], "config.json")["num_local_experts"] == 4
