"""transformers answers, and serves: whatever its own loader makes of the artifact's quantization_config."""

from __future__ import annotations

import json
import os
import sys
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
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", **options(path))
    return next_log_probs(model.eval(), sequences)


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


def command(path: str, port: int, *, host: str = HOST) -> list[str]:
    """`transformers serve`; a GGUF file is named behind its directory. Raises ModuleNotFoundError for what it lacks."""
    if not all(map(find_spec, _SERVING)):
        raise ModuleNotFoundError("No module named 'transformers[serving]'")
    file = gguf_file(path)
    loader = _LOADERS.get(_settings(path).get("quant_method", "")) if file is None else None
    if loader and not find_spec(loader):
        raise ModuleNotFoundError(f"No module named {loader!r}")
    model = f"{file.parent}:{file.name}" if file else path
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    return [*serve, model, "--host", host, "--port", str(port)]


def _settings(path: str) -> dict[str, Any]:
    """The `quantization_config` in config.json, if there is one."""
    found: dict[str, Any] = json.loads((Path(path) / "config.json").read_text()).get("quantization_config", {})
    return found
