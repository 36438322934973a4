"""What a shell may complete: the words that begin with what was typed, each with its help.

They are read from files, without importing them: no key waits for torch. The parameters' name is Typer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def recipes(incomplete: str) -> list[tuple[str, str]]:
    """The bundled recipes. (Where none begins so, the shell goes on with files.)"""
    from compress.recipes import bundled

    return _beginning(incomplete, bundled.summaries())


def passes(incomplete: str) -> list[tuple[str, str]]:
    """The passes."""
    from compress import passes as registry

    return _beginning(incomplete, registry.summaries())


def dialects(incomplete: str) -> list[tuple[str, str]]:
    """The containers."""
    from compress import formats

    return _beginning(incomplete, formats.summaries())


def targets(incomplete: str) -> list[tuple[str, str]]:
    """The engines that some container is for."""
    from compress import formats

    return _beginning(incomplete, dict.fromkeys(formats.engines(), ""))


def containers(incomplete: str) -> list[tuple[str, str]]:
    """The last of a list of containers with commas between."""
    from compress import formats

    before, comma, last = incomplete.rpartition(",")
    return [(f"{before}{comma}{name}", text) for name, text in _beginning(last, formats.summaries())]


def engines(incomplete: str) -> list[tuple[str, str]]:
    """The engines that can be asked for their answers: there is a script for each."""
    from compress.recipes.engines import scripts

    names = sorted(path.stem for path in Path(scripts.__path__[0]).glob("[a-z]*.py"))
    return _beginning(incomplete, dict.fromkeys(names, ""))


def servers(incomplete: str) -> list[tuple[str, str]]:
    """The engines that serve: their scripts hold a command."""
    return _holding("command", incomplete)


def writers(incomplete: str) -> list[tuple[str, str]]:
    """The engines that are timed in a process of ours: their scripts hold a writer."""
    return _holding("writer", incomplete)


def _holding(function: str, incomplete: str) -> list[tuple[str, str]]:
    from compress.recipes.engines import scripts

    files = sorted(Path(scripts.__path__[0]).glob("[a-z]*.py"))
    return _beginning(incomplete, {path.stem: "" for path in files if f"\ndef {function}(" in path.read_text()})


def devices(incomplete: str) -> list[tuple[str, str]]:
    """Kinds of device: no GPU is asked."""
    return _beginning(incomplete, {"cpu": "", "cuda": "the first GPU", "cuda:1": "the second GPU"})


def _beginning(incomplete: str, known: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(word, text) for word, text in known.items() if word.startswith(incomplete)]
