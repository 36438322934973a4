"""llama.cpp answers, and serves: PyPI's `xllamacpp`, its server spoken to over the loopback interface."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

from . import HOST, gguf_file

PACKAGES = ("xllamacpp",)


def answer(path: str, sequences: list[list[int]]) -> list[list[float | None]]:
    """Log-probabilities of the token after each sequence."""
    import xllamacpp

    params = settings(path)
    params.n_ctx = max(256, max(map(len, sequences)) + 8)
    params.n_parallel = 1
    # More threads wait for each other, long where cores are shared.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    server = xllamacpp.Server(params)
    return [log_probabilities(server.listening_address, sequence) for sequence in sequences]


def command(path: str, port: int) -> list[str]:
    """`llama-server` where there is one, else the same server out of `xllamacpp`, which has no command of its own."""
    if program := shutil.which("llama-server"):
        return [program, "-m", str(gguf_file(path) or path), "--host", HOST, "--port", str(port)]
    import xllamacpp  # noqa: F401 (says now that it is not there)

    launch = Path(__file__).parent.parent / "launch.py"
    return [sys.executable, "-P", str(launch), "llama_cpp", path, str(port)]


def serve(path: str, port: int) -> None:
    """The server of `xllamacpp`, until the process is ended."""
    import xllamacpp

    params = settings(path)
    params.port = port
    server = xllamacpp.Server(params)
    while server:  # it works in threads of its own
        threading.Event().wait()


def settings(path: str) -> Any:
    """Those of a server of the GGUF file at `path` or in the directory `path`."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_file(path) or path)
    params.hostnames = [HOST]
    return params


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
