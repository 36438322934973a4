"""load.py ARTIFACT: clients upon clients at `compress serve --gateway`, some of whom leave; then its engine is killed.

    python benchmarks/load.py out/quickstart/gguf-q8_0 --clients 200 --requests 400 --json load.json

It prints a row for each phase: requests, how they ended by kind, seconds to the first token and to the last (medians
and 99th percentiles), and how long the killed engine was away. Needs `pip install 'compress-llm[gateway]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx

_PATIENCE = 300.0
"""Seconds after which a request counts as hung."""
_HEAD = "| phase | requests | ended | first token P50 / P99, s | last token P50 / P99, s | |\n|---|---|---|---|---|---|"


@dataclass
class Phase:
    """What became of requests: `ended` by kind, `first` and `last` token of whole answers in seconds."""

    name: str
    ended: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    note: str = ""

    def row(self) -> str:
        """Of the table."""
        ended = ", ".join(f"{count} {kind}" for kind, count in sorted(self.ended.items()))
        cells = [self.name, str(self.ended.total()), ended, _spread(self.first), _spread(self.last), self.note]
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Work:
    """So many `requests` for `tokens` tokens each, from `clients` at once."""

    url: str
    model: str
    clients: int
    requests: int
    tokens: int


def _spread(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "–"
    found = quantiles(seconds, n=100, method="inclusive")
    return f"{found[49]:.2f} / {found[98]:.2f}"


async def _ask(client: Any, work: Work, phase: Phase, leaves: bool) -> None:
    """One request; `leaves` does so with the first token."""
    body = {"model": work.model, "prompt": "Once upon a time", "max_tokens": work.tokens, "stream": True}
    began, first, kind = time.perf_counter(), None, "cut"
    try:
        async with asyncio.timeout(_PATIENCE), client.stream("POST", f"{work.url}/completions", json=body) as reply:
            if reply.status_code != 200:
                kind = str(reply.status_code)
            else:
                async for line in reply.aiter_lines():
                    if line.startswith("data:"):
                        first = first or time.perf_counter() - began
                        kind = _kind(line.removeprefix("data:").strip(), kind)
                        if leaves and kind == "cut":
                            kind = "left"
                            break
    except TimeoutError:
        kind = "hung"
    except httpx.HTTPError as error:
        kind = type(error).__name__
    phase.ended[kind] += 1
    if kind == "answered" and first is not None:
        phase.first.append(first)
        phase.last.append(time.perf_counter() - began)


def _kind(event: str, before: str) -> str:
    """How a stream stands after an event: an error's code, its end, or as before."""
    if event == "[DONE]":
        return "answered"
    error = json.loads(event).get("error")
    return f"{error['code']} in mid-answer" if error else before


async def _carry_out(
    work: Work, name: str, leaving: int = 0, meanwhile: Callable[[Phase], None] = lambda phase: None
) -> Phase:
    """All of the work, every `leaving`th client leaving (none for 0); `meanwhile` runs in a thread beside it."""
    phase, left = Phase(name), iter(range(work.requests))

    async def client_of(connections: Any) -> None:
        for number in left:
            await _ask(connections, work, phase, bool(leaving) and number % leaving == 0)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False, verify=False) as connections:
        beside = asyncio.get_running_loop().run_in_executor(None, meanwhile, phase)
        await asyncio.gather(*(client_of(connections) for _ in range(work.clients)))
        await beside
    print(phase.row(), file=sys.stderr, flush=True)
    return phase


def _healthy(address: str) -> bool:
    try:
        return bool(httpx.get(f"{address}/health", trust_env=False, verify=False, timeout=5).status_code == 200)
    except httpx.HTTPError:
        return False


def _killing(address: str, pid: int) -> Callable[[Phase], None]:
    """Kill the engine after its first answer, amid others, and note how long it was away."""

    def kill(phase: Phase) -> None:
        while not phase.last:
            time.sleep(0.01)
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while _healthy(address):
            time.sleep(0.01)
        told = time.perf_counter() - began
        while not _healthy(address):
            if time.perf_counter() - began > _PATIENCE:
                phase.note = f"told after {told:.2f} s, not back after {_PATIENCE:.0f} s"
                return
            time.sleep(0.01)
        phase.note = f"told after {told:.2f} s, answers again after {time.perf_counter() - began:.1f} s"

    return kill


def _phases(found: dict[str, Any], options: argparse.Namespace) -> list[Phase]:
    url = str(found["url"])
    address = url.removesuffix("/v1")
    work = Work(url, str(found["model"]), options.clients, options.requests, options.tokens)
    kill = _killing(address, int(found["pid"]))
    phases = [
        asyncio.run(_carry_out(work, f"{work.clients} clients at once")),
        asyncio.run(_carry_out(work, "every other client leaves", leaving=2)),
        asyncio.run(_carry_out(work, "the engine is killed", meanwhile=kill)),
        asyncio.run(_carry_out(work, "after that")),
    ]
    held = httpx.get(f"{address}/metrics", trust_env=False).text.partition("\ncompress_gateway_held ")[2].split()[0]
    phases[-1].note = f"{float(held):.0f} requests are still held"
    return phases


def main() -> None:
    """Serve, load, kill, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--engine", default="llama.cpp")
    for name, default in (("clients", 200), ("requests", 400), ("tokens", 16), ("queue", 64), ("parallel", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    limits = ["--queue", str(options.queue), "--parallel", str(options.parallel), "--restarts", "1"]
    place = ["--engine", options.engine, "--port", "0", "--gateway", "--json", "--quiet"]
    command = [sys.executable, "-m", "compress.cli", "serve", options.artifact, *place, *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            text = ""
            while not text.endswith("}\n"):
                if not (line := server.stdout.readline()):
                    sys.exit("it does not serve")
                text += line
            phases = _phases(json.loads(text), options)
        finally:
            began = time.perf_counter()
            server.terminate()
            status = server.wait()
    ended = f"SIGTERM: ended with exit status {status} after {time.perf_counter() - began:.1f} s"
    print(_HEAD, *(phase.row() for phase in phases), "", ended, sep="\n")
    if options.json:
        found = {
            "options": vars(options),
            "phases": [{**vars(phase), "ended": dict(phase.ended)} for phase in phases],
            "end": ended,
        }
        options.json.write_text(json.dumps(found, default=str, indent=1))


if __name__ == "__main__":
    main()
