"""The commands that compute: run, plan, export, eval, verify, generate."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compress.cli.output import Json, emit
from compress.cli.progress import reporter_for
from compress.cli.units import parse_bytes
from compress.formats.errors import CompressError, GateError, RefusedError, UsageError

if TYPE_CHECKING:
    from compress.passes.core.report import Reporter

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: seed=1, gptq.bits=3, passes.1.gptq.bits=3."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
MaxRam = Annotated[str | None, typer.Option("--max-ram", metavar="SIZE", help="Memory to stay below, as 8GiB.")]
MaxVram = Annotated[str | None, typer.Option("--max-vram", metavar="SIZE", help="GPU memory to stay below, as 16GiB.")]
KVCache = Annotated[
    Literal["int8", "fp8"] | None,
    typer.Option("--kv-cache", help="Keep keys and values in 8 bits, scales per token and head."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A file, a bundled name (quickstart), or - for stdin.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Default: out/ and the recipe's name."),
    ] = None,
    overrides: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run in DIR did.")] = False,
    device: Device = "cpu",
    max_ram: MaxRam = None,
    max_vram: MaxVram = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe. After an interruption the same command goes on where it stopped."""
    from compress.cli import view
    from compress.recipes.recipe import load
    from compress.recipes.run import run as run_recipe

    loaded = load(recipe, overrides or ())
    target = output or Path("out") / (Path(recipe).stem if recipe != "-" else "recipe")
    ram, vram = (parse_bytes(size) if size else None for size in (max_ram, max_vram))
    place = _device(device)
    with _working(quiet) as reporter:
        report = run_recipe(loaded, target, fresh=fresh, device=place, max_ram=ram, max_vram=vram, reporter=reporter)
    emit(report.model_dump(mode="json"), json, lambda: view.run_report(report))
    if report.missed:
        for gate in report.missed:
            typer.echo(f"gate missed: {gate}", err=True)
        raise typer.Exit(GateError.exit_code)


def plan(
    source: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe, or a model as recipes name it.")],
    overrides: Set = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", metavar="ENGINE", help="Refuse what it cannot load, as vllm.")
    ] = None,
    max_ram: MaxRam = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a recipe will write, or how large a model is. Reads headers only: no weight."""
    from compress.cli import view
    from compress.recipes.recipe import is_recipe, load, with_targets

    if is_recipe(source):
        from compress.recipes.plan import plan as plan_recipe

        recipe = load(source, overrides or ())
        recipe = with_targets(recipe, target or ())
        ram = parse_bytes(max_ram) if max_ram else None
        with _working(quiet) as reporter:
            planned = plan_recipe(recipe, max_ram=ram, reporter=reporter)
        emit(planned.model_dump(mode="json"), json, lambda: view.plan(planned))
        return
    if overrides or max_ram or target:
        raise UsageError("--set, --target and --max-ram belong to a recipe, and this is a model")
    from compress.formats import open_checkpoint
    from compress.formats.files.source import resolve
    from compress.recipes.jobs.memory import memory_of

    with _working(quiet) as reporter:
        checkpoint = open_checkpoint(resolve(source, progress=reporter.note))
    table = memory_of(source, checkpoint.spec, checkpoint.nbytes())
    emit(table.model_dump(mode="json"), json, lambda: view.memory(table))


def export(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="A checkpoint in any dialect.")],
    dialect: Annotated[str, typer.Option("--dialect", help="The container to write: see `compress dialects`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the artifact's folder goes.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the dialect.")
    ] = None,
    requantize: Annotated[bool, typer.Option("--requantize", help="Convert what DIALECT cannot hold exactly.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint from one dialect to another."""
    from compress.cli import view
    from compress.recipes.jobs.export import export as export_artifact

    options = _options(settings or ())
    with _working(quiet) as reporter:
        report = export_artifact(artifact, dialect, options, output, requantize=requantize, reporter=reporter)
    emit(report.model_dump(mode="json"), json, lambda: view.artifact_report(report))


def evaluate(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Checkpoints, or models as recipes name them.")],
    reference: Annotated[str | None, typer.Option("--reference", help="The model to compare with.")] = None,
    data: Annotated[str, typer.Option("--data", help="A text file, .jsonl, a dataset's name, or builtin.")] = "builtin",
    windows: Annotated[int, typer.Option("--windows", min=1, max=1 << 20, help="How many windows of text.")] = 10,
    seq_len: Annotated[int, typer.Option("--seq-len", min=2, max=1 << 20, help="Tokens per window.")] = 1024,
    kv_cache: KVCache = None,
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity, KL divergence and top-1 agreement. Several checkpoints stand side by side."""
    from compress.cli import view
    from compress.recipes.jobs.evaluate import evaluate as evaluate_paths

    place = _device(device)
    with _working(quiet) as reporter:
        rows = evaluate_paths(
            paths,
            reference=reference,
            data=data,
            windows=windows,
            seq_len=seq_len,
            kv_cache=kv_cache,
            device=place,
            reporter=reporter,
        )
    emit({"results": [row.model_dump(mode="json") for row in rows]}, json, lambda: view.results(rows))


def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that compress wrote.")],
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="Also start this engine and compare its answers: vllm, llama.cpp, transformers."),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="PATH", help="The interpreter that the engine is installed for."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check an artifact: hashes, settings, every tensor, the tokenizer, logits against the recorded ones."""
    from compress.cli import view
    from compress.recipes.jobs.verify import verify as verify_artifact

    if python is not None and engine is None:
        raise UsageError("--python names the interpreter of an engine", "say which: --engine vllm")
    with _working(quiet) as reporter:
        found = verify_artifact(artifact, engine=engine, python=python, reporter=reporter)
    emit(found.model_dump(mode="json"), json, lambda: view.verification(found))
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
    from compress.recipes.jobs.generate import generate as generate_text

    text = sys.stdin.read() if prompt == "-" else prompt
    place = _device(device)

    def write(piece: str) -> None:
        stdout.write(piece)
        stdout.flush()

    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
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


@contextmanager
def _working(quiet: bool) -> Iterator[Reporter]:
    """Progress on standard error, and nothing of any library's on standard output."""
    with reporter_for(quiet) as reporter, redirect_stdout(sys.stderr):
        yield reporter


def _options(settings: Sequence[str]) -> dict[str, Any]:
    from compress.recipes import yaml

    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting}: not OPTION=VALUE", "as `--set type=q8_0`")
        options[key] = yaml.parse(text, f"--set {key}").data
    return options


def _device(name: str) -> str:
    """`name` as it is, if this machine has it."""
    if name == "cpu":
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: there are cpu, cuda and cuda:N")
    import torch

    count = torch.cuda.device_count()
    if int(name.partition(":")[2] or 0) >= count:
        raise RefusedError(f"--device {name}: torch sees {count} CUDA devices here", "use --device cpu")
    return name
