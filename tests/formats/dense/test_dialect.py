"""Hugging Face directories: opening, refusals, what an artifact carries, and what transformers loads."""

import json
import os

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from compress.formats import dialects, open_checkpoint
from compress.formats.base import TensorSpec
from compress.formats.dense.dialect import Dense
from compress.formats.errors import InputError, RefusedError
from compress.kernels.numbers.int import IntFormat

CONFIG = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
# The source's config as an older generation of transformers wrote it, in an order of its own.
SOURCE_CONFIG = {
    "model_type": "llama", "torch_dtype": "bfloat16", "architectures": ["LlamaForCausalLM"], **CONFIG,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def ignore(_):
    pass


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**CONFIG, tie_word_embeddings=False)).bfloat16().eval()


@pytest.fixture
def source(tmp_path, model):
    directory = tmp_path / "source"
    directory.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              directory / "model.safetensors", {"format": "pt"})  # fmt: skip
    (directory / "config.json").write_text(json.dumps(SOURCE_CONFIG))
    return directory


def target(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def quantized(source, in_memory):
    """quantized(number format) → the source with its linear layers in that format."""

    def make(number_format):
        checkpoint = open_checkpoint(source)
        linear = [name for name in checkpoint.spec.tensors if name.endswith("proj.weight")]
        return in_memory(checkpoint, dict.fromkeys(linear, number_format))

    return make


def test_opening_reads_headers_and_tensors(source, model):
    checkpoint = open_checkpoint(source)
    assert checkpoint.dialect == "dense"
    assert checkpoint.spec.config == SOURCE_CONFIG
    assert checkpoint.nbytes() == (source / "model.safetensors").stat().st_size
    for name, tensor in model.state_dict().items():
        assert checkpoint.spec.tensors[name] == TensorSpec(tuple(tensor.shape), "bfloat16")
        assert torch.equal(checkpoint.read(name), tensor)


def test_an_export_without_options_is_the_source(tmp_path, source):
    out = target(tmp_path)
    seen = []
    Dense().write(open_checkpoint(source), out, seen.append)
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert load_file(out / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    assert sorted(seen) == sorted(open_checkpoint(source).spec.tensors)


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_layout_is_exact_and_transformers_loads_the_values(tmp_path, source, model, dtype, shard_size):
    out = target(tmp_path)
    checkpoint = open_checkpoint(source)
    dialect = Dense(dtype=dtype, max_shard_size=shard_size)
    layout = dialect.layout(checkpoint.spec)
    dialect.write(checkpoint, out, ignore)
    for file in layout.files:
        assert (out / file.name).stat().st_size == file.nbytes
    assert {path.name for path in out.iterdir()} == {file.name for file in layout.files} | {"config.json"}
    assert len(layout.files) == (1 if shard_size == "5GB" else len(list(out.glob("model-*.safetensors"))) + 1)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert loaded.dtype == getattr(torch, dtype or "bfloat16")
    witness = Dense.witness(out)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(loaded.dtype))
        assert torch.equal(witness(name), tensor.to(loaded.dtype).float())
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=loaded.dtype)
    tokens = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, reference(tokens).logits)


def test_only_what_changed_is_changed_in_the_config(tmp_path, source):
    config = {
        **SOURCE_CONFIG,
        "quantization_config": None,
        "_attn_implementation": "evil",
        "dtype": "bfloat16",
    }
    (source / "config.json").write_text(json.dumps(config))
    out = target(tmp_path)
    Dense(dtype="float16").write(open_checkpoint(source), out, ignore)
    written = json.loads((out / "config.json").read_bytes())
    assert list(written.items()) == list({**SOURCE_CONFIG, "torch_dtype": "float16", "dtype": "float16"}.items())


