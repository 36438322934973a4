"""Engines that answer for an artifact: one file each, which launch.py imports in the engine's own interpreter.

A new engine is one file here (and its facts, see ../facts.py); no list is edited. It imports the engine and this
module, nothing else of ours, and holds

    PACKAGES                  the packages whose versions an answer names, by the name that they are imported by
    answer(path, sequences)   natural logarithms of the probabilities of the token after each sequence of token ids,
                              one list each, by token id, for the whole vocabulary; None where the engine keeps quiet
    command(path, port, *, …)  optional: the command line that serves the artifact on that port, as OpenAI's API does,
                              and does not end by itself. Its keywords are the options that the server has: `host`
                              (the loopback interface), `context` (tokens of one conversation), `cache` (type of keys
                              and values, in the engine's word), `parallel` (conversations at once); None: its default
    model(path)               optional: what requests call the artifact that it serves; otherwise its path
    build()                   optional: which target of ../facts.py this build of the engine is, where there are several
    writer(path, *, threads, context, parallel, draft)  optional: the artifact loaded, as a function that writes
                              `tokens` tokens after each of the prompts at once, whatever ends an answer, and tells of
                              each what had come when: [[seconds since it was asked, tokens until then], …]. `context`
                              are tokens of one conversation, `parallel` conversations at once, `draft` is the path of
                              a model that proposes tokens, or None
    serve(path, port, *, …)    where `command` is launch.py's own: does that here

What an engine cannot do it raises, in its own words. This module holds what several of them need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HOST = "127.0.0.1"


def next_log_probs(model: Any, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """`answer` of a causal language model in torch that gives `.logits`: one sequence at a time, nothing padded."""
    import torch

    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([list(sequence)])).logits[0, -1] for sequence in sequences]
    return [values.float().log_softmax(-1).tolist() for values in logits]


def gguf_file(path: str) -> Path | None:
    """The GGUF file at `path` or in the directory `path`, if there is one."""
    place = Path(path)
    return place if place.suffix == ".gguf" else next(iter(sorted(place.glob("*.gguf"))), None)


def arguments(options: Mapping[str, object]) -> list[str]:
    """`--name value` of those that have one."""
    return [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]


def stored(path: str) -> dict[str, Tensor]:
    """Every tensor of the safetensors files in the directory `path`, as it lies there."""
    from safetensors.torch import load_file

    return {name: value for file in Path(path).glob("*.safetensors") for name, value in load_file(file).items()}


def in_float32(config: Any, weights: dict[str, Tensor], ignored: tuple[str, ...] = ()) -> Any:
    """transformers' model of `config` with these weights, in fp32. A tied head may be missing.

    Raises KeyError for any other tensor that is missing, or too many but for names that end with one of `ignored`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    found = model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    extra = [name for name in found.unexpected_keys if not name.endswith(ignored)]
    if wrong := [*(set(found.missing_keys) - tied), *extra]:
        raise KeyError(f"missing or unexpected tensors: {', '.join(sorted(wrong)[:3])}")
    return model
