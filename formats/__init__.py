"""How are models stored? Every folder here that holds a `dialect.py` is a container; there is no list to keep.

This module imports nothing heavy: the dialects are loaded when they are first asked for.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from compress.formats import outline
from compress.formats.errors import InputError

if TYPE_CHECKING:
    from compress.formats.base import Checkpoint, Dialect

__all__ = ["dialects", "engines", "open_checkpoint", "summaries"]


def dialects() -> dict[str, type[Dialect]]:
    """Every container convention, by name: the Dialects that the modules `dialect.py` define, wherever they lie."""
    return dict(_dialects(tuple(__path__)))


def summaries() -> dict[str, str]:
    """What each of `dialects` is for, in a line, read from the files: nothing is imported."""
    return {folder.replace("_", "-"): outline.summary(found) for folder, found in _classes().items()}


def engines() -> list[str]:
    """The engines that some dialect says load its artifacts, read from the files: nothing is imported."""
    return sorted({engine for found in _classes().values() for engine in outline.keys(found, "loads")})


@cache
def _dialects(roots: tuple[str, ...]) -> dict[str, type[Dialect]]:
    """`dialects` in these folders: a run asks some dozen times."""
    from compress.formats.base import Dialect

    modules = [importlib.import_module(name) for name in _files(roots)]
    found = [
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Dialect) and value.__module__ == module.__name__
    ]
    return {dialect.name: dialect for dialect in sorted(found, key=lambda dialect: dialect.name)}


def _classes() -> dict[str, ast.ClassDef]:
    """The class of every dialect, by its folder."""
    return {path.parent.name: outline.class_of(path, path.parent.name) for path in _files(__path__).values()}


def _files(roots: Iterable[str]) -> dict[str, Path]:
    """The file of every module `dialect` in these folders, by the module's name."""
    found = ((Path(root), path) for root in roots for path in Path(root).rglob("dialect.py"))
    names = {".".join((__name__, *path.relative_to(root).with_suffix("").parts)): path for root, path in found}
    return dict(sorted(names.items()))


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any dialect lazily. Raises InputError saying what is there instead of one."""
    if not path.exists():
        raise InputError(f"{path}: no such file or directory", "give a model directory or a .gguf file")
    found = [dialect for dialect in dialects().values() if dialect.recognizes(path)]
    if len(found) == 1:
        return found[0].open(path)
    if found:
        raise InputError(f"{path} could be any of: {', '.join(dialect.name for dialect in found)}")
    from compress.formats.files.unrecognized import unrecognized

    raise unrecognized(path, sorted(dialects()))
