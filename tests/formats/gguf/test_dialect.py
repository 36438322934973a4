"""Whole models to GGUF and back. Judges: gguf-py's reader, names and constants, and transformers' configs.

That llama.cpp loads and computes them is shown in tests/conformance/test_llama_cpp.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as library
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint, ModelSpec, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.config import dims_of
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.file import GGUFFile, gguf_file
from compress.formats.gguf.names import ARCHITECTURES
from compress.formats.gguf.rope import llama3_factors, llama3_rope, rope_of
from compress.formats.options import Match
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize
from compress.passes.export import Export
from compress.recipes.engines.verdicts import loading_lines

MakeModel = Callable[..., Path]
SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
EXTRA: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama3": lambda: LlamaConfig(
        **SIZES, head_dim=32, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5
    ),
    "yarn": lambda: LlamaConfig(**SIZES, rope_parameters=YARN),
    "linear": lambda: LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 20000.0, "factor": 2.0}
    ),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
}
INT8 = IntFormat(8, 32)
FAMILIES = ("llama", "qwen3", "gpt_neox")


@pytest.fixture
def make(make_model: MakeModel, tmp_path: Path) -> Callable[[str], Path]:
    """A tiny model by name, with biases and norms that are not all zeros and ones."""

    def build(name: str) -> Path:
        directory = make_model(tmp_path / name, name if name in FAMILIES else "llama")
        config = AutoConfig.from_pretrained(directory) if name in FAMILIES else EXTRA[name]()
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(directory)
        return directory

    return build


class Held(Checkpoint):
    """A checkpoint in memory."""

    dialect = "held"

    def __init__(self, model: Checkpoint, tensors: Mapping[str, Tensor | QTensor]) -> None:
        self.path, self._model, self._tensors = model.path, model, tensors
        specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
        self.spec = ModelSpec(model.spec.config, specs, model.files())

    def read(self, name: str) -> Tensor | QTensor:
        return self._tensors[name]

    def files(self) -> Mapping[str, bytes]:
        return self._model.files()

    def nbytes(self) -> int:
        return 0


def spec_of(tensor: Tensor | QTensor) -> TensorSpec:
    if isinstance(tensor, QTensor):
        return TensorSpec(tensor.shape, "float32", tensor.format)
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


Quantize = Callable[[Checkpoint, IntFormat], Checkpoint]


@pytest.fixture
def quantized(in_memory: Callable[[Checkpoint, dict[str, IntFormat]], Checkpoint]) -> Quantize:
    """quantized(checkpoint, format): every matrix of the decoder rounded to that format."""

    def quantize_decoder(model: Checkpoint, number_format: IntFormat) -> Checkpoint:
        matrices = [name for name, spec in model.spec.tensors.items() if len(spec.shape) == 2]
        return in_memory(model, {name: number_format for name in matrices if "layers" in name})

    return quantize_decoder


def write(model: Checkpoint, directory: Path, **options: Any) -> Path:
    directory.mkdir(parents=True)
    dialect = GGUF(**options)
    told: list[str] = []
    dialect.write(model, directory, told.append)
    layout = dialect.layout(replace(model.spec, files=model.files()))
    assert [path.name for path in directory.iterdir()] == [plan.name for plan in layout.files]
    assert gguf_file(directory).stat().st_size == layout.nbytes
    assert set(told) >= set(model.spec.tensors) - {"lm_head.weight"}
    return directory


def same(left: Tensor | QTensor, right: Tensor | QTensor) -> bool:
    if isinstance(left, QTensor) and isinstance(right, QTensor):
        params = all(torch.equal(left.params[name], right.params[name]) for name in left.params)
        return left.format == right.format and torch.equal(left.codes, right.codes) and params
    return isinstance(left, Tensor) and isinstance(right, Tensor) and torch.equal(left, right)


@pytest.mark.parametrize("name", [*FAMILIES, *EXTRA])
def test_a_model_comes_back_equal(name: str, make: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_checkpoint(make(name))
    directory = write(source, tmp_path / "out", type="f32")
    again, witness = open_checkpoint(directory), GGUF.witness(directory)
    assert again.dialect == "gguf"
    assert dict(again.spec.tensors) == dict(source.spec.tensors)
    for tensor in source.spec.tensors:
        assert same(again.read(tensor), source.read(tensor)), tensor
        assert same(witness(tensor), source.read(tensor)), tensor


@pytest.mark.parametrize("name", [*FAMILIES, *EXTRA])
def test_config_json_comes_back_in_both_generations(name: str, make: Callable[[str], Path], tmp_path: Path) -> None:
    original = make(name)
    files = open_checkpoint(write(open_checkpoint(original), tmp_path / "out", type="f32")).files()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "config.json").write_bytes(files["config.json"])
    before, after = (AutoConfig.from_pretrained(path).to_dict() for path in (original, tmp_path / "again"))
    for key in (
        "_name_or_path",
        "torch_dtype",
        "rope_theta",
        "rope_scaling",
        "rotary_pct",
        "rotary_emb_base",
    ):
        after.pop(key, None)
    before.pop("_name_or_path", None)
    assert {key: after.get(key) for key in before} == before
    # What transformers 4 reads instead of rope_parameters and dtype.
    old = json.loads(files["config.json"])
    rope = before["rope_parameters"]
    assert old["rope_theta"] == rope["rope_theta"] and old["torch_dtype"] == "float32"
    assert (old["rope_scaling"] is None) == (rope["rope_type"] == "default")
    if name == "gpt_neox":
        assert old["rotary_pct"] == rope["partial_rotary_factor"]
        assert old["rotary_emb_base"] == rope["rope_theta"]


def test_both_generations_of_config_json_are_read(make: Callable[[str], Path]) -> None:
    new = open_checkpoint(make("llama3")).spec.config
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "dtype")}
    scaling = {key: value for key, value in new["rope_parameters"].items() if key != "rope_theta"}
    old |= {"rope_theta": new["rope_parameters"]["rope_theta"], "rope_scaling": scaling}
    assert rope_of(old) == rope_of(new)
    assert rope_of({"rope_scaling": {"type": "linear", "factor": 2.0}}).kind == "linear"
    neox = {"rotary_pct": 0.5, "rotary_emb_base": 20000}
    assert (rope_of(neox, 0.25).partial, rope_of(neox, 0.25).theta) == (0.5, 20000.0)


def test_metadata_is_what_llama_cpp_asks_for(make: Callable[[str], Path], tmp_path: Path) -> None:
    directory = write(open_checkpoint(make("llama3")), tmp_path / "out")
    reader = library.GGUFReader(gguf_file(directory))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    keys = library.Keys
    expected = {
        keys.General.ARCHITECTURE: "llama",
        keys.General.FILE_TYPE: int(library.LlamaFileType.MOSTLY_F16),
        keys.General.QUANTIZATION_VERSION: library.GGML_QUANT_VERSION,
        keys.LLM.CONTEXT_LENGTH: 256,
        keys.LLM.EMBEDDING_LENGTH: 64,
        keys.LLM.BLOCK_COUNT: 2,
        keys.LLM.FEED_FORWARD_LENGTH: 128,
        keys.LLM.VOCAB_SIZE: 320,
        keys.Attention.HEAD_COUNT: 4,
        keys.Attention.HEAD_COUNT_KV: 2,
        keys.Attention.KEY_LENGTH: 32,
        keys.Attention.VALUE_LENGTH: 32,
        keys.Rope.DIMENSION_COUNT: 32,
        keys.Rope.FREQ_BASE: 500000.0,
        keys.Tokenizer.MODEL: "gpt2",
        keys.Tokenizer.PRE: "gpt-2",
        keys.Tokenizer.BOS_ID: 0,
        keys.Tokenizer.EOS_ID: 0,
        keys.Tokenizer.ADD_BOS: False,
    }
    assert {key: fields[key.format(arch="llama")] for key in expected} == expected
    assert fields[keys.Attention.LAYERNORM_RMS_EPS.format(arch="llama")] == pytest.approx(1e-5)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {kinds["token_embd.weight"], kinds["blk.0.ffn_up.weight"]} == {"F16"}
    assert {kinds["blk.0.attn_norm.weight"], kinds["blk.0.attn_q.bias"], kinds["rope_freqs.weight"]} == {"F32"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_are_those_of_gguf_py(name: str) -> None:
    family = ARCHITECTURES[name]
    kind = next(kind for kind, known in library.MODEL_ARCH_NAMES.items() if known == name)
    names = library.get_tensor_name_map(kind, 2)
    config = {**SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}
    for place in family.places(dims_of(config), config):
        for spelling in place.hf:
            assert names.get_name(spelling, try_suffixes=(".weight", ".bias")) == place.gguf


def test_llama_3_factors_are_those_of_transformers() -> None:
    config = LlamaConfig(**SIZES, head_dim=64, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2).float() / 64)
    rope = rope_of(config.to_dict())
    factors = llama3_factors(rope, 64)
    torch.testing.assert_close(plain / factors, scaled, rtol=1e-5, atol=0)
    assert llama3_rope(500000.0, factors) == rope
    assert llama3_rope(500000.0, torch.ones(32)).kind == "default"
    with pytest.raises(InputError, match="rope_freqs"):
        llama3_rope(500000.0, factors.flip(0))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "number_format",
    [
        IntFormat(4, 32),
        IntFormat(4, 32, "real"),
        IntFormat(5, 32),
        IntFormat(5, 32, "real"),
        IntFormat(8, 32),
    ],
    ids=lambda value: value.name,
)
def test_quantized_weights_keep_codes_and_parameters(
    name: str, number_format: IntFormat, make: Callable[[str], Path], quantized: Quantize, tmp_path: Path
) -> None:
    model = quantized(open_checkpoint(make(name)), number_format)
    directory = write(model, tmp_path / "out", type="f32")
    again, witness = GGUF.open(directory), GGUF.witness(directory)
    for tensor in model.spec.tensors:
        stored = model.read(tensor)
        assert same(again.read(tensor), stored), tensor
        values = stored.dequantize() if isinstance(stored, QTensor) else stored
        assert torch.equal(witness(tensor), values), tensor
    # GGUF to GGUF changes nothing, down to the last byte.
    written = write(again, tmp_path / "again", type="f32")
    assert gguf_file(written).read_bytes() == gguf_file(directory).read_bytes()


def test_larger_groups_and_whole_zero_points_keep_their_values(
    make: Callable[[str], Path], quantized: Quantize, tmp_path: Path
) -> None:
    source = open_checkpoint(make("llama"))
    for at, number_format in enumerate((IntFormat(4, 64), IntFormat(3, -1), IntFormat(4, 32, "integer"))):
        model = quantized(source, number_format)
        witness = GGUF.witness(write(model, tmp_path / str(at)))
        for tensor in (name for name in model.spec.tensors if "layers" in name):
            stored = model.read(tensor)
            assert torch.equal(witness(tensor), stored.dequantize() if isinstance(stored, QTensor) else stored)


def test_dense_types_go_by_module_name(make: Callable[[str], Path], tmp_path: Path) -> None:
    rules = ({"match": "model.embed*", "value": "bf16"}, {"match": "*.down_proj", "value": "q8_0"})
    directory = write(open_checkpoint(make("llama")), tmp_path / "out", type=rules)
    tensors = GGUFFile(gguf_file(directory)).header.tensors
    assert tensors["token_embd.weight"].type is BLOCKS["bf16"]
    assert tensors["blk.1.ffn_down.weight"].type is BLOCKS["q8_0"]
    assert tensors["blk.1.ffn_up.weight"].type is BLOCKS["f16"]
    assert isinstance(GGUF(type=rules).type, tuple) and isinstance(GGUF(type=rules).type[0], Match)


def test_a_head_of_its_own_is_written_and_a_copy_is_not(make: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_checkpoint(make("llama"))
    tensors = {name: source.read(name) for name in source.spec.tensors}
    embedding = tensors["model.embed_tokens.weight"]
    assert isinstance(embedding, Tensor)
    copied = Held(source, {**tensors, "lm_head.weight": embedding})
    assert "lm_head.weight" not in GGUF.open(write(copied, tmp_path / "copied")).spec.tensors
    headed = Held(source, {**tensors, "lm_head.weight": quantize(embedding, INT8, INT8.fit(embedding))})
    again = GGUF.open(write(headed, tmp_path / "headed"))
    assert same(again.read("lm_head.weight"), headed.read("lm_head.weight"))
    assert again.spec.config["tie_word_embeddings"] is False


def test_weights_that_a_type_cannot_hold_are_refused_by_name(make: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_checkpoint(make("llama"))
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = {tensor: source.read(tensor) for tensor in source.spec.tensors}
    large = Held(source, {**tensors, name: torch.full((128, 64), 1e6)})
    (tmp_path / "out").mkdir()
    with pytest.raises(RefusedError, match=name):
        GGUF(type="f16").write(large, tmp_path / "out", lambda told: None)
    assert list((tmp_path / "out").iterdir()) == []


# Not qwen3: transformers takes every head of a Qwen3 in GGUF to be 128 wide. Not gpt_neox: it has no such family.
@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2"])
def test_transformers_reads_the_file_as_we_do(
    name: str, make: Callable[[str], Path], quantized: Quantize, tmp_path: Path
) -> None:
    directory = write(quantized(open_checkpoint(make(name)), INT8), tmp_path / "out", type="f32")
    ours, theirs = (
        GGUF.open(directory),
        AutoModelForCausalLM.from_pretrained(directory, gguf_file=gguf_file(directory).name),
    )
    for tensor, values in theirs.state_dict().items():
        if tensor in ours.spec.tensors:
            stored = ours.read(tensor)
            assert torch.equal(values, stored.dequantize() if isinstance(stored, QTensor) else stored)


def test_no_path_of_the_machine_is_written(make_model: MakeModel, tmp_path: Path) -> None:
    model = open_checkpoint(make_model(tmp_path / "source", "llama"))
    tensors = {name: model.read(name) for name in model.spec.tensors}
    held = Held(model, tensors)
    held.spec = replace(held.spec, config={**held.spec.config, "_name_or_path": "/home/someone/tiny/"})
    directory = write(held, tmp_path / "out")
    assert GGUFFile(gguf_file(directory)).header.metadata["general.name"].value == "tiny"
    assert GGUF.open(directory).spec.config["_name_or_path"] == "tiny"


@pytest.mark.parametrize(
    ("said", "called", "expected"),
    [
        ({}, "", "model-F16.gguf"),
        ({"_name_or_path": "org/SmolLM2-135M"}, "", "SmolLM2-135M-F16.gguf"),
        ({"_name_or_path": "org/other"}, "SmolLM2-135M", "SmolLM2-135M-F16.gguf"),
        ({"_name_or_path": "a model: näme"}, "", "a-model-n-me-F16.gguf"),
        ({"_name_or_path": "../.."}, "", "model-F16.gguf"),
    ],
)
def test_a_file_is_named_after_model_and_type(
    make: Callable[[str], Path], tmp_path: Path, said: Any, called: str, expected: str
) -> None:
    held = open_checkpoint(make("llama"))
    held.spec = replace(held.spec, config={**held.spec.config, **said}, name=called)
    directory = write(held, tmp_path / "out")
    assert [file.name for file in directory.iterdir()] == [expected]
    assert open_checkpoint(directory).dialect == "gguf"


def test_a_file_is_named_after_the_type_of_most_weights(
    make: Callable[[str], Path], quantized: Quantize, tmp_path: Path
) -> None:
    model = open_checkpoint(make("llama"))
    rules = ({"match": "*.mlp.*", "value": "q8_0"}, {"value": "f32"})
    assert gguf_file(write(model, tmp_path / "rules", type=rules)).name == "model-Q8_0.gguf"
    assert gguf_file(write(quantized(model, INT8), tmp_path / "int8", type="f32")).name == "model-Q8_0.gguf"


def test_the_lines_that_load_it_name_the_file(make: Callable[[str], Path], tmp_path: Path) -> None:
    lines = loading_lines(open_checkpoint(write(open_checkpoint(make("llama")), tmp_path / "out")))
    assert lines["llama.cpp"] == "llama-cli -m {path}/model-F16.gguf"


@pytest.mark.parametrize(
    ("option", "folder"), [({}, "gguf"), ({"type": "q8_0"}, "gguf-q8_0"), ({"type": "f16"}, "gguf-f16")]
)
def test_exports_of_different_types_go_to_different_folders(option: Any, folder: str) -> None:
    assert Export(dialect="gguf", **option).folder == folder
    assert Export(dialect="gguf", path="mine", **option).folder == "mine"


def test_an_export_of_mixed_types_says_so() -> None:
    rules = [{"match": "*.down_proj", "value": "q8_0"}, {"value": "q4_0"}]
    assert Export(dialect="gguf", type=rules).folder == "gguf-mixed"
