"""The commands on checkpoints: inspect, export, eval, verify, generate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
