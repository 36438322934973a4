"""vLLM answers, and serves, on a CPU or a GPU, whichever it was built for."""

from __future__ import annotations

import os
import sys
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# In this process, so that its errors are ours; a small cache, for a few sequences need no more.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from . import HOST, arguments

PACKAGES = ("vllm", "torch")
_DRAINED = 600
"""Seconds in which a server that is told to end may finish its answers; by default it breaks them off."""

_MOST_MEMORY = 0.92
"""The part of a device's memory that it takes by default."""


def answer(path: str, sequences: list[list[int]]) -> list[list[float | None]]:
    """Log-probabilities of the token after each sequence."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=path,
        enforce_eager=True,
        max_model_len=max(map(len, sequences)) + 1,
        max_num_seqs=1,
        max_logprobs=-1,
        logprobs_mode="raw_logprobs",
        skip_tokenizer_init=True,
    )
    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=-1, detokenize=False)
    done = engine.generate([{"prompt_token_ids": sequence} for sequence in sequences], sampling, use_tqdm=False)
    return [_dense(one.outputs[0].logprobs[0]) for one in done]


def command(
    path: str,
    port: int,
    *,
    host: str = HOST,
    context: int | None = None,
    cache: str | None = None,
    parallel: int | None = None,
) -> list[str]:
    """vLLM's server by its module: `vllm serve` fails in the distribution vllm-cpu 0.32.0, which is not named vllm.

    On a CPU it compiles nothing: that takes minutes, and more memory than small machines have; and it is told to take
    what is free: it wants nearly all that there is, and ends without. Raises RuntimeError if it was built for devices
    that are not here.
    """
    on_cpu = build() == "vllm-cpu"
    if not on_cpu:
        from vllm.platforms import current_platform

        if current_platform.is_unspecified():
            raise RuntimeError("vLLM sees no device here that it was built for")
    options = {
        "model": path,
        "host": host,
        "port": port,
        "max-model-len": context,
        "kv-cache-dtype": cache,
        "max-num-seqs": parallel,
    }
    if _knows("--shutdown-timeout"):
        options["shutdown-timeout"] = _DRAINED
    if on_cpu:
        options["gpu-memory-utilization"] = _memory_share()  # the computer's, on a CPU
    eager = ["--enforce-eager"] if on_cpu else []
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments(options), *eager]


def _memory_share(meminfo: Path = Path("/proc/meminfo")) -> float:
    """The part of this machine's memory that it may take: most of what is free, and no more than its own default."""
    if not meminfo.is_file():
        return _MOST_MEMORY
    lines = (line.split() for line in meminfo.read_text().splitlines())
    sizes = {line[0]: int(line[1]) for line in lines}
    return min(_MOST_MEMORY, int(90 * sizes["MemAvailable:"] / sizes["MemTotal:"]) / 100)


def _knows(option: str) -> bool:
    """Whether this version has an option of its server: read, for to import it takes half a minute."""
    found = find_spec("vllm")
    source = Path(found.origin).parent / "engine" / "arg_utils.py" if found and found.origin else None
    return bool(source and source.is_file() and f'"{option}"' in source.read_text(encoding="utf-8"))


def build() -> str:
    """Builds for CPUs say so in the name of their distribution (vllm-cpu) or in its version (+cpu)."""
    name = next(iter(packages_distributions().get("vllm", ())), None)
    if name is None:
        raise ModuleNotFoundError("No module named 'vllm'")
    return "vllm-cpu" if "cpu" in f"{name} {version(name)}" else "vllm"


def _dense(found: dict[int, Any]) -> list[float | None]:
    """{token id: its entry} → log-probabilities by token id."""
    return [found[token].logprob if token in found else None for token in range(max(found) + 1)]
