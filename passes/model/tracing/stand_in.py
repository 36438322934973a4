"""What stands where a model's decoder layers were, so that the rest of it runs in its own code without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsIndex

from torch import Tensor, nn

from compress.formats.errors import RefusedError
from compress.passes.model.anatomy import Call, Trace
from compress.passes.model.tracing.structure import Traces


class StandIn(nn.Module):
    """Takes a decoder layer's place: notes the call, hands the hidden states on (or others in their stead).

    It learns from the weightless layer, when it is first called, in what form hidden states are returned. `traces`
    are those of all the model's layers, of which this is number `index`.
    """

    def __init__(self, layer: nn.Module, index: int, traces: Traces) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that it is no submodule
        self._index, self._traces = index, traces
        self.traced: Trace | None = None
        self.call: Call | None = None
        self.arrived: Tensor | None = None
        self.replacement: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattribute__("_layer")[0], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        """One that stands for the same layer, and has not been called."""
        other = StandIn(self._layer[0], self._index, self._traces)
        other.traced = self.traced
        return other

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | _Alone:
        self.call, self.arrived = Call(args, kwargs), hidden
        if self.traced is None:
            self.traced = self._traces.of(self._layer[0], self._index, self.call, hidden)
        hidden = hidden if self.replacement is None else self.replacement
        return _Alone(hidden, type(self._layer[0]).__name__) if self.traced.wraps else hidden


class _Alone(tuple[Tensor]):
    """Hidden states alone in a tuple: who asks for what else a layer returns is told that it cannot be had."""

    def __new__(cls, hidden: Tensor, layer: str) -> _Alone:
        alone = super().__new__(cls, (hidden,))
        alone.layer = layer
        return alone

    layer: str

    def __iter__(self) -> Iterator[Tensor]:
        yield self[0]
        raise self._refusal()

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if index not in (0, slice(1, None)):
            raise self._refusal()
        return super().__getitem__(index)

    def _refusal(self) -> RefusedError:
        return RefusedError(
            f"{self.layer} hands the next layer more than hidden states (a recurrent state)",
            "models are worked on layer by layer, each on hidden states alone; this one cannot be",
        )
