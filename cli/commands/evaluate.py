"""`compress eval`: how well checkpoints still predict text, or what tasks they can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.commands.shared import Device, KVCache, Quiet, device_here, working
from compress.cli.terminal.output import Json, emit
from compress.formats.errors import UsageError

_WINDOWS, _SEQ_LEN = 10, 1024

Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Checkpoints, or models as recipes name them.")]
Reference = Annotated[str | None, typer.Option("--reference", help="The model to compare with.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="A text file, .jsonl, a dataset's name, or builtin; may be given again: each is measured alone, too.  "
        "[default: builtin]",
    ),
]
Windows = Annotated[
    int | None,
    typer.Option("--windows", min=1, max=1 << 20, help="How many windows of each text.  [default: 10]"),
]
SeqLen = Annotated[
    int | None, typer.Option("--seq-len", min=2, max=1 << 20, help="Tokens per window.  [default: 1024]")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="NAME,...",
        help="Measure these instead: tasks of lm-eval, .jsonl files of questions, facts and sums.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Questions of each task.  [default: all]")]
Shots = Annotated[
    int | None, typer.Option("--shots", min=0, help="Examples before each question.  [default: the task's]")
]
BenchFile = Annotated[
    Path | None, typer.Option("--bench", metavar="FILE", help="What `compress bench --json` printed of them.")
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write figures and maps, in a page that opens offline."),
]


def evaluate(
    paths: Paths,
    reference: Reference = None,
    data: Data = None,
    windows: Windows = None,
    seq_len: SeqLen = None,
    kv_cache: KVCache = None,
    tasks: Tasks = None,
    limit: Limit = None,
    shots: Shots = None,
    bench: BenchFile = None,
    html: Html = None,
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity, KL divergence and top-1 agreement, or --tasks. Several checkpoints stand side by side."""
    place = device_here(device)
    if tasks:
        text = {"--data": data, "--windows": windows, "--seq-len": seq_len, "--kv-cache": kv_cache}
        _refuse("--tasks", {**text, "--bench": bench, "--html": html})
        _ask([*([reference] if reference else []), *paths], tasks, limit, shots, place, json=json, quiet=quiet)
        return
    if limit is not None or shots is not None:
        raise UsageError("--limit and --shots are of tasks", "say which: --tasks facts")
    with working(quiet) as reporter:
        from compress.cli.views import checkpoints as show_checkpoints
        from compress.recipes.jobs.bench import timed_in
        from compress.recipes.jobs.evaluate import evaluate as evaluate_paths
        from compress.recipes.page.of_eval import write_comparison

        paces = timed_in(bench) if bench else {}
        rows = evaluate_paths(
            paths,
            reference=reference,
            data=data or "builtin",
            windows=windows or _WINDOWS,
            seq_len=seq_len or _SEQ_LEN,
            kv_cache=kv_cache,
            device=place,
            reporter=reporter,
        )
        rows = [row.model_copy(update={"tokens_per_second": paces.get(row.path)}) for row in rows]
        if html:
            write_comparison(rows, html)
    emit({"results": [row.model_dump(mode="json") for row in rows]}, json, lambda: show_checkpoints.results(rows))


def _refuse(option: str, others: Mapping[str, object]) -> None:
    """Raise UsageError for what does not go with `option`."""
    if given := [name for name, value in others.items() if value is not None]:
        raise UsageError(f"{option} measures something else than {', '.join(given)}", "give them to a command each")


def _ask(
    paths: Sequence[str],
    tasks: Sequence[str],
    limit: int | None,
    shots: int | None,
    device: str,
    *,
    json: bool,
    quiet: bool,
) -> None:
    """Carry out tasks, and show what came of them."""
    names = [name for given in tasks for name in given.split(",") if name]
    with working(quiet) as reporter:
        from compress.cli.views.tasks import tasks as show_tasks
        from compress.recipes.tasks.harness import measure

        found = measure(list(dict.fromkeys(paths)), names, limit=limit, shots=shots, device=device, reporter=reporter)
    emit(found.model_dump(mode="json"), json, lambda: show_tasks(found.results))
