"""The command line: which commands there are, and how every one of them ends.

No torch is imported before a command needs it: `compress --help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import typer

from compress.cli.commands import checkpoints, listing, recipes, trust
from compress.cli.commands.bench import bench
from compress.cli.commands.deploy import deploy
from compress.cli.commands.evaluate import evaluate
from compress.cli.commands.serve import serve
from compress.cli.terminal.help import Command, Group
from compress.cli.terminal.output import print_json
from compress.cli.terminal.signals import Interrupted, interruptible
from compress.formats.errors import CompressError

app = typer.Typer(
    name="compress",
    help="One YAML recipe in, compressed language models that engines load out.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help costs 0.3 s: ours has colours of its own
    cls=Group,
    pretty_exceptions_enable=False,
)
app.command("run", cls=Command)(recipes.run)
app.command("quantize", cls=Command)(recipes.quantize)
app.command("plan", cls=Command)(recipes.plan)
app.command("inspect", cls=Command)(checkpoints.inspect)
app.command("export", cls=Command)(checkpoints.export)
app.command("eval", cls=Command)(evaluate)
app.command("verify", cls=Command)(checkpoints.verify)
app.command("diff", cls=Command)(trust.diff)
app.command("replay", cls=Command)(trust.replay)
app.command("sign", cls=Command)(trust.sign)
app.command("generate", cls=Command)(checkpoints.generate)
app.command("serve", cls=Command)(serve)
app.command("bench", cls=Command)(bench)
app.command("deploy", cls=Command)(deploy)
app.command("doctor", cls=Command)(trust.doctor)
app.command("passes", cls=Command)(listing.passes)
app.command("dialects", cls=Command)(listing.dialects)
app.command("recipes", cls=Command)(listing.recipes)
app.command("schema", cls=Command)(listing.schema)
app.command("init", cls=Command)(listing.init)

_RESUMABLE = (["run"], ["quantize"], ["export"], ["replay"])
"""Commands whose work is committed as it goes."""
_SHORT = (["plan"], ["inspect"])
"""Commands that read headers only, and are over before garbage is worth a look."""
_NEVER, _SELDOM = 0, 50_000


_STAYING = (["serve"],)
"""Commands that have nothing left to clear away when they end."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"compress {version('compress-llm')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One YAML recipe in, compressed language models that engines load out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, as README.md lists them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _quiet_libraries()
    _leave_cores()
    _leave_memory()
    atexit.register(gc.freeze)  # the interpreter looks through all that torch has made, twice, before it ends
    with interruptible(), _collecting(_NEVER if arguments[:1] in _SHORT else _SELDOM):
        try:
            code = typer.main.get_command(app)(
                list(arguments), prog_name="compress", standalone_mode=False, obj=arguments
            )
            return code if isinstance(code, int) else 0
        except Interrupted as stop:
            again = "; the same command goes on where it stopped" if arguments[:1] in _RESUMABLE else ""
            typer.echo(f"interrupted{again}", err=True)
            return _exit(arguments, f"interrupted{again}", "", stop.exit_code)
        except CompressError as error:
            return _fail(arguments, str(error), error.hint, error.exit_code)
        except Exception as error:  # noqa: BLE001 - the last resort: a bug is told in one line
            return _unexpected(arguments, error)


def entry() -> NoReturn:
    """Run one command as the process's only one, and end the process."""
    code = main()
    if sys.argv[1:2] not in _STAYING:
        sys.exit(code)
    # The interpreter would take all modules of torch and transformers apart: a second, or half a minute on a machine
    # whose cores are busy, in which whoever watches the process takes the server for alive.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads any more
            stream.flush()
    os._exit(code)


@contextmanager
def _collecting(threshold: int) -> Iterator[None]:
    """Collect garbage less often: what torch and transformers make on import stays, and a tenth of it is this."""
    before = gc.get_threshold()
    gc.set_threshold(threshold, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _quiet_libraries() -> None:
    """Libraries tell nothing of their own on standard error, unless the user asked for it."""
    for library in ("TRANSFORMERS", "HF_HUB", "DATASETS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    os.environ.setdefault("RUST_BACKTRACE", "0")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions and not os.environ.get("COMPRESS_DEBUG"):
        warnings.simplefilter("ignore")


def _leave_cores() -> None:
    """Threads that wait for others sleep, unless the user said otherwise; OpenMP asks before torch is loaded.

    By default they spin, and count as busy: with another process per core, however nice, the thread that they wait
    for then gets no core, and `gptq` takes ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _leave_memory() -> None:
    """oneDNN keeps what it made for the last products, unless the user said otherwise; it asks at the first one.

    By default that is 1,024 of them, with their buffers: of experts, whose counts of tokens are all different, hundreds
    of MB that no plan knows of.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def _unexpected(arguments: Sequence[str], error: Any) -> int:
    # Typer's own errors have no public class that all its versions share.
    if hasattr(error, "format_message") and hasattr(error, "show"):
        error.show()
        return _exit(arguments, error.format_message(), "", int(error.exit_code))
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "not enough memory" in str(error):
        option = "--max-vram" if "CUDA" in str(error) else "--max-ram"
        return _fail(arguments, "out of memory", f"use fewer samples or a shorter seq_len, or set {option}", 1)
    if os.environ.get("COMPRESS_DEBUG"):
        traceback.print_exc()
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    hint = "this is a bug: please report it, with the traceback that COMPRESS_DEBUG=1 shows"
    return _fail(arguments, reason, hint, 1)


def _fail(arguments: Sequence[str], message: str, hint: str, code: int) -> int:
    """Say on standard error what went wrong and what to do."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)
    if hint:
        typer.echo(f"  {hint}", err=True)
    return _exit(arguments, message, hint, code)


def _exit(arguments: Sequence[str], message: str, hint: str, code: int) -> int:
    """With --json, a failure too is one object on standard output."""
    if "--json" in arguments:
        print_json({"error": {"message": message, "hint": hint, "exit_code": code}})
    return code
