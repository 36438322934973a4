"""The files that every artifact carries beside its weights: configurations, tokenizer, chat templates, licences.

They are the source's own bytes. Saving them again through a library renames keys (`rope_theta`, `torch_dtype`,
the tokenizer's class), and engines on an older generation of that library read garbage. A file is known by its
path from the model's directory, with `/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from compress.formats.files.hf_config import HF_QUANT_CONFIG, QUANTIZE_CONFIG
from compress.formats.files.storage import make_directory, read_bytes, write_bytes

TEMPLATES = "additional_chat_templates"  # transformers' folder of chat templates, `<name>.jinja`
_TEMPLATE = ".jinja"

_MAX_FILE = 256 << 20
_KINDS = (".json", _TEMPLATE, ".txt", ".model", ".tiktoken")
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
_LEFT = (".index.json", QUANTIZE_CONFIG, HF_QUANT_CONFIG, "compress.json", ".intoto.json")

PATTERNS = (*(f"*{kind}" for kind in (".safetensors", *_KINDS)), *(f"{name}*" for name in _LEGAL))
"""Shell patterns of a model's files in the directory itself: weights, what describes them, and what is carried."""
TEMPLATE_PATTERN = f"{TEMPLATES}/*{_TEMPLATE}"
"""The same of those in its one folder."""


def is_carried(name: str) -> bool:
    """Whether a file of that path is one that artifacts carry."""
    folder, _, leaf = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and leaf.endswith(_TEMPLATE)
    return leaf.startswith(_LEGAL) or (leaf.endswith(_KINDS) and not leaf.endswith(_LEFT))


def is_of_model(name: str) -> bool:
    """Whether a file of that path belongs to the model of its directory."""
    return is_carried(name) if "/" in name else any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def carried_files(directory: Path) -> dict[str, bytes]:
    """Every file but weights, code and model card, by path from `directory`.

    Raises InputError for one that is not a regular file or larger than 256 MiB.
    """
    paths = [*directory.iterdir(), *directory.glob(f"{TEMPLATES}/*")]
    names = sorted(path.relative_to(directory).as_posix() for path in paths if not path.is_dir())
    return {name: read_bytes(directory / name, _MAX_FILE) for name in names if is_carried(name)}


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write every file as a real file. Raises StorageError."""
    for name, data in files.items():
        path = directory / name
        if path.parent != directory:
            make_directory(path.parent)
        write_bytes(path, data)
