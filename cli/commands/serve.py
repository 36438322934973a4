"""`compress serve`: an engine that is installed here serves an artifact; we choose, start and watch it."""

from __future__ import annotations

import json as json_text
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.cli.commands.shared import Quiet, working
from compress.cli.terminal import completion
from compress.cli.terminal.output import Json, print_json
from compress.cli.terminal.signals import forwarded
from compress.formats.errors import CompressError, UsageError

if TYPE_CHECKING:
    from compress.recipes.engines.choice import Choice

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="A checkpoint, or a model as recipes name it.")],
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            help="vllm, llama.cpp or transformers.  [default: the first that is installed and loads it]",
            autocompletion=completion.servers,
        ),
    ] = None,
    python: Annotated[
        Path | None, typer.Option("--python", metavar="PATH", help="The interpreter that engines are installed for.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free.")] = 8000,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Tokens of one conversation.")] = None,
    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="TYPE", help="Of keys and values, in the engine's word: q8_0, or vLLM's fp8."),
    ] = None,
    parallel: Annotated[int | None, typer.Option("--parallel", min=1, help="Conversations at once.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait until it answers.")] = 600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which engine, why, and its command.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a checkpoint as OpenAI's API does, with an engine that is installed here.

    Ctrl-C and SIGTERM are passed on to it, and its exit status is the command's.
    """
    from compress.recipes.jobs.serve import address_of, free_port

    if not host:
        raise UsageError("--host is empty", "0.0.0.0 listens on every address")
    port = free_port(host, port)
    chosen = _chosen(
        artifact, engine, python, port, {"host": host, "context": context, "cache": cache, "parallel": parallel}, quiet
    )
    address = address_of(host, port)
    if dry_run:
        _say({**asdict(chosen), "url": f"{address}/v1"}, json, _lines(chosen))
        return
    if host not in _LOOPBACK and not quiet:
        typer.echo(f"note: whoever reaches {host} may use it: it asks for no key", err=True)
    raise typer.Exit(_watch(chosen, address, timeout, json=json, quiet=quiet))


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


def _watch(chosen: Choice, address: str, timeout: float, *, json: bool, quiet: bool) -> int:
    """Start the engine and stay with it; its exit status."""
    from compress.recipes.jobs.serve import Server

    def tell(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    tell(f"starting {chosen.engine}: {shlex.join(chosen.command)}")
    server = Server(chosen.engine, chosen.command, tell=tell, heard=tell)
    said = False
    try:
        with forwarded(server.stop):
            if server.start(address, timeout):
                curl = _curl(address, chosen.model)
                found = {**asdict(chosen), "url": f"{address}/v1", "curl": curl, "pid": server.pid}
                _say(found, json, [f"{address}/v1", curl, *_lines(chosen)])
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


def _curl(address: str, model: str) -> str:
    body = json_text.dumps({"model": model, "prompt": "The capital of France is", "max_tokens": 16})
    return f"curl {address}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _say(found: dict[str, Any], json: bool, lines: list[str]) -> None:
    if json:
        print_json(found)
    else:
        print(*lines, sep="\n")
    sys.stdout.flush()
