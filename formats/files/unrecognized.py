"""What to say of a path that no dialect recognizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compress.formats.errors import InputError
from compress.formats.files.hf_config import is_hf_directory, quantization_of
from compress.formats.files.hf_files import PICKLES, pickle_error

_SHOWN = 8


def unrecognized(path: Path, dialects: Sequence[str]) -> InputError:
    """The error that says what lies at `path`, why it cannot be opened, and what can."""
    if path.suffix in PICKLES:
        return pickle_error(path)
    if path.suffix == ".safetensors":
        return InputError(
            f"{path} is weights only: it says neither the architecture nor the tokenizer",
            "give the directory that holds it together with config.json",
        )
    if not path.is_dir():
        return InputError(f"{path} is not a checkpoint", "give a model directory or a .gguf file")
    if is_hf_directory(path):
        method = str((quantization_of(path) or {}).get("quant_method"))[:40]
        return InputError(
            f"{path} is quantized by the method {method!r}, which is not read",
            f"dialects that are: {', '.join(dialects)}",
        )
    names = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return InputError(
        f"{path} is no model directory: it has no config.json (it holds {shown or 'nothing'})",
        "give a directory with config.json and .safetensors files, or a .gguf file",
    )
