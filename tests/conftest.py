"""Shared fixtures: tiny random models as a stranger would download them, and the real SmolLM2."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from compress.kernels.qtensor import NumberFormat, Params

torch.set_num_threads(1)  # tiny models: a second thread only waits


def pytest_collection_finish() -> None:
    """What is imported and collected stays: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


TEXT = [
    "The quick brown fox jumps over the lazy dog, and 42 other things happened in 1987.",
    "def square(x: int) -> int:\n    return x * x\n",
    "Whereas recognition of the inherent dignity is the foundation of freedom, justice and peace.",
] * 40

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
# What distinguishes a family beyond its sizes: sliding windows that these rows are longer than, odd heads, biases.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32},
    "gemma3_text": {
        "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"sliding_window": 8, "pad_token_id": 0},
    "olmo2": {},
    "starcoder2": {"sliding_window": 8},
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": 0},
    "falcon": {"new_decoder_architecture": False},
    "falcon, new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, old": {"new_decoder_architecture": False, "alibi": True, "parallel_attn": False, "bias": True},
    "gpt2": {"n_positions": 256},
    "gptj": {"n_positions": 256, "rotary_dim": 8},
    "codegen": {"n_positions": 256, "n_ctx": 256, "rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32},
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "sliding_window": 8, "pad_token_id": 0,
    },
    "llama4_text": {
        "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 128, "head_dim": 16,
        "pad_token_id": 0, "no_rope_layers": [1, 0],
    },
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
# Its class says by a wrong name which part of it is below the head: it is quantized, but not trained.
REFUSED = "llama4_text"


def _config(family: str) -> Callable[[int], PreTrainedConfig]:
    return lambda layers: AutoConfig.for_model(
        family.partition(",")[0], **{**SIZES, "num_hidden_layers": layers, **FAMILIES[family]}
    )


CONFIGS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "llama": lambda layers: LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    ),
    "qwen3": lambda layers: Qwen3Config(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, tie_word_embeddings=False,
    ),
    "gpt_neox": lambda layers: GPTNeoXConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=256,
    ),
    **{family: _config(family) for family in FAMILIES},
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Files of tests need not outlive one, and waiting for the disk takes a small run as long as all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


def make_model(
    directory: Path,
    family: str,
    layers: int = 2,
    seed: int = 0,
    config: PreTrainedConfig | None = None,
    **options: object,
) -> Path:
    """A tiny random model of `family` or `config` in a Hugging Face directory, its weights large: logits differ.

    Norms and biases are random as well: their usual ones and zeros would hide what is done to them.
    """
    config = config or CONFIGS[family](layers)
    config.bos_token_id = config.eos_token_id = 0
    key = (type(config), config.to_json_string(use_diff=False), seed, repr(options))
    made = _MADE.get(key) or _MADE.setdefault(key, _made(config, seed, options))
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in made.files.items():
        (directory / name).write_bytes(content)
    torch.set_rng_state(made.random)
    return directory


class _Made(NamedTuple):
    """Files of a model by name, and torch's random state when it was made: as if it were made each time."""

    files: dict[str, bytes]
    random: torch.Tensor


_MADE: dict[tuple[object, ...], _Made] = {}


def _made(config: PreTrainedConfig, seed: int, options: Mapping[str, Any]) -> _Made:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
        else:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, **options)
        make_tokenizer().save_pretrained(folder)
        return _Made({path.name: path.read_bytes() for path in Path(folder).iterdir()}, torch.get_rng_state())


@pytest.fixture(params=["gpt_neox", "llama", "qwen3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every family of the first day, one after the other."""
    return str(request.param)


@pytest.fixture(params=[family for family in CONFIGS if family != REFUSED])
def every_family(request: pytest.FixtureRequest) -> str:
    """Every family that works, one after the other."""
    return str(request.param)


MakeModel = Callable[..., Path]


@pytest.fixture(name="make_model", scope="session")
def make_model_fixture() -> MakeModel:
    return make_model


@pytest.fixture
def environment() -> Mapping[str, str]:
    """Ours, with this process's way to the package: what other processes are started with."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def python(environment: Mapping[str, str]) -> Python:
    """python(code, *arguments, **variables of the environment) → what a process of its own said, and its exit code."""

    def run(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Path:
    return make_model(tmp_path / "tiny-llama", "llama")


@pytest.fixture
def corpus(tmp_path: Path, held_out: Path) -> Path:
    """Text to calibrate on; `held_out`, to measure on, lies beside it."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXT))
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Text of the same kind that calibration does not see."""
    path = tmp_path / "held_out.txt"
    path.write_text("\n".join(reversed(TEXT)))
    return path


@pytest.fixture
def chat_corpus(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    lines = [{"messages": [{"role": "user", "content": text}]} for text in TEXT]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@dataclass(frozen=True)
class Pairs(NumberFormat):
    """A toy: for every two weights of a row one of 24 × 24 pairs of multiples, which are more codes than a byte has.

    `asked` is the importance that it was last fitted with.
    """

    name = "toy pairs"
    levels = 24 * 24
    span = 2
    codes_dtype = torch.int16

    def columns_misfit(self, columns: int) -> str | None:
        return f"{columns} columns are no pairs" if columns % 2 else None

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"scale": ((shape[0], 1), "float32")}

    def _fit(self, weight: torch.Tensor, importance: torch.Tensor | None) -> Params:
        self.__dict__["asked"] = importance
        return {"scale": weight.abs().amax(1, keepdim=True) / 11.5}

    def spread(self, params: Params, reals: Params, shape: tuple[int, ...]) -> Params:
        return {"scale": params["scale"].expand(-1, shape[1])}

    def round(self, weight: torch.Tensor, expanded: Params) -> torch.Tensor:
        steps = (weight / expanded["scale"] + 11.5).round().clamp(0, 23).unflatten(1, (-1, 2))
        return steps[..., 0] * 24 + steps[..., 1]

    def value(self, codes: torch.Tensor, expanded: Params) -> torch.Tensor:
        steps = torch.stack([codes // 24, codes % 24], -1).flatten(1)
        return (steps - 11.5) * expanded["scale"]

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        return 4.6


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles here: the scripts of engines, which tests of them import, tell their process not to."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)


@pytest.fixture
def pairs() -> NumberFormat:
    """A number format whose codes span two columns, as those of GGUF's IQ types span 4 or 8."""
    return Pairs()
