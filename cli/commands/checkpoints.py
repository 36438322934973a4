"""The commands on checkpoints: inspect, export, eval, verify, generate."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from compress.cli.commands.shared import Device, KVCache, Quiet, device_here, working
from compress.cli.terminal import completion
from compress.cli.terminal.output import Json, emit
from compress.formats.errors import CompressError, RefusedError, UsageError


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint, or a model as recipes name it.")],
    json: Json = False,
) -> None:
    """List what is in a checkpoint. Reads headers only: tensors, number formats, bits per weight, dialect."""
    from compress.cli.views import checkpoints as show_checkpoints
    from compress.formats.files.source import resolve
    from compress.recipes.jobs.inspect import inspect as inspect_path

    found = inspect_path(resolve(path))
    emit(found.model_dump(mode="json"), json, lambda: show_checkpoints.inspection(found))


def export(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="A checkpoint in any dialect.")],
    dialect: Annotated[
        str,
        typer.Option(
            "--dialect", help="The container to write: see `compress dialects`.", autocompletion=completion.dialects
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the artifact's folder goes.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the dialect.")
    ] = None,
    requantize: Annotated[bool, typer.Option("--requantize", help="Convert what DIALECT cannot hold exactly.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint from one dialect to another."""
    options = _options(settings or ())
    with working(quiet) as reporter:
        from compress.cli.views import recipes as show_recipes
        from compress.recipes.jobs.export import export as export_artifact

        report = export_artifact(artifact, dialect, options, output, requantize=requantize, reporter=reporter)
    emit(report.model_dump(mode="json"), json, lambda: show_recipes.artifact_report(report))


def evaluate(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Checkpoints, or models as recipes name them.")],
    reference: Annotated[str | None, typer.Option("--reference", help="The model to compare with.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="A text file, .jsonl, a dataset's name, or builtin; may be given again: each is measured alone, too.  "
            "[default: builtin]",
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option("--windows", min=1, max=1 << 20, help="How many windows of each text.  [default: 10]"),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option("--seq-len", min=2, max=1 << 20, help="Tokens per window.  [default: 1024]")
    ] = None,
    kv_cache: KVCache = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="NAME,...",
            help="Measure these instead: tasks of lm-eval, .jsonl files of questions, facts and sums.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Questions of each task.  [default: all]")] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Examples before each question.  [default: the task's]")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option("--bench", metavar="FILE", help="What `compress bench --json` printed of them.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write figures and maps, in a page that opens offline."),
    ] = None,
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
            windows=windows or 10,
            seq_len=seq_len or 1024,
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


def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that compress wrote.")],
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", metavar="PEM", help="Also check the signature of `compress sign`."),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", metavar="NAME", help="The same of `sign --sigstore`: who is to have signed."),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option("--identity-provider", metavar="URL", help="Who says so, as https://accounts.google.com."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            help="Also start this engine and compare its answers: vllm, llama.cpp, transformers.",
            autocompletion=completion.engines,
        ),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="PATH", help="The interpreter that the engine is installed for."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check an artifact: hashes, settings, every tensor, the tokenizer, logits against the recorded ones."""
    if python is not None and engine is None:
        raise UsageError("--python names the interpreter of an engine", "say which: --engine vllm")
    if bool(identity) != bool(provider) or (identity and public_key):
        raise UsageError("--identity and --identity-provider go together, in the place of --public-key")
    with working(quiet) as reporter:
        from compress.cli.views import checkpoints as show_checkpoints
        from compress.recipes.jobs.verify import verify as verify_artifact
        from compress.recipes.trust.signature import Identity

        signed = Identity(identity, provider) if identity and provider else None
        found = verify_artifact(
            artifact, public_key=public_key, identity=signed, engine=engine, python=python, reporter=reporter
        )
    emit(found.model_dump(mode="json"), json, lambda: show_checkpoints.verification(found))
    if not found.passed:
        raise typer.Exit(CompressError.exit_code)
    if found.not_here:
        raise typer.Exit(RefusedError.exit_code)


def generate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint, or a model as recipes name it.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What to answer; - reads stdin.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens at most.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampling.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Go on with TEXT as it is, without the chat template.")] = False,
    kv_cache: KVCache = None,
    device: Device = "cpu",
) -> None:
    """Try a checkpoint: print its answer as it comes."""
    from compress.kernels.fallbacks import counting
    from compress.recipes.jobs.generate import generate as generate_text

    text = sys.stdin.read() if prompt == "-" else prompt
    place = device_here(device)

    def write(piece: str) -> None:
        stdout.write(piece)
        stdout.flush()

    stdout = sys.stdout
    with redirect_stdout(sys.stderr), counting() as fallbacks:
        generate_text(
            path,
            text,
            write,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            raw=raw,
            kv_cache=kv_cache,
            device=place,
        )
    write("\n")
    for what, times in fallbacks.items():
        typer.echo(f"note: {what} ({times} times)", err=True)


def _options(settings: Sequence[str]) -> dict[str, Any]:
    from compress.recipes import yaml

    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting}: not OPTION=VALUE", "as `--set type=q8_0`")
        options[key] = yaml.parse(text, f"--set {key}").data
    return options
