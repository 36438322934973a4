"""All families, out of the files here: whatever has `FAMILIES` adds to them."""

from __future__ import annotations

from collections.abc import Mapping

from compress.formats.gguf.families import dense, experts, older
from compress.formats.gguf.names import Architecture

FAMILIES: tuple[Architecture, ...] = (*dense.FAMILIES, *older.FAMILIES, *experts.FAMILIES)
BY_MODEL_TYPE: Mapping[str, Architecture] = {
    kind: family for family in FAMILIES for kind in (family.model_type, *family.also)
}


def named(name: str, experts: bool) -> Architecture | None:
    """The family that GGUF calls `name`: llama.cpp has the experts of Mixtral in the family of Llama."""
    found = [family for family in FAMILIES if family.name == name]
    return next((family for family in found if len(found) == 1 or family.has_experts == experts), None)
