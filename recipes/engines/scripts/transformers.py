"""transformers answers, and serves: whatever its own loader makes of the artifact's quantization_config."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Nothing is compiled for a few tokens, neither by torch nor, with the backends below, by GPTQModel: it takes minutes.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

from . import HOST, gguf_file, next_log_probs

PACKAGES = ("transformers", "torch", "gptqmodel", "compressed_tensors", "bitsandbytes")


def answer(path: str, sequences: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the token after each sequence."""
    model = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", **options(path))
    return next_log_probs(model.eval(), sequences)


def options(path: str) -> dict[str, Any]:
    """How to load the artifact: integer kernels in plain torch."""
    if file := gguf_file(path):
        return {"gguf_file": file.name}
    settings = json.loads((Path(path) / "config.json").read_text()).get("quantization_config", {})
    if settings.get("quant_method") == "gptq":
        return {"quantization_config": GPTQConfig(bits=settings["bits"], backend="gptq_torch")}
    if settings.get("quant_method") == "awq":
        return {"quantization_config": AwqConfig(backend="torch_awq")}
    return {}


def command(path: str, port: int) -> list[str]:
    """`transformers serve`, which wants transformers[serving]; a GGUF file is named behind its directory."""
    file = gguf_file(path)
    model = f"{file.parent}:{file.name}" if file else path
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    return [*serve, model, "--host", HOST, "--port", str(port)]
