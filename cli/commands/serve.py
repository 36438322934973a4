"""`compress serve`: an engine that is installed here serves an artifact; we choose, start and watch it."""

from __future__ import annotations

import json as json_text
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.cli.commands.shared import Python, Quiet, working
from compress.cli.terminal import completion
from compress.cli.terminal.output import Json, print_json
from compress.cli.terminal.signals import forwarded
from compress.formats.errors import CompressError, UsageError

if TYPE_CHECKING:
    from compress.recipes.engines.choice import Choice
    from compress.recipes.gateway.guarded import Guarded
    from compress.recipes.gateway.rules import Rules
    from compress.recipes.jobs.serve import Server

_BEHIND = "127.0.0.1"
"""Where an engine listens that a gateway stands before."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Artifact = Annotated[str, typer.Argument(metavar="ARTIFACT", help="A checkpoint, or a model as recipes name it.")]
ServerName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="vllm, llama.cpp or transformers.  [default: the first that is installed and loads it]",
        autocompletion=completion.servers,
    ),
]
Host = Annotated[str, typer.Option("--host", help="The address to listen on.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free.")]
Context = Annotated[int | None, typer.Option("--context", min=1, help="Tokens of one conversation.")]
CacheType = Annotated[
    str | None,
    typer.Option("--cache", metavar="TYPE", help="Of keys and values, in the engine's word: q8_0, or vLLM's fp8."),
]
Parallel = Annotated[int | None, typer.Option("--parallel", min=1, help="Conversations at once.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait until it answers.")]
WithGateway = Annotated[
    bool,
    typer.Option("--gateway", help="Stand before the engine: /health, /metrics, limits. So does each that follows."),
]
Queue = Annotated[
    int | None, typer.Option("--queue", min=0, help="Requests that may wait; more get 429.  [default: 64]")
]
TimeLimit = Annotated[float | None, typer.Option("--time-limit", min=0.1, help="Seconds of a request.  [default: 600]")]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", metavar="FILE", help="Holds the key that clients must show.")
]
Restarts = Annotated[
    int | None,
    typer.Option("--restarts", min=0, help="How often an engine that died is started again.  [default: 0]"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say which engine, why, and its command.")]


def serve(
    artifact: Artifact,
    engine: ServerName = None,
    python: Python = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    context: Context = None,
    cache: CacheType = None,
    parallel: Parallel = None,
    timeout: Timeout = 600.0,
    gateway: WithGateway = False,
    queue: Queue = None,
    time_limit: TimeLimit = None,
    key_file: KeyFile = None,
    restarts: Restarts = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a checkpoint as OpenAI's API does, with an engine that is installed here.

    Ctrl-C and SIGTERM are passed on to it, and its exit status is the command's.
    """
    from compress.recipes.jobs.serve import address_of, free_port

    if not host:
        raise UsageError("--host is empty", "0.0.0.0 listens on every address")
    front = host, free_port(host, port)
    given = {"queue": queue, "seconds": time_limit, "key": key_file}
    rules = _rules(gateway, {name: value for name, value in given.items() if value is not None}, parallel, restarts)
    place = (_BEHIND, free_port(_BEHIND, 0)) if rules else front
    options = {"host": place[0], "context": context, "cache": cache, "parallel": parallel}
    chosen = _chosen(artifact, engine, python, place[1], options, quiet)
    found = {**asdict(chosen), "url": f"{address_of(*front)}/v1"}
    if dry_run:
        _say(found, json, _lines(chosen))
        return
    keyed = bool(rules and rules.key)
    if host not in _LOOPBACK and not (quiet or keyed):
        typer.echo(f"note: whoever reaches {host} may use it: it asks for no key", err=True)
    found["curl"] = _curl(found["url"], chosen.model, keyed)
    server = _made(chosen, front, address_of(*place), rules, restarts or 0, quiet)
    raise typer.Exit(_watch(server, address_of(*place), timeout, found, _lines(chosen), json))


def _rules(gateway: bool, given: dict[str, Any], parallel: int | None, restarts: int | None) -> Rules | None:
    """What the gateway lets in; None if there is to be none."""
    if not (gateway or given or restarts is not None):
        return None
    from compress.recipes.gateway.rules import Rules, check_installed, key_in

    check_installed()
    if "key" in given:
        given["key"] = key_in(given["key"])
    return Rules(parallel=parallel, **given)


def _chosen(
    artifact: str, engine: str | None, python: Path | None, port: int, options: dict[str, Any], quiet: bool
) -> Choice:
    with working(quiet) as reporter:
        from compress.formats import open_checkpoint
        from compress.formats.files.source import resolve
        from compress.recipes.artifacts import artifact_at
        from compress.recipes.engines.choice import check_server, choose

        if engine is not None:
            check_server(engine)
        checkpoint = open_checkpoint(artifact_at(resolve(artifact, progress=reporter.note), "compress serve"))
        reporter.tell("looking for an engine")
        return choose(checkpoint, port, options, engine=engine, python=python)


def _made(
    chosen: Choice, front: tuple[str, int], address: str, rules: Rules | None, restarts: int, quiet: bool
) -> Server | Guarded:
    """The engine, which will answer at `address`; with rules, behind a gateway at `front`. Neither is started."""
    from compress.recipes.jobs.serve import Server

    def tell(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    def engine() -> Server:
        return Server(chosen.engine, chosen.command, tell=tell, heard=tell)

    tell(f"starting {chosen.engine}: {shlex.join(chosen.command)}")
    if rules is None:
        return engine()
    from compress.recipes.gateway.guarded import Guarded
    from compress.recipes.gateway.rules import State
    from compress.recipes.gateway.server import Gateway

    return Guarded(Gateway(address, *front, rules, State(chosen.engine)), engine, restarts, tell)


def _watch(
    server: Server | Guarded, address: str, timeout: float, found: dict[str, Any], lines: list[str], json: bool
) -> int:
    """Start the engine and stay with it, say what was `found` once it answers; its exit status."""
    said = False
    try:
        with forwarded(server.stop):
            if server.start(address, timeout):
                _say({**found, "pid": server.pid}, json, [found["url"], found["curl"], *lines])
                said = True
            return server.wait()
    except CompressError as error:
        if not (said and json):
            raise
        typer.echo(f"error: {error}", err=True)  # standard output has its one object
        return error.exit_code
    finally:
        server.close()


def _lines(chosen: Choice) -> list[str]:
    return [f"engine   {chosen.engine}: {chosen.why}", f"command  {shlex.join(chosen.command)}"]


def _curl(url: str, model: str, keyed: bool) -> str:
    body = json_text.dumps({"model": model, "prompt": "The capital of France is", "max_tokens": 16})
    key = '-H "Authorization: Bearer $KEY" ' if keyed else ""
    return f"curl {url}/completions {key}-H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _say(found: dict[str, Any], json: bool, lines: list[str]) -> None:
    if json:
        print_json(found)
    else:
        print(*lines, sep="\n")
    sys.stdout.flush()
