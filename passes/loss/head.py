"""A model in two parts: up to its last hidden state, and from there to logits, both in its own code.

So a loss can ask for the logits of a few tokens at a time, and whatever an architecture does after its head (soft
capping, a scale) is done.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compress.formats.errors import RefusedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_states(model: PreTrainedModel, ids: Tensor, mask: Tensor | None) -> Sequence[Tensor]:
    """All hidden states [sequences, length, width] of `ids` [sequences, length], as they leave embedding and layers."""
    output = _body(model)(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    return (*output.hidden_states[:-1], output.last_hidden_state)


def last_hidden(model: PreTrainedModel, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The last hidden state [sequences, length, width] of `ids` [sequences, length], after the final norm."""
    hidden: Tensor = _body(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden


class Head(nn.Module):
    """Hidden states [tokens, width] → logits [tokens, vocabulary]; shares its parameters with the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        _body(model)
        beheaded = copy.copy(model)
        beheaded._modules = {**model._modules, model.base_model_prefix: _Replay()}
        self._causal = beheaded

    def forward(self, hidden: Tensor) -> Tensor:
        replay: Any = self._causal._modules[self._causal.base_model_prefix]
        replay.hidden = hidden.unsqueeze(0)
        try:
            logits: Tensor = self._causal(inputs_embeds=replay.hidden, use_cache=False).logits
        finally:
            replay.hidden = None
        return logits[0]


class _Replay(nn.Module):
    """Stands where a model's body stands, and gives out what it is given."""

    hidden: Tensor | None = None

    def forward(self, *args: object, **kwargs: object) -> _Output:
        assert self.hidden is not None
        return _Output(self.hidden)


class _Output:
    """What a body returns, of which only the last hidden state is there."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _body(model: PreTrainedModel) -> Any:
    """The model below its head. Raises RefusedError for one that is not made of these two."""
    body = model.base_model
    if body is model:
        raise RefusedError(
            f"{type(model).__name__} has no part below its head that could be run by itself",
            "it can be quantized, and not trained",
        )
    return body
