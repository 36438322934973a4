"""bitsandbytes and transformers themselves, on the CPU: equal bytes, equal values, equal logits, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.bitsandbytes.dialect import BitsAndBytes
from compress.formats.bitsandbytes.tensors import encode
from compress.kernels.numbers.codebook import CodebookFormat, quantize_plainly
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.nested_scales import dynamic_map, nest
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.qtensor import QTensor, quantize

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install compress-llm[dev]")
pytest.importorskip("accelerate")

from bitsandbytes import functional
from transformers import BitsAndBytesConfig

TABLES = [(table, double) for table in ("nf4", "fp4") for double in (False, True)]
FORMATS = [
    CodebookFormat("nf4"),
    CodebookFormat("nf4", 64, True),
    CodebookFormat("fp4"),
    CodebookFormat("fp4", 64, True),
]


def ignore(_: str) -> None:
    pass


def weights(columns: int = 512) -> torch.Tensor:
    """Sequences of every size: zeros, ties, the smallest normal floats, values that float16 holds."""
    weight = torch.randn(40, columns, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[3, : columns // 2] = 0
    weight[5] *= 1e-30
    weight[6] *= 1e-38
    weight[7] = weight[7].half().float()
    weight[8] = (weight[8] * 100).round() / 128
    return weight


@pytest.mark.parametrize(("table", "double"), TABLES)
@pytest.mark.parametrize("block_size", [32, 64, 128, 256])
def test_bytes_and_values_equal_those_of_its_quantizer(table: str, double: bool, block_size: int) -> None:
    packed, state = functional.quantize_4bit(
        weights(), blocksize=block_size, quant_type=table, compress_statistics=double
    )
    number_format = CodebookFormat(table, block_size, double)  # type: ignore[arg-type]
    ours = quantize_plainly(weights(), number_format)
    made = encode(ours, "float32")
    theirs = {"weight": packed} | {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    assert made.keys() == theirs.keys()
    for name, tensor in made.items():
        if "quant_state" in name:
            assert bytes(tensor.numpy()).rstrip(b" ") == bytes(theirs[name].numpy())
        else:
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert torch.equal(ours.dequantize(), functional.dequantize_4bit(packed, state))


def test_nested_scales_equal_its_own_over_a_million_values() -> None:
    assert torch.equal(dynamic_map(torch.device("cpu")), functional.create_dynamic_map())
    scales = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) ** 3
    codes, nested, offset = nest(scales)
    theirs, state = functional.quantize_blockwise(scales - scales.mean(), blocksize=256)
    assert torch.equal(codes, theirs) and torch.equal(nested, state.absmax) and offset == scales.mean()


def test_int8_codes_and_values_equal_its_own() -> None:
    weight = weights().half()
    weight[5:7] = 0
    codes, scale, _ = functional.int8_vectorwise_quant(weight.clone())
    number_format = RowInt8Format()
    ours = quantize(weight.float(), number_format, number_format.fit(weight.float()))
    live = scale > 0  # what it makes of 0/0 is not defined
    made = encode(ours, "float16")
    assert torch.equal(made["weight"][live], codes[live]) and torch.equal(made["SCB"], scale)
    assert torch.equal(ours.dequantize()[live], functional.int8_vectorwise_dequant(codes, scale)[live])


def test_int8_may_hold_minus_128_and_negative_scales() -> None:
    """All 256 codes and either sign go through its own matrix product."""
    codes = torch.arange(256).byte().repeat(32, 1)
    scale = torch.linspace(-0.01, 0.01, 32).half().view(-1, 1)
    weight = QTensor(IntFormat(8, -1), codes, {"scale": scale})
    made = encode(weight, "float16")
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)).half()
    rounded, row_scale, _ = functional.int8_vectorwise_quant(x.clone())
    found = functional.int8_mm_dequant(
        functional.int8_linear_matmul(rounded, made["weight"]), row_scale, made["SCB"]
    ).float()
    meant = (rounded.float() * row_scale.view(-1, 1) / 127) @ weight.dequantize().T
    assert torch.allclose(found, meant, rtol=2e-3, atol=1e-3)


@pytest.fixture
def llama(tmp_path: Path, make_model: Any) -> Path:
    path: Path = make_model(tmp_path / "llama", "llama")
    return path


def linears(path: Path) -> list[str]:
    return [
        name for name, spec in open_checkpoint(path).spec.tensors.items() if ".layers." in name and len(spec.shape) == 2
    ]


def logits(model: torch.nn.Module) -> torch.Tensor:
    # In training mode bitsandbytes decodes weights as they are stored; else some CPUs take scales in bfloat16.
    model.train()
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(48).unsqueeze(0)).logits
    return out


def assert_close(found: torch.Tensor, meant: torch.Tensor) -> None:
    """Equal but for the order and place of roundings in float32."""
    assert float((found - meant).abs().max()) < 1e-5 * float(meant.abs().max())


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_transformers_computes_our_logits_from_our_files(
    llama: Path, tmp_path: Path, in_memory: Any, format_: CodebookFormat
) -> None:
    names = linears(llama)
    names.remove("model.layers.1.mlp.up_proj.weight")  # one stays dense, and transformers must be told so
    model = in_memory(open_checkpoint(llama), dict.fromkeys(names, format_))
    (tmp_path / "ours").mkdir()
    BitsAndBytes(dtype="float32").write(model, tmp_path / "ours", ignore)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    kinds = {name: type(module).__name__ for name, module in theirs.named_modules()}
    assert kinds["model.layers.0.mlp.up_proj"] == "Linear4bit" and kinds["model.layers.1.mlp.up_proj"] == "Linear"
    ours = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    ours.load_state_dict({name: model.read(name).dequantize() for name in names}, strict=False)
    assert torch.equal(logits(theirs), logits(ours))


@pytest.mark.parametrize("format_", [IntFormat(8, -1), RowInt8Format()], ids=lambda f: f.name)
def test_transformers_decodes_our_int8_files_to_our_values(
    llama: Path, tmp_path: Path, in_memory: Any, format_: Any
) -> None:
    model = in_memory(open_checkpoint(llama), dict.fromkeys(linears(llama), format_))
    (tmp_path / "ours").mkdir()
    BitsAndBytes(dtype="float32").write(model, tmp_path / "ours", ignore)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    ours.load_state_dict({name: model.read(name).dequantize() for name in model.formats}, strict=False)
    assert_close(logits(theirs), logits(ours))
    decoded = theirs.dequantize(dtype=torch.float32)
    for name in model.formats:
        expected = model.read(name).dequantize()
        assert torch.allclose(decoded.get_parameter(name), expected, rtol=1e-6, atol=0)
    assert_close(logits(decoded), logits(ours))


SAVED = {
    **{f"{table} {double}": {"load_in_4bit": True, "bnb_4bit_quant_type": table, "bnb_4bit_use_double_quant": double}
       for table, double in TABLES},
    "int8": {"load_in_8bit": True},
}  # fmt: skip


@pytest.mark.parametrize("case", SAVED)
def test_what_transformers_saves_is_read_to_the_same_values(llama: Path, tmp_path: Path, case: str) -> None:
    config = BitsAndBytesConfig(**SAVED[case])
    theirs = AutoModelForCausalLM.from_pretrained(llama, quantization_config=config, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    opened, witness = open_checkpoint(tmp_path / "theirs"), BitsAndBytes.witness(tmp_path / "theirs")
    assert opened.dialect == "bitsandbytes"
    decoded = theirs.dequantize(dtype=torch.float32)
    for name in linears(llama):
        found = opened.read(name)
        assert isinstance(found, QTensor)
        assert torch.equal(found.dequantize(), decoded.get_parameter(name))
        assert torch.allclose(witness(name), found.dequantize(), rtol=1e-6, atol=0)
    again = tmp_path / "again"
    again.mkdir()
    BitsAndBytes(dtype="float32").write(opened, again, ignore)
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "theirs", again))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if "quant_state" in name:
            assert json.loads(bytes(tensor.numpy())) == json.loads(bytes(after[name].numpy()))
        else:
            assert torch.equal(tensor, after[name]), name
