"""llama.cpp's own mixes among the choices, to be held against what was chosen."""

from __future__ import annotations

from compress.formats.base import ModelSpec
from compress.formats.gguf.blocks.substitutes import fitting
from compress.formats.gguf.mixes import FILE_TYPES, mixed_modules
from compress.passes.choice.menu import Menu
from compress.passes.core.base import Rung


def known_mixes(menu: Menu, model: ModelSpec, weighed: bool) -> dict[str, list[int]]:
    """Those that the candidates can make, by llama.cpp's names: a choice each. `weighed` as in mixes.Traits."""
    columns = {name: model.tensors[f"{name}.weight"].shape[-1] for name in menu.modules}
    found = {}
    for label in FILE_TYPES:
        kinds = mixed_modules(model, dict.fromkeys(sorted(menu.modules), label), weighed)
        given: dict[str, Rung] = {name: fitting(kind, columns[name]) for name, kind in kinds.items()}
        if (chosen := menu.chosen(given)) is not None:
            found[label] = chosen
    return found
