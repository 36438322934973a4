"""What llama.cpp itself answers by GGUF files: python gguf_answers.py DENSE WINDOWS LENGTH TEXT PLACES FILE...

Of every file prints the mean KL divergence from DENSE in nats at PLACES places spread over the windows of TEXT, as
JSON: at each, llama.cpp goes on with the window up to there, and says what it holds of every token (PyPI's
`xllamacpp`: its server, over the loopback interface). Beside it stands the same of our decoder, which rounds no inputs.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from gguf_scores import logits
from torch import Tensor
from transformers import PreTrainedModel

from compress.formats import open_checkpoint
from compress.passes.forward.texts.text import TextOptions, sequences_of
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.model.whole.loading import load_model

_HIDDEN = 1000.0
"""The server keeps quiet about tokens that are half a character, unless what it samples is said: this token is."""


@torch.no_grad()
def main(dense: str, windows: str, length: str, text: str, places: str, *files: str) -> None:
    """Print {file: {"kl_engine", "kl_decoder", "places"}}."""
    source = open_checkpoint(Path(dense))
    options = TextOptions(data=text, samples=int(windows), seq_len=int(length))
    rows = sequences_of(options, load_tokenizer(source), held_out=True).ids
    prompts = prompts_of(rows, int(places))
    expected = answers(load_model(source, torch.device("cpu")), prompts)
    found = {}
    for file in files:
        ours = answers(load_model(open_checkpoint(Path(file)), torch.device("cpu")), prompts)
        theirs = engine_answers(Path(file), prompts, expected.shape[1], int(length))
        kl = {name: mean_divergence(expected, each) for name, each in (("kl_engine", theirs), ("kl_decoder", ours))}
        found[file] = {**kl, "places": len(prompts)}
    print(json.dumps(found))


def prompts_of(rows: Tensor, places: int) -> list[list[int]]:
    """Windows up to places that lie as far apart as they can, none in the first eighth of a window."""
    count, length = rows.shape
    each = max(1, places // count)
    ends = [length // 8 + (at + 1) * (length - length // 8) // each for at in range(each)]
    return [row[:end].tolist() for row in rows for end in ends]


def answers(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities [prompts, vocabulary] of what follows each, fp32."""
    last = (model.base_model(torch.tensor([prompt])).last_hidden_state[:, -1] for prompt in prompts)
    return torch.cat([logits(model, each).log_softmax(-1) for each in last])


def engine_answers(file: Path, prompts: Sequence[Sequence[int]], vocabulary: int, length: int) -> Tensor:
    """The same of llama.cpp; −∞ where it says nothing of a token."""
    found = torch.full((len(prompts), vocabulary), -torch.inf)
    with served(file, length) as address:
        for prompt, values in zip(prompts, found):
            asked = {"prompt": list(prompt), "n_predict": 1, "n_probs": vocabulary, "temperature": 0}
            told = post(f"{address}/completion", **asked, logit_bias=[[0, _HIDDEN]])
            for entry in told["completion_probabilities"][0]["top_logprobs"]:
                values[entry["id"]] = entry["logprob"]
    return found


@contextmanager
def served(file: Path, length: int) -> Iterator[str]:
    """The address of a server for a file, ended with the `with` block."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel = length + 8, 1
    params.warmup = params.fit_params = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    yield str(server.listening_address)
    del server


def post(url: str, **body: object) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        value: dict[str, Any] = json.load(answer)
    return value


def mean_divergence(expected: Tensor, found: Tensor) -> float:
    """Mean of KL(expected ‖ found), over the tokens that `found` speaks of."""
    spoken = found.isfinite()
    each = torch.where(spoken, expected.exp() * (expected - found.where(spoken, 0.0)), 0.0)
    return float(each.double().sum(-1).mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
