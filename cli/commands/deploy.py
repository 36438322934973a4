"""The command that writes what containers and clusters start an artifact from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from compress.cli.commands.shared import Quiet, working
from compress.cli.terminal.output import Json, emit
from compress.cli.terminal.units import memory_size
from compress.formats.sizes import parse_bytes

if TYPE_CHECKING:
    from compress.recipes.elsewhere.deploy import Deployment


def deploy(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A checkpoint: a directory or a .gguf file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: out/deploy/ and the artifact's name.")
    ] = None,
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens of one conversation.")] = 4096,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Conversations at once.")] = 8,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=0, help="Of each replica.  [default: as many as vLLM needs]")
    ] = None,
    vram: Annotated[str, typer.Option("--vram", metavar="SIZE", help="Memory of one GPU.")] = "24GiB",
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Cores of each replica.")] = 4,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="At most, under load.")] = 4,
    host: Annotated[str, typer.Option("--host", help="The name that the ingress answers to.")] = "model.example.com",
    image: Annotated[str | None, typer.Option("--image", help="Another image of the engine, with its tag.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write Dockerfile, compose file, Kubernetes objects, Helm values and a KServe service for an artifact.

    For when it is to run elsewhere than `compress serve` does: by vLLM, or by llama.cpp if it is a GGUF. Nothing runs
    as root, and no file holds a secret.
    """
    with working(quiet):
        from compress.recipes.elsewhere.deploy import Wishes
        from compress.recipes.elsewhere.deploy import deploy as write

        wishes = Wishes(
            context=context,
            parallel=parallel,
            gpus=gpus,
            vram=parse_bytes(vram),
            cpus=cpus,
            max_replicas=replicas,
            host=host,
            image=image,
        )
        found = write(artifact, output or Path("out", "deploy", artifact.resolve().name), wishes)
    emit(found.model_dump(mode="json"), json, lambda: _view(found))


def _view(found: Deployment) -> list[RenderableType]:
    where = f"{found.gpus} GPUs" if found.gpus else "no GPU"
    weights, cache = memory_size(found.weights_bytes), memory_size(found.cache_bytes)
    head = f"{found.name}: {found.image}, {where}, {memory_size(found.memory_bytes)} of memory a replica"
    files = [f"  {found.output}/{name}" for name in found.files]
    return [
        f"{head} (weights {weights}, cache {cache})",
        *files,
        f"next: kubectl apply -f {shlex.quote(found.output)}/kubernetes",
    ]
