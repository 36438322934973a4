"""Gradients of the end loss carried back through the decoder layers, one layer in memory at a time.

The loss is that of the model's own probabilities: every token's next one is drawn from what the model itself gives,
so that squared gradients are, on average, the Fisher information, the curvature of the KL divergence from it. Each
layer runs once more from the boundary before it, and its vector-Jacobian product gives the gradient there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import greenlet
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.formats.files.storage import DurableFile
from compress.kernels.measure.guide import part_energies, token_weights
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.walk import Walk
from compress.passes.model.flight import Flight

_CHUNK = 256


class WayBack:
    """From the last boundary of `walk`, whose one stream has kept all, to the first; `gradients` is where they lie."""

    def __init__(self, walk: Walk, gradients: HiddenStates, seed: int) -> None:
        self._walk, self._gradients, self._seed = walk, gradients, seed
        (self._stream,) = walk.streams
        self._device = walk.skeleton.device

    def start(self) -> None:
        """Write the gradient at the last boundary, sequence by sequence: no more logits than of a few tokens."""
        project, _ = self._walk.skeleton.back(self._stream.weights)
        boundary, sequences = len(self._walk.skeleton.anatomy.layers), self._walk.sequences
        uniform = torch.rand(sequences.ids.shape, generator=torch.Generator().manual_seed(self._seed))
        with self._gradients.write(boundary) as file:
            for number in range(sequences.count):
                hidden = self._stream.hidden.read(boundary, number, number + 1)[0]
                real = torch.arange(len(hidden)) if sequences.mask is None else sequences.mask[number].nonzero()[:, 0]
                gradient = torch.zeros_like(hidden)
                for tokens in real.split(_CHUNK):
                    some = hidden[tokens].to(self._device)
                    gradient[tokens] = _end_gradient(project, some, uniform[number, tokens].to(self._device)).cpu()
                HiddenStates.append(file, gradient[None])

    def layer(self, index: int, parts: Mapping[str, int]) -> dict[str, Tensor]:
        """Write the gradient at boundary `index`, from that at the next one.

        Gives the weights of tokens [sequences, length, parts] float16 (`token_weights`) of the layer's linears in
        `parts`: named as the layer names them, with the number of parts of their rows.
        """
        module = self._walk.skeleton.layer(index, self._stream.weights)
        notes = {name: _Notes(self._walk.sequences.ids.numel(), count) for name, count in parts.items()}
        for name, note in notes.items():
            module.get_submodule(name).register_forward_hook(note.watch)
        with self._gradients.write(index) as file:
            for batch in self._walk.batches:
                for note in notes.values():
                    note.offset = batch[0] * self._walk.sequences.length
                self._back(index, module, batch, file)
        shape = self._walk.sequences.ids.shape
        return {name: note.weights(self._walk.sequences.mask).unflatten(0, shape) for name, note in notes.items()}

    def _back(self, index: int, module: nn.Module, batch: tuple[int, int], file: DurableFile) -> None:
        call = self._walk.skeleton.call(index, self._walk.sequences.batch(*batch))
        hidden = self._stream.hidden.read(index, *batch).to(self._device).requires_grad_()
        with torch.enable_grad():
            # A flight, so that experts tell which tokens they deal with.
            output = Flight(partial(self._walk.skeleton.run, module, hidden, call)).next()
        (gradient,) = torch.autograd.grad(output, hidden, self._gradients.read(index + 1, *batch).to(self._device))
        HiddenStates.append(file, gradient)


class _Notes:
    """The energies of the gradients at one linear's outputs, over all tokens; `offset` is the batch's first."""

    def __init__(self, tokens: int, parts: int) -> None:
        self.offset = 0
        self._parts = parts
        self._energies = torch.zeros(tokens, parts)
        self._reached = torch.zeros(tokens, dtype=torch.bool)

    def watch(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook: note the gradient at `output` when it comes."""
        flight = greenlet.getcurrent()
        tokens = flight.tokens if isinstance(flight, Flight) else None
        if output.requires_grad and output.numel():
            output.register_hook(partial(self._take, tokens))

    def weights(self, mask: Tensor | None) -> Tensor:
        """[tokens, parts] float16; padding, which has no gradient, counts as not reached."""
        return token_weights(self._energies, self._reached if mask is None else self._reached & mask.flatten())

    def _take(self, tokens: Tensor | None, gradient: Tensor) -> None:
        energies = part_energies(gradient.flatten(0, -2), self._parts).cpu()
        where = torch.arange(len(energies)) if tokens is None else tokens.cpu()
        self._energies[self.offset + where] += energies
        self._reached[self.offset + where] = True


def _end_gradient(project: Any, hidden: Tensor, uniform: Tensor) -> Tensor:
    """The gradient at `hidden` [tokens, width] of the loss on next tokens that `uniform` [tokens] draws."""
    hidden = hidden.requires_grad_()
    with torch.enable_grad():
        logits: Tensor = project(hidden[None])[0].float()
        loss = cross_entropy(logits, draw(logits.detach(), uniform), reduction="sum")
    return torch.autograd.grad(loss, hidden)[0]


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [n] int64 from the distributions of `logits` [n, vocabulary], by `uniform` [n] in [0, 1)."""
    cumulated = logits.softmax(-1).cumsum(-1)
    found = torch.searchsorted(cumulated, (uniform * cumulated[:, -1])[:, None], right=True)
    return found[:, 0].clamp(max=logits.shape[1] - 1)