def test_an_artifact_carries_every_file_but_weights_code_and_card(tmp_path, source):
    carried = {
        "tokenizer.json": b"{}", "tokenizer_config.json": b'{"a": 1}', "tokenizer.model": bytes(range(256)),
        "generation_config.json": b"{ }", "chat_template.jinja": b"{{ x }}", "merges.txt": b"a b\r\n",
        "vocab.json": b"{}", "LICENSE": b"free", "NOTICE.md": b"n", "preprocessor_config.json": b"{}",
    }  # fmt: skip
    left = {
        "README.md": b"card", "modeling.py": b"import os", "model.bin": b"", "weights.index.json": b"{}",
        "optimizer.pt": b"", "compress.json": b"{}",
    }  # fmt: skip
    for name, data in {**carried, **left}.items():
        (source / name).write_bytes(data)
    (source / "tokenizer.json").rename(tmp_path / "blob")
    (source / "tokenizer.json").symlink_to(tmp_path / "blob")
    (source / "folder.json").mkdir()
    assert open_checkpoint(source).files() == {
        **carried,
        "config.json": (source / "config.json").read_bytes(),
    }
    out = target(tmp_path)
    Dense().write(open_checkpoint(source), out, ignore)
    assert {path.name for path in out.iterdir()} == {*carried, "config.json", "model.safetensors"}
    assert all((out / name).read_bytes() == data for name, data in carried.items())
    assert not any(path.is_symlink() for path in out.iterdir())


def test_a_fifo_among_the_files_is_an_input_error(source):
    os.mkfifo(source / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a regular file"):
        open_checkpoint(source).files()


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_what_would_round_decoded_values_is_refused(quantized, dtype):
    with pytest.raises(RefusedError, match=r"proj\.weight.*dtype: float32"):
        Dense(dtype=dtype).layout(quantized(IntFormat(4, 16)).spec)


@pytest.mark.parametrize("zero", ["middle", "integer", "real"])
def test_decoded_values_are_exact_in_float32(tmp_path, quantized, zero):
    out = target(tmp_path)
    model = quantized(IntFormat(3, 16, zero))
    dialect = Dense(dtype="float32")
    assert "14 quantized tensors" in dialect.layout(model.spec).notes[0]
    dialect.write(model, out, ignore)
    loaded = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(loaded[name], model.read(name).dequantize())
    assert json.loads((out / "config.json").read_bytes())["torch_dtype"] == "float32"


def test_a_value_beyond_float16_is_refused_by_name(tmp_path, source):
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefusedError, match=r"model\.norm\.weight"):
        Dense(dtype="float16").write(open_checkpoint(source), target(tmp_path), ignore)


def test_nan_weights_are_input_errors_by_name_and_index(source):
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][2, 7] = float("nan")
    save_file(tensors, source / "model.safetensors")
    checkpoint = open_checkpoint(source)
    with pytest.raises(InputError, match=r"up_proj.*\[2, 7\]"):
        checkpoint.read("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "auto_map"),
        ({"text_config": {"auto_map": {"AutoConfig": "evil.Config"}}}, "auto_map"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"hidden_size": 1 << 18}, "hidden_size"),
        ({"text_config": {"vocab_size": 1 << 40}}, "vocab_size"),
        ({"quantization_config": [1]}, "quantization"),
        ({"quantization_config": {"quant_method": "exl3"}}, "method 'exl3'"),
    ],
)
def test_hostile_configs_are_input_errors(source, change, message):
    (source / "config.json").write_text(json.dumps({**SOURCE_CONFIG, **change}))
    with pytest.raises(InputError, match=message):
        open_checkpoint(source)


@pytest.mark.parametrize("text", [b"[]", b"", b"{", b"[" * 100_000, b'{"a": 1, "a": 2}', b" " * (5 << 20)])
def test_malformed_configs_are_input_errors(source, text):
    (source / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=r"config\.json"):
        open_checkpoint(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such file"),
        ("model.bin", "pickles are never loaded"),
        ("model.pth", "pickles are never loaded"),
        ("model.safetensors", "weights only"),
        ("notes.txt", "not a checkpoint"),
    ],
)
def test_other_paths_are_input_errors_that_say_what_to_do(tmp_path, name, message):
    if name != "missing":
        (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(tmp_path / name)
    assert caught.value.hint


def test_directories_without_a_model_say_what_they_hold(tmp_path, source):
    with pytest.raises(InputError, match=r"no config\.json \(it holds source\)"):
        open_checkpoint(tmp_path)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickles are never loaded"):
        open_checkpoint(source)
    (source / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"0 \.safetensors files"):
        open_checkpoint(source)


def test_dialects_are_found_by_name_and_options_are_strict():
    assert dialects()["dense"] is Dense
    assert all(cls.name == name and cls.__doc__ for name, cls in dialects().items())
    with pytest.raises(ValidationError):
        Dense(dtype="int8")
    with pytest.raises(ValidationError):
        Dense(max_shard_size=0)
