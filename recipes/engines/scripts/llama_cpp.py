"""llama.cpp answers, and serves: PyPI's `xllamacpp`, its server spoken to over the loopback interface."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from . import HOST, arguments, gguf_file

PACKAGES = ("xllamacpp",)
_SLACK = 64
"""Tokens of a conversation that a server wants beyond those that are asked for."""
_CACHES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""llama.cpp, common/arg.cpp kv_cache_types."""


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


def writer(
    path: str, *, threads: int, context: int, parallel: int, draft: str | None = None
) -> Callable[[list[list[int]], int], list[list[tuple[float, int]]]]:
    """The server of `xllamacpp`, greedy, asked over the loopback interface by a thread a conversation."""
    import xllamacpp

    params = settings(path)
    params.n_parallel, params.n_ctx = parallel, parallel * (context + _SLACK)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if draft:
        speculative = params.speculative
        speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = str(gguf_file(draft) or draft)
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    pool = ThreadPoolExecutor(parallel)

    def write(prompts: list[list[int]], tokens: int) -> list[list[tuple[float, int]]]:
        began = time.perf_counter()
        return list(pool.map(partial(arrivals, server.listening_address, tokens, began, bool(draft)), prompts))

    return write


def arrivals(address: str, tokens: int, began: float, drafted: bool, prompt: list[int]) -> list[tuple[float, int]]:
    """When how many of `tokens` tokens after `prompt` had come, in seconds since `began` (`time.perf_counter`).

    Raises RuntimeError if there are fewer in the end, or no draft proposed any where one should have: the server goes
    on without a draft that it cannot use.
    """
    options = {"temperature": 0, "cache_prompt": False, "ignore_eos": True}
    told = {"stream": True, "timings_per_token": True}
    request = _request(address, "/completion", prompt=prompt, n_predict=tokens, **options, **told)
    found: list[tuple[float, int]] = []
    timings: dict[str, Any] = {}
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            if not line.startswith(b"data: "):
                continue
            timings = json.loads(line.removeprefix(b"data: ")).get("timings", {})
            written = timings.get("predicted_n", 0)
            if written > (found[-1][1] if found else 0):
                found.append((time.perf_counter() - began, written))
    if not found or found[-1][1] < tokens:
        raise RuntimeError(f"it wrote {found[-1][1] if found else 0} of {tokens} tokens")
    if drafted and not timings.get("draft_n"):
        raise RuntimeError("the draft proposed no token: has it another vocabulary?")
    return found


def command(
    path: str,
    port: int,
    *,
    host: str = HOST,
    context: int | None = None,
    cache: str | None = None,
    parallel: int | None = None,
) -> list[str]:
    """`llama-server` where there is one, else the same server out of `xllamacpp`, which has no command of its own.

    Raises ValueError for a `cache` that is no type of xllamacpp's.
    """
    if program := shutil.which("llama-server"):
        options = {
            "model": gguf_file(path) or path,
            "host": host,
            "port": port,
            "ctx-size": context and context * (parallel or 1),  # its is that of all conversations together
            "cache-type-k": cache,
            "cache-type-v": cache,
            "parallel": parallel,
        }
        return [program, *arguments(options)]
    import xllamacpp  # noqa: F401 (says now that it is not there)

    if cache is not None:
        _type(cache)
    launch = Path(__file__).parent.parent / "launch.py"
    given = {"host": host, "context": context, "cache": cache, "parallel": parallel}
    options = {name: value for name, value in given.items() if value is not None}
    return [sys.executable, "-P", str(launch), "llama_cpp", path, str(port), json.dumps(options)]


def serve(
    path: str,
    port: int,
    *,
    host: str = HOST,
    context: int | None = None,
    cache: str | None = None,
    parallel: int | None = None,
) -> None:
    """The server of `xllamacpp`, until SIGINT or SIGTERM; what it is answering then it answers to the end."""
    import xllamacpp

    params = settings(path)
    params.hostnames, params.port = [host], port
    params.n_parallel = parallel or 1
    if context is not None:
        params.n_ctx = context * params.n_parallel
    if cache is not None:
        params.cache_type_k = params.cache_type_v = _type(cache)
    server = xllamacpp.Server(params)  # it works in threads of its own
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    while any(slot["is_processing"] for slot in _get(server.listening_address, "/slots")):
        time.sleep(0.1)


def _type(cache: str) -> Any:
    """ggml's type of that name. Raises ValueError for one that is not among those of caches."""
    from xllamacpp import ggml_type

    if cache not in _CACHES:
        raise ValueError(f"a cache is in {', '.join(_CACHES)}, not in {cache!r}")
    return ggml_type[f"GGML_TYPE_{cache.upper()}"]


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


def _get(address: str, path: str) -> Any:
    with urllib.request.urlopen(address + path) as reply:
        return json.load(reply)


def _request(address: str, path: str, **body: object) -> urllib.request.Request:
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(address + path, json.dumps(body).encode(), headers)


def _post(address: str, path: str, **body: object) -> dict[str, Any]:
    with urllib.request.urlopen(_request(address, path, **body)) as reply:
        value: dict[str, Any] = json.load(reply)
    return value
