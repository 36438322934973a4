"""Random models of known shapes, with a tokenizer and text, made without a network."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}  # fmt: skip
SMOLLM2: dict[str, Any] = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
    "num_hidden_layers": 2,
}  # fmt: skip
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_hidden_layers": 2, "rope_theta": 500000.0,
}  # fmt: skip
_VOCABULARY = 320


def words(count: int, seed: int = 0) -> str:
    """Text of `count` made-up words, frequent ones and rare ones, in lines."""
    chosen = random.Random(seed)
    lexicon = ["".join(chosen.choices(string.ascii_lowercase, k=chosen.randint(2, 9))) for _ in range(500)]
    drawn = chosen.choices(lexicon, weights=[1 / rank for rank in range(1, 501)], k=count)
    return "\n".join(" ".join(drawn[start : start + 12]) for start in range(0, count, 12))


def make_model(directory: Path, sizes: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Path:
    """A Llama of these sizes, or what `model_type` says, in a Hugging Face directory; weights large: logits differ."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **{"model_type": "llama", **sizes}, vocab_size=_VOCABULARY, max_position_embeddings=4096,
        tie_word_embeddings=False, dtype=dtype, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with device:
        model = AutoModelForCausalLM.from_config(config).to(dtype)
    spread = 2 / sizes["hidden_size"] ** 0.5 if sizes["hidden_size"] > 64 else 0.08
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, spread)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.cpu().save_pretrained(directory, max_shard_size="100GB")
    _tokenizer().save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([words(2000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")
