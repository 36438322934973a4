"""Try a checkpoint: decode it into a transformers model and let it write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.formats.files.source import resolve
from compress.formats.files.storage import parse_json
from compress.kernels.numbers.activations import Grid
from compress.passes.model.blank import fitted
from compress.passes.model.cache import cache_argument
from compress.passes.model.tokenizer import load_tokenizer, render_chat
from compress.passes.model.whole.loading import load_model
from compress.passes.model.whole.quantized_cache import cache_for, read_codes
from compress.recipes.artifacts import artifact_at

Write = Callable[[str], None]

_SETTINGS = "generation_config.json"


def generate(
    model: str,
    prompt: str,
    write: Write,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    raw: bool = False,
    kv_cache: Grid | None = None,
    device: str = "cpu",
) -> None:
    """Hand the answer to `prompt` to `write`, piece by piece.

    The chat template frames the prompt where the tokenizer has one and `raw` is not set. Temperature 0 is
    greedy. With `kv_cache` keys and values are kept on that grid, whatever the checkpoint says; without, as it
    says. Quantized weights stay codes: see `CodedLinear` for what that rounds.
    Raises InputError for a checkpoint, tokenizer or template that is broken.
    """
    place = torch.device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    checkpoint, blank = fitted(open_checkpoint(artifact_at(resolve(model))), dtype)
    tokenizer = load_tokenizer(checkpoint)
    ids = _prompt_ids(tokenizer, prompt, raw or tokenizer.chat_template is None)
    if not ids:
        raise InputError("the prompt is empty", "give some text with -p")
    network = load_model(checkpoint, place, dtype, blank, coded=True)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {}
    ends = _end_tokens(checkpoint, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_tokens, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0, **sampling
    )
    inputs = torch.tensor([ids], device=place)
    torch.manual_seed(seed)
    cache = cache_for(network, checkpoint, kv_cache)
    if cache is not None and place.type == "cuda":
        read_codes(network, cache)
    with torch.no_grad():
        network.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=settings,
            streamer=_Stream(tokenizer, write),
            **{cache_argument(network.forward): cache},
        )


class _Stream(TextStreamer):  # type: ignore[misc]  # transformers has no types
    """transformers' streamer, writing where we want."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._write(text)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, raw: bool) -> list[int]:
    if raw:
        ids: list[int] = tokenizer(prompt).input_ids
        return ids
    text = render_chat(tokenizer, [{"role": "user", "content": prompt}], answer=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _end_tokens(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those of generation_config.json."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    where = f"{checkpoint.path / _SETTINGS}"
    settings = parse_json(checkpoint.files().get(_SETTINGS, b"{}"), where)
    if not isinstance(settings, dict):
        raise InputError(f"{where} is not a JSON object")
    told = settings.get("eos_token_id")
    more = told if isinstance(told, list) else [told]
    return list(dict.fromkeys([*ends, *(token for token in more if isinstance(token, int))]))
