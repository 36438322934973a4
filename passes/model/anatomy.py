"""Which modules a model is made of, found by tracing it on the meta device, never by its name.

*Siblings* are the linear layers that receive the very same tensor (q/k/v; gate/up): they share their statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compress.formats.errors import RefusedError


@dataclass(frozen=True)
class Call:
    """What a model hands to one decoder layer besides the hidden states: positions, masks."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on_meta(self) -> Call:
        """The same call with the shapes of its tensors only."""
        return Call(*tree_map(_to_meta, (self.args, self.kwargs)))


@dataclass(frozen=True)
class Attention:
    """The module that keeps keys and values (its name in the checkpoint), and how many heads they have."""

    module: str
    heads: int


@dataclass(frozen=True)
class Heads:
    """The heads of an attention whose linears give queries, keys and values, `width` rows a head, one after the other.

    Linears go by their names. `count` heads of queries share `kept` of keys and values, neighbours one; `output` reads
    a head's `width` columns. Of a key `pairs` of entries may be multiplied as complex numbers, and the `free` ones by
    any matrix, if queries make up for it: what positions do to keys goes along. Where a norm forbids it there are none.
    Heads that are `alike` may change places, each with those that share it: none has a slope or a sink of its own.
    """

    queries: str
    keys: str
    values: str
    output: str
    count: int
    kept: int
    width: int
    pairs: tuple[tuple[int, int], ...] = ()
    free: tuple[int, ...] = ()
    alike: bool = False

    @property
    def sharing(self) -> int:
        """How many heads of queries share one of keys."""
        return self.count // self.kept

    def named(self, names: Mapping[str, str]) -> Heads:
        """The same with other names for its linears."""
        queries, keys, values, output = (names[each] for each in (self.queries, self.keys, self.values, self.output))
        return replace(self, queries=queries, keys=keys, values=values, output=output)


@dataclass(frozen=True)
class LayerAnatomy:
    """A decoder layer: its name (`model.layers.3`) and its linears, siblings together, as the checkpoint names them.

    `modules` has each linear's name within the layer (`self_attn.q_proj`). `routers` are the linears that choose
    or weigh experts; `stacks` the parameters that hold several matrices in a form not known here.
    """

    name: str
    siblings: tuple[tuple[str, ...], ...]
    modules: Mapping[str, str]
    routers: frozenset[str] = frozenset()
    stacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """A causal language model's layers, and the names of the weight tensors of its two ends.

    `head` is the output projection's own name, whether or not it is `tied` to the embedding. `attentions` tells
    for each layer what caches its keys and values, `heads` whose rows its heads are; the layers are traced for either
    when it is first asked.
    """

    layers: tuple[LayerAnatomy, ...]
    embedding: str
    head: str
    tied: bool
    attentions: Callable[[], tuple[Attention | None, ...]]
    heads: Callable[[], tuple[Heads | None, ...]] = tuple

    @property
    def ends(self) -> dict[str, tuple[str, ...]]:
        """Modules outside the decoder layers that a pass may quantize, each with the names it answers to."""
        embedding, head = (name.removesuffix(".weight") for name in (self.embedding, self.head))
        return {embedding: (embedding, head)} if self.tied else {embedding: (embedding,), head: (head,)}

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear module of the decoder layers but the routers, in the order of the forward."""
        linears = ((layer, name) for layer in self.layers for siblings in layer.siblings for name in siblings)
        return tuple(name for layer, name in linears if name not in layer.routers)

    @property
    def routers(self) -> tuple[str, ...]:
        """The linear modules that choose or weigh experts."""
        return tuple(name for layer in self.layers for name in sorted(layer.routers))


def kind_of(module: str) -> str:
    """A module's name without its numbers: the same for all experts' matrices of one sort."""
    return ".".join(step for step in module.split(".") if not step.isdigit())


def find_layers(model: nn.Module) -> str:
    """The name of the list of decoder layers: the `ModuleList` that holds the most parameters."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ValueError("the model has no list of decoder layers")
    sizes: dict[str, int] = {name: sum(p.numel() for p in module.parameters()) for name, module in lists.items()}
    return max(sizes, key=sizes.__getitem__)


@dataclass(frozen=True)
class Trace:
    """What a decoder layer showed: all siblings, named within it, in the order of the forward; what it returns.

    `wraps`: hidden states come first in a tuple, not alone.
    """

    siblings: tuple[tuple[str, ...], ...]
    wraps: bool


def trace(layer: nn.Module, call: Call, hidden: Tensor) -> Trace:
    """Run a weightless `layer` on meta tensors, and note which linears receive the same tensor.

    `hidden` is [batch, tokens, width]. Raises RefusedError if the layer does not give such hidden states.
    """
    arrivals: list[tuple[Tensor, list[str]]] = []

    def note(name: str, x: Tensor) -> None:
        for seen, names in arrivals:
            if seen is x:
                names.append(name)
                return
        arrivals.append((x, [name]))

    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    output = run_weightless(layer, call, hidden)
    for hook in hooks:
        hook.remove()
    wraps = isinstance(output, (tuple, list))
    first = output[0] if wraps else output
    if not isinstance(first, Tensor) or first.shape != hidden.shape:
        raise RefusedError(
            f"{type(layer).__name__} does not give hidden states of the shape that it takes",
            "models are worked on layer by layer; this one cannot be",
        )
    return Trace(tuple(tuple(names) for _, names in arrivals), wraps)


def run_weightless(layer: nn.Module, call: Call, hidden: Tensor) -> Any:
    """What `layer`, moved to the meta device, gives for `hidden` [batch, tokens, width]: shapes, and hooks called."""
    call = call.on_meta()
    with torch.no_grad():
        return layer.to(device="meta")(hidden.to("meta"), *call.args, **call.kwargs)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
