"""`compress bench`: how fast engines that are installed here write with artifacts."""

from __future__ import annotations

from typing import Annotated

import typer

from compress.cli.commands.shared import Python, Quiet, working
from compress.cli.terminal import completion
from compress.cli.terminal.output import Json, emit
from compress.formats.errors import UsageError


def bench(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Checkpoints, or models as recipes name them.")],
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            help="llama.cpp or transformers; may be given again.  [default: those that the container is for]",
            autocompletion=completion.writers,
        ),
    ] = None,
    python: Python = None,
    draft: Annotated[
        str | None, typer.Option("--draft", metavar="PATH", help="A small model that proposes tokens: timed as well.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=2, help="Tokens that are read.")] = 256,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens that are written.")] = 64,
    concurrency: Annotated[
        list[int] | None,
        typer.Option("--concurrency", min=1, help="Conversations at once; may be given again.  [default: 1]"),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each is timed, in turn.")] = 5,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of an engine.  [default: the cores that are here]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="The text of prompts, as for `compress eval`.  [default: builtin; with --url: guidellm's own]",
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Time a server that runs there, and serves PATH, through guidellm.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time how fast engines read and write with checkpoints, side by side.

    Every checkpoint is timed in each engine, in rounds that all have a turn in.
    """
    if url and (engines or draft or python or threads or len(paths) > 1):
        raise UsageError("--url times one PATH, by the server that serves it", "leave out --engine, --draft, …")
    with working(quiet) as reporter:
        from compress.cli.views import bench as show
        from compress.recipes.engines.machine import cores
        from compress.recipes.jobs.bench import Load
        from compress.recipes.jobs.bench import bench as time_paths
        from compress.recipes.jobs.load import time_server

        at_once = tuple(dict.fromkeys(concurrency or [1]))
        load = Load(prompt_tokens, tokens, at_once, rounds, threads or cores(), data)
        if url:
            found = time_server(url, paths[0], load, reporter)
        else:
            found = time_paths(paths, load, engines=engines or (), python=python, draft=draft, reporter=reporter)
    emit(found.model_dump(mode="json"), json, lambda: show.bench(found))
