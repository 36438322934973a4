"""What a Python file says of its class, read without importing it: a listing must not wait for torch."""

from __future__ import annotations

import ast
from pathlib import Path


def class_of(path: Path, name: str) -> ast.ClassDef:
    """The class in the file `path` that is called `name`, but for case and underscores; else its last one.

    Raises ValueError for a file without classes.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if not found:
        raise ValueError(f"{path} holds no class")
    plain = name.replace("_", "")
    return next((node for node in found if node.name.lower() == plain), found[-1])


def summary(found: ast.ClassDef) -> str:
    """The first line of its docstring."""
    return (ast.get_docstring(found) or "").partition("\n")[0]


def keys(found: ast.ClassDef, attribute: str) -> list[str]:
    """The keys of the dictionary that stands in its body as `attribute`; none if there is no such."""
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == attribute:
            literal = node.value.keys if isinstance(node.value, ast.Dict) else []
            return [key.value for key in literal if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return []
