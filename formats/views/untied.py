"""A model whose output projection is written out, for engines that do not take the embedding in its stead."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import RefusedError
from compress.formats.views.view import View
from compress.kernels.qtensor import QTensor

HEAD = "lm_head.weight"
TIED = "tie_word_embeddings"


def untied_spec(model: ModelSpec) -> ModelSpec:
    """The headers of `model` with a head of its own. Raises RefusedError if it has no embedding to make one of."""
    tensors = dict(model.tensors)
    if HEAD not in tensors:
        tensors[HEAD] = tensors[_embedding(model)]
    return replace(model, config={**model.config, TIED: False}, tensors=tensors)


class Untied(View):
    """A checkpoint in which the embedding is read as the head too. `config.json` is not changed here."""

    def __init__(self, model: Checkpoint) -> None:
        super().__init__(model, untied_spec(model.spec))

    def read(self, name: str) -> Tensor | QTensor:
        tied = name == HEAD and HEAD not in self.inner.spec.tensors
        return self.inner.read(_embedding(self.inner.spec) if tied else name)


def _embedding(model: ModelSpec) -> str:
    """The token embedding: the one matrix with a row for every token."""
    rows = model.config.get("vocab_size")
    found = [name for name, spec in model.tensors.items() if len(spec.shape) == 2 and spec.shape[0] == rows]
    if len(found) != 1:
        raise RefusedError(
            f"{len(found)} tensors have a row for each of {str(rows)[:40]} tokens: which is the embedding is unclear",
            "leave out `untie: true`",
        )
    return found[0]
