"""A model that is small enough for what it takes to be counted by hand."""

from __future__ import annotations

from compress.formats.base import ModelSpec, TensorSpec
from compress.passes.model.anatomy import Anatomy, LayerAnatomy

# Two layers, each: q and k [8, 8] share an input, down [8, 24] has another; an embedding of 100 rows.
LAYERS = tuple(LayerAnatomy(name, ((f"{name}.q", f"{name}.k"), (f"{name}.down",)), {}) for name in ("a", "b"))
ANATOMY = Anatomy(LAYERS, "embedding.weight", "embedding.weight", True, lambda: (None, None))
SHAPES = {"embedding": (100, 8)} | {
    f"{layer}.{name}": (8, width) for layer in "ab" for name, width in (("q", 8), ("k", 8), ("down", 24))
}
MODEL = ModelSpec({}, {f"{name}.weight": TensorSpec(shape, "float32") for name, shape in SHAPES.items()})
TOKENS = 3 * 5
FORWARD = 2 * TOKENS * 2 * (8 * 8 + 8 * 8 + 8 * 24) + 2 * 4 * TOKENS * 5 * 8
