"""The commands that ask whether artifacts are what they are said to be: diff."""

from __future__ import annotations

from typing import Annotated

import typer

from compress.cli.commands.shared import Device, Quiet, device_here, working
from compress.cli.terminal.output import Json, emit

_DIFFER = 1
"""The exit code of `diff` where two files differ."""


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint in any container, or a model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare with it.")],
    text: Annotated[
        str | None, typer.Option("--text", help="Compare answers too: a text file, .jsonl, a dataset, or builtin.")
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, max=1 << 20, help="How many windows of --text.")] = 10,
    seq_len: Annotated[int, typer.Option("--seq-len", min=2, max=1 << 20, help="Tokens per window.")] = 1024,
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what differs between two checkpoints: tensors, settings and, with --text, answers. Exits 1 if they do.

    For two runs that should agree, an artifact in two containers, or what a changed option did.
    """
    place = device_here(device)
    with working(quiet) as reporter:
        from compress.cli.views.diff import diff as show_diff
        from compress.recipes.jobs.diff import diff as compare

        found = compare(a, b, text=text, windows=windows, seq_len=seq_len, device=place, reporter=reporter)
    emit(found.model_dump(mode="json"), json, lambda: show_diff(found))
    if found.differ:
        raise typer.Exit(_DIFFER)
