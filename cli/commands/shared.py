"""What commands share: options, progress around the work, a device that is there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compress.cli.terminal import completion
from compress.cli.terminal.progress import reporter_for
from compress.cli.terminal.silence import silenced
from compress.formats.errors import RefusedError, UsageError
from compress.passes.forward.heap import keep_freed_memory

if TYPE_CHECKING:
    from compress.passes.core.report import Reporter

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: seed=1, gptq.bits=3, passes.1.gptq.bits=3."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.", autocompletion=completion.devices)]
MaxRam = Annotated[str | None, typer.Option("--max-ram", metavar="SIZE", help="Memory to stay below, as 8GiB.")]
MaxVram = Annotated[str | None, typer.Option("--max-vram", metavar="SIZE", help="GPU memory to stay below, as 16GiB.")]
MaxDisk = Annotated[
    str | None,
    typer.Option("--max-disk", metavar="SIZE", help="What the output may take meanwhile, as 20GB: work and artifacts."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run in DIR did.")]
KVCache = Annotated[
    Literal["int8", "fp8"] | None,
    typer.Option("--kv-cache", help="Keep keys and values in 8 bits, scales per token and head."),
]
Python = Annotated[
    Path | None, typer.Option("--python", metavar="PATH", help="The interpreter that engines are installed for.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and no word of libraries.")]


@contextmanager
def working(quiet: bool) -> Iterator[Reporter]:
    """Progress on standard error, and nothing of any library's on standard output; `quiet`, on neither.

    Commands import what computes within: that takes seconds.
    """
    keep_freed_memory()
    with silenced() if quiet else nullcontext(), reporter_for(quiet) as reporter, redirect_stdout(sys.stderr):
        reporter.tell("loading torch and transformers")
        yield reporter


def device_here(name: str) -> str:
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
