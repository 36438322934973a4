"""Tiny models of every family, written as GGUF by our own dialect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from compress.formats.base import Checkpoint
from compress.formats.gguf.dialect import GGUF
from compress.kernels.numbers.int import IntFormat

MakeModel = Callable[..., Path]
Write = Callable[..., Path]
Quantize = Callable[[Checkpoint, IntFormat], Checkpoint]
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
FAMILIES = ("llama", "qwen3", "gpt_neox")


@pytest.fixture(scope="session")
def make_tokenizer_files(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tokenizer of 320 tokens as Hugging Face's files, by name."""
    made = make_model(tmp_path_factory.mktemp("tokenizer") / "llama", "llama", layers=1)
    return {path.name: path.read_bytes() for path in made.glob("*token*")}


@pytest.fixture
def sizes() -> dict[str, Any]:
    """Of a tiny model's config."""
    return SIZES


@pytest.fixture(params=[*FAMILIES, *EXTRA])
def kind(request: pytest.FixtureRequest) -> str:
    """Every model that `make` makes, one after the other."""
    return str(request.param)


@pytest.fixture
def make(make_model: MakeModel, tmp_path: Path) -> Callable[[str], Path]:
    """A tiny model by name."""

    def build(name: str) -> Path:
        return make_model(tmp_path / name, name, config=EXTRA[name]() if name in EXTRA else None)

    return build


@pytest.fixture
def quantized_decoder(in_memory: Callable[[Checkpoint, dict[str, IntFormat]], Checkpoint]) -> Quantize:
    """quantized_decoder(checkpoint, format): every matrix of the decoder rounded to that format."""

    def quantize_decoder(model: Checkpoint, number_format: IntFormat) -> Checkpoint:
        matrices = [name for name, spec in model.spec.tensors.items() if len(spec.shape) == 2]
        return in_memory(model, {name: number_format for name in matrices if "layers" in name})

    return quantize_decoder


@pytest.fixture
def write() -> Write:
    """write(model, directory, **options of the dialect) → the directory, after a look at its files."""

    def export(model: Checkpoint, directory: Path, **options: Any) -> Path:
        directory.mkdir(parents=True)
        dialect = GGUF(**options)
        told: list[str] = []
        dialect.write(model, directory, told.append)
        layout = dialect.layout(replace(model.spec, files=model.files()))
        assert sorted(path.name for path in directory.iterdir()) == [plan.name for plan in layout.files]
        assert all((directory / plan.name).stat().st_size == plan.nbytes for plan in layout.files)
        assert set(told) >= set(model.spec.tensors) - {"lm_head.weight"}
        return directory

    return export
