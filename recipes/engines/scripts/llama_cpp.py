"""llama.cpp answers: PyPI's `xllamacpp`, its server spoken to over the loopback interface (see __init__.py)."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xllamacpp


def answer(path: str, sequences: list[list[int]]) -> dict[str, Any]:
    """Log-probabilities of the token after each sequence."""
    server = serve(path, max(map(len, sequences)) + 8)
    return {
        "versions": {"xllamacpp": version("xllamacpp")},
        "log_probs": [log_probabilities(server.listening_address, sequence) for sequence in sequences],
    }


def serve(path: str, context: int) -> Any:
    """A server of the GGUF file at `path` or in the directory `path`."""
    params = xllamacpp.CommonParams()
    file = Path(path) / "model.gguf"
    params.model.path = str(file if file.is_file() else path)
    params.n_ctx = max(256, context)
    params.n_parallel = 1
    # More threads wait for each other, long where cores are shared.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    return xllamacpp.Server(params)


def log_probabilities(address: str, sequence: list[int]) -> list[float | None]:
    """By token id. The server keeps quiet about the tokens of half a character that it would sample."""
    # So let it sample a letter: the probabilities that it tells of are those before the bias.
    letter = _post(address, "/tokenize", content="A", add_special=False)["tokens"][0]
    done = _post(
        address,
        "/completion",
        prompt=sequence,
        n_predict=1,
        n_probs=1 << 20,
        temperature=0,
        cache_prompt=False,
        ignore_eos=True,
        logit_bias=[[letter, 1000]],
    )
    found = {entry["id"]: entry["logprob"] for entry in done["completion_probabilities"][0]["top_logprobs"]}
    return [found.get(token) for token in range(max(found) + 1)]


def _post(address: str, path: str, **body: object) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as reply:
        value: dict[str, Any] = json.load(reply)
    return value


def main() -> None:
    """One request in, one answer out; what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    with output:
        json.dump(answer(request["path"], request["sequences"]), output)


if __name__ == "__main__":
    main()
