"""transformers answers, and serves: whatever its own loader makes of the artifact's quantization_config."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Nothing is compiled for a few tokens, neither by torch nor, with the backends below, by GPTQModel: it takes minutes.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from . import HOST, gguf_file, next_log_probs

PACKAGES = ("transformers", "torch", "gptqmodel", "compressed_tensors", "bitsandbytes")
_SERVING = ("fastapi", "uvicorn", "openai")
"""What its server looks for: pip's transformers[serving]."""
_LOADERS = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
    "bitsandbytes": "bitsandbytes",
}
"""The package that it loads a container with."""


def answer(path: str, sequences: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the token after each sequence."""
    return next_log_probs(_loaded(path, "cpu"), sequences)


def _loaded(path: str, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    file = gguf_file(path)  # which may be all that `path` is
    place = file.parent if file else path
    return AutoModelForCausalLM.from_pretrained(place, device_map=device, **options(path)).eval()


def options(path: str) -> dict[str, Any]:
    """How to load the artifact: integer kernels in plain torch."""
    if file := gguf_file(path):
        return {"gguf_file": file.name}
    from transformers import AwqConfig, GPTQConfig

    settings = _settings(path)
    if settings.get("quant_method") == "gptq":
        return {"quantization_config": GPTQConfig(bits=settings["bits"], backend="gptq_torch")}
    if settings.get("quant_method") == "awq":
        return {"quantization_config": AwqConfig(backend="torch_awq")}
    return {}


def writer(
    path: str, *, threads: int, context: int, parallel: int, draft: str | None = None
) -> Callable[[list[list[int]], int], list[list[tuple[float, int]]]]:
    """Its `generate`, greedy, on a GPU if torch sees one; conversations at once are a batch, and keep step.

    Raises ValueError for a `draft` of several at once: transformers drafts for one.
    """
    import torch
    from transformers import GenerationConfig

    if draft and parallel > 1:
        raise ValueError("it drafts for one conversation at a time: leave --concurrency at 1")
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, *drafting = (_loaded(place, device) for place in (path, draft) if place)
    for one in (model, *drafting):
        one.generation_config = GenerationConfig(pad_token_id=0)  # no end: so many tokens are written

    def write(prompts: list[list[int]], tokens: int) -> list[list[tuple[float, int]]]:
        ids = torch.tensor(prompts, device=device)
        arrivals: list[tuple[float, int]] = []
        began = time.perf_counter()

        def note(found: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            int(found[0, -1])  # a GPU has it by now
            arrivals.append((time.perf_counter() - began, found.shape[1] - ids.shape[1]))
            return torch.zeros(len(found), dtype=torch.bool, device=device)

        with torch.no_grad():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                stopping_criteria=[note],
                assistant_model=next(iter(drafting), None),
            )
        return [arrivals] * len(prompts)

    return write


def command(path: str, port: int, *, host: str = HOST) -> list[str]:
    """`transformers serve`. Raises ModuleNotFoundError for what it lacks."""
    if not all(map(find_spec, _SERVING)):
        raise ModuleNotFoundError("No module named 'transformers[serving]'")
    file = gguf_file(path)
    loader = _LOADERS.get(_settings(path).get("quant_method", "")) if file is None else None
    if loader and not find_spec(loader):
        raise ModuleNotFoundError(f"No module named {loader!r}")
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    return [*serve, model(path), "--host", host, "--port", str(port)]


def model(path: str) -> str:
    """What its server loads, and requests name: a GGUF file behind its directory."""
    file = gguf_file(path)
    return f"{file.parent}:{file.name}" if file else path


def _settings(path: str) -> dict[str, Any]:
    """The `quantization_config` in config.json, if there is one."""
    found: dict[str, Any] = json.loads((Path(path) / "config.json").read_text()).get("quantization_config", {})
    return found
