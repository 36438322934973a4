"""vLLM answers, on a CPU or a GPU, whichever it was built for (see __init__.py)."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import packages_distributions, version
from typing import Any

# In this process, so that its errors are ours; a small cache, for a few sequences need no more.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

_PACKAGES = ("vllm", "torch")


def answer(path: str, sequences: list[list[int]]) -> dict[str, Any]:
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
    found = packages_distributions()
    return {
        "versions": {name: version(found[name][0]) for name in _PACKAGES if name in found},
        "log_probs": [_dense(one.outputs[0].logprobs[0]) for one in done],
    }


def _dense(found: dict[int, Any]) -> list[float | None]:
    """{token id: its entry} → log-probabilities by token id."""
    return [found[token].logprob if token in found else None for token in range(max(found) + 1)]


def main() -> None:
    """One request in, one answer out; what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    with output:
        json.dump(answer(request["path"], request["sequences"]), output)


if __name__ == "__main__":
    main()
