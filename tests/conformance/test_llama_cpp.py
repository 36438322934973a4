"""llama.cpp loads the GGUF files that we write and computes the same model as transformers.

transformers gets the config.json and the weights that we read back out of the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_families import FAMILIES as OTHERS
from gguf_families import config_of, lively
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

sys.path.insert(0, str(Path(__file__).with_name("table")))
from cells import rounded_in_blocks

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.dense.dialect import Dense
from compress.formats.gguf.dialect import GGUF
from compress.formats.views.matrices import Restored
from compress.kernels.qtensor import QTensor
from compress.passes.model.blank import fitted

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.engine

Serve = Callable[[Path], Any]
MakeModel = Callable[..., Path]
# After it every choice is clear; where two tokens are nearly as likely, rounding alone decides.
PROMPT = [196, 171, 119, 86, 198]
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
EXTRA: dict[str, Callable[[], Any]] = {
    "llama3": lambda: LlamaConfig(**SIZES, head_dim=32, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "yarn": lambda: LlamaConfig(**SIZES, rope_parameters=YARN),
    "linear": lambda: LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "wide": lambda: LlamaConfig(**{**SIZES, "hidden_size": 256, "intermediate_size": 512}),  # rows for super-blocks
}
EXTRA |= {family: partial(config_of, family) for family in OTHERS}
FAMILIES = ("llama", "qwen3", "gpt_neox")


class Decoded(Checkpoint):
    """A checkpoint whose quantized tensors are read as their values."""

    dialect = "decoded"

    def __init__(self, model: Checkpoint) -> None:
        self.path, self._model = model.path, model
        specs = {name: replace(spec, format=None) for name, spec in model.spec.tensors.items()}
        self.spec = replace(model.spec, tensors=specs)

    def read(self, name: str) -> Tensor:
        return decoded(self._model, name)

    def files(self) -> Mapping[str, bytes]:
        return self._model.files()

    def nbytes(self) -> int:
        return self._model.nbytes()


@pytest.fixture
def make(make_model: MakeModel, tmp_path: Path) -> Callable[[str], Checkpoint]:
    """A tiny model by name; weights large enough for logits to differ, biases that are not zero."""

    def build(name: str) -> Checkpoint:
        directory = make_model(tmp_path / name, name if name in FAMILIES else "llama")
        config = AutoConfig.from_pretrained(directory) if name in FAMILIES else EXTRA[name]()
        lively(config).save_pretrained(directory)
        return open_checkpoint(directory)

    return build


def write(model: Checkpoint, directory: Path, kind: str) -> Checkpoint:
    directory.mkdir()
    GGUF(type=kind).write(model, directory, lambda name: None)
    return GGUF.open(directory)


def in_transformers(model: Checkpoint, directory: Path) -> PreTrainedModel:
    """The model as transformers builds it from our config.json, with the weights as we decode them."""
    directory.mkdir()
    view, _ = fitted(Decoded(model))
    Dense().write(Restored(view), directory, lambda name: None)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def decoded(model: Checkpoint, name: str) -> Tensor:
    tensor = model.read(name)
    return tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()


@torch.no_grad()
def expected(model: PreTrainedModel, prompt: list[int]) -> Tensor:
    return model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)


def round_inputs(model: PreTrainedModel, block: int) -> None:
    """From now on linears take inputs as llama.cpp does where weights are blocks: in 8 bits."""
    for linear in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        linear.register_forward_pre_hook(lambda _, given: rounded_in_blocks(given[0], block))


@torch.no_grad()
def favourites(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> list[int]:
    """The most likely token in the place of each of `tokens`; greedy tokens are their own favourites."""
    logits = model(torch.tensor([prompt + tokens])).logits[0]
    logits[:, model.config.eos_token_id] = -torch.inf  # the engine is told to go on
    return list(logits[len(prompt) - 1 : -1].argmax(-1).tolist())


@pytest.mark.parametrize("name", [*FAMILIES, *EXTRA])
def test_the_model_is_the_same(name: str, make: Callable[[str], Checkpoint], llama_cpp: Serve, tmp_path: Path) -> None:
    stored = write(make(name), tmp_path / "out", "f32")
    model = in_transformers(stored, tmp_path / "again")
    with llama_cpp(tmp_path / "out") as engine:
        # The longer one is past where scaled positions begin; LongRoPE's divisors llama.cpp chooses by its context.
        prompts = (PROMPT * 30, PROMPT)[: 1 if "longrope" in name else 2]
        for prompt in prompts:
            logits = engine.log_probabilities(prompt, 320)
            torch.testing.assert_close(logits, expected(model, prompt), rtol=0, atol=0.02)
        tokens = engine.greedy(prompts[-1], 8)
    assert tokens == favourites(model, prompts[-1], tokens)


BLOCKS_EACH = [("llama", kind) for kind in ("f16", "bf16", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "mxfp4", "nvfp4")]
SUPER_BLOCKS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "tq1_0", "tq2_0", "q4_k_m")
BLOCKS_EACH += [("wide", kind) for kind in SUPER_BLOCKS]


@pytest.mark.parametrize(("name", "kind"), [*BLOCKS_EACH, *((name, "q8_0") for name in FAMILIES)])
def test_every_block_type_is_computed_as_we_decode_it(
    name: str, kind: str, make: Callable[[str], Checkpoint], llama_cpp: Serve, tmp_path: Path
) -> None:
    stored = write(make(name), tmp_path / "out", kind)
    model = in_transformers(stored, tmp_path / "again")
    if kind not in ("f16", "bf16"):
        round_inputs(model, 256 if kind in SUPER_BLOCKS else 32)
    with llama_cpp(tmp_path / "out") as engine:
        logits, wanted = engine.log_probabilities(PROMPT, 320), expected(model, PROMPT)
    # Sums in another order come out on the other side of a code here and there; activations are bf16 where weights are.
    torch.testing.assert_close(logits, wanted, rtol=0, atol=0.02 if kind == "f16" else 0.25)
    assert float((logits - wanted).square().mean().sqrt()) < 0.08
    assert wanted.std() > 1.3


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_the_same(
    name: str, make: Callable[[str], Checkpoint], llama_cpp: Serve, tmp_path: Path
) -> None:
    stored = write(make(name), tmp_path / "out", "f16")
    with llama_cpp(tmp_path / "out") as engine:
        tokens = engine.greedy(PROMPT, 8)
    model = in_transformers(stored, tmp_path / "again")
    assert tokens == favourites(model, PROMPT, tokens)


@pytest.mark.model
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_smollm2_goes_on_alike(smollm2: Path, kind: str, llama_cpp: Serve, tmp_path: Path) -> None:
    stored = write(Decoded(GGUF.open(smollm2)), tmp_path / "out", kind)
    model = in_transformers(stored, tmp_path / "again")
    with llama_cpp(tmp_path / "out") as engine:
        for text in ("The capital of France is", "1, 2, 3, 4, 5, 6,", "Once upon a time"):
            prompt = engine.tokenize(text)
            tokens = engine.greedy(prompt, 12)
            assert len(tokens) == 12 and tokens == favourites(model, prompt, tokens)
