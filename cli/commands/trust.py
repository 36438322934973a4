"""The commands that ask whether things are what they are said to be: diff, replay, sign, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.commands.shared import Device, MaxRam, MaxVram, Quiet, Set, device_here, working
from compress.cli.terminal.output import Json, emit
from compress.formats.errors import CompressError, UsageError
from compress.formats.sizes import parse_bytes

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


def replay(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that compress wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: out/replay/ and the artifact's name.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("--from", metavar="DIR", help="Where relative paths of its recipe begin.  [default: here]")
    ] = Path(),
    overrides: Set = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether all that it was made of is here.")] = False,
    device: Device = "cpu",
    max_ram: MaxRam = None,
    max_vram: MaxVram = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an artifact again from its own manifest, and compare every byte. Exits 1 if it does not come out the same.

    For an audit, or before trusting a file from elsewhere: recipe, source, tokens and versions are held against what
    was recorded, and what is missing or differs is named before anything is computed.
    """
    place, ram, vram = device_here(device), *(parse_bytes(size) if size else None for size in (max_ram, max_vram))
    target = output or Path("out", "replay", artifact.resolve().name)
    with working(quiet) as reporter:
        from compress.cli.views.trust import replay as show_replay
        from compress.recipes.jobs.replay import replay as make_again

        found = make_again(
            artifact,
            target,
            folder=folder,
            changes=overrides or (),
            check=check,
            device=place,
            max_ram=ram,
            max_vram=vram,
            reporter=reporter,
        )
    emit(found.model_dump(mode="json"), json, lambda: show_replay(found))
    if found.unlike if check else not found.reproduced:
        raise typer.Exit(CompressError.exit_code)


def sign(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that compress wrote.")],
    key: Annotated[
        Path | None, typer.Option("--key", metavar="PEM", help="A private key on a NIST curve (P-256, 384, 521).")
    ] = None,
    sigstore: Annotated[
        bool, typer.Option("--sigstore", help="Without a key: sigstore.dev vouches for who you are. Needs the network.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sign every file of an artifact with OpenSSF's model-signing: `compress verify --public-key` checks it.

    The signature lies beside the manifest, and `model_signing verify` understands it, too. With --sigstore it says who
    signed: `compress verify --identity` checks that.
    """
    if sigstore == bool(key):
        raise UsageError("sign with a key or by sigstore", "--key PEM, or --sigstore")
    with working(quiet):
        from compress.recipes.artifacts import artifact_at
        from compress.recipes.trust.signature import sign as sign_artifact

        path = artifact_at(artifact, "compress sign")
        signature = sign_artifact(path, key)
    emit({"path": str(path), "signature": str(signature)}, json, lambda: [str(signature)])


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Say what is installed here, what each engine can load, and how much memory and disk there is.

    For when something does not start, and for a report of it.
    """
    with working(quiet) as reporter:
        from compress.cli.views.trust import doctor as show_doctor
        from compress.recipes.jobs.doctor import examine

        reporter.tell("looking for engines")
        found = examine(Path("out"))
    emit(found.model_dump(mode="json"), json, lambda: show_doctor(found))
